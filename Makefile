# Targets: setup, check, test, figures. PYTHON is the interpreter of the environment to install into and to run.
PYTHON ?= python
FIGURES = figure-1 figure-2 figure-3 figure-4 figure-5 figure-6 figure-8 figure-9 figure-10 figure-11 figure-12 figure-13

.PHONY: setup check test figures

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
