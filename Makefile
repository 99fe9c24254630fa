# Targets: setup, check, test, figures, bench, bench-full, bench-growth. PYTHON is the interpreter of the environment to install into and to run.
PYTHON ?= python
FIGURES = figure-1 figure-2 figure-3 figure-4 figure-5 figure-6 figure-8 figure-9 figure-10 figure-11 figure-12 figure-13

# MNIST in torchvision's layout, for bench: make bench DATA=--data-root=DIR (random pixels without it).
DATA ?=

.PHONY: setup check test figures bench bench-full bench-growth

setup:
	$(PYTHON) -m pip install -c constraints.txt -e ".[test,dev]"

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"

test:
	$(PYTHON) -m pytest -q

figures:
	for name in $(FIGURES); do $(PYTHON) cli.py plot $$name --results results/reference --out figures/reference --format png || exit 1; done

# One thread and interleaved rounds, so that a busy machine slows all systems alike. About ten minutes.
bench:
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks quick $(DATA)

# Hours: every row of the table in BENCHMARKS.md.
bench-full:
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks full $(DATA)

# Exponents of the cost in inputs, columns and views.
bench-growth:
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks growth --no-memory $(DATA)
