# Two commands do everything: `make train` and `make test`. Both make a virtual environment in .venv first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help train test check bench clean

help:
	@echo "make train   install what is needed, then train the preset 'quickstart' (ARGS='--seed 1' adds flags)"
	@echo "make test    install what tests need, then run them (ARGS='-k replay' selects)"
	@echo "make check   ruff and mypy"
	@echo "make bench   the benchmark: prints a table and writes docs/results/"
	@echo "make clean   remove .venv and caches; runs/ stays"

train: $(VENV)/main.installed
	$(BIN)/dreamfleet train --preset quickstart $(ARGS)

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/bench.installed
	$(BIN)/python -m tests.bench $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/main.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/dev.installed: $(VENV)/main.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/bench.installed: $(VENV)/dev.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
