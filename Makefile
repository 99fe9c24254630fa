# Targets: setup, check, test, test-gpu, figures, bench, bench-full, bench-gpu, bench-growth. PYTHON is the interpreter of the environment to install into and run.
PYTHON ?= python
FIGURES = $(addprefix figure-,1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
COMPARISONS = $(sort $(wildcard results/reference/comparison/*/rows.csv))

# MNIST in torchvision's layout, for bench: make bench DATA=--data-root=DIR (random pixels without it).
DATA ?=

.PHONY: setup check test test-gpu figures bench bench-full bench-gpu bench-growth

setup:
	$(PYTHON) -m pip install -c constraints.txt -e ".[test,dev]"

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"

test:
	$(PYTHON) -m pytest -q

# Every process of the tests would start as many threads as there are cores.
test-gpu:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m gpu tests/contracts/test_accelerators.py tests/contracts/test_networks_elsewhere.py

figures:
	for name in $(FIGURES); do $(PYTHON) cli.py plot $$name --results results/reference --out figures/reference --format png || exit 1; done
	$(PYTHON) cli.py plot figure-9 --results results/reference-gpu --out figures/reference-gpu --format png
	$(PYTHON) cli.py plot comparison $(addprefix --csv ,$(COMPARISONS)) --out figures/reference --format png

# One thread and interleaved rounds, so that a busy machine slows all systems alike. About ten minutes.
bench:
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks quick $(DATA)

# About an hour: every row of the table in BENCHMARKS.md.
bench-full:
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks full $(DATA)

# On a GPU: ten minutes, or --minutes M in ARGS.
bench-gpu:
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.gpu $(ARGS)

# Exponents of the cost in inputs, columns and views.
bench-growth:
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks growth --no-memory $(DATA)
