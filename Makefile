# Two commands do everything: `make train` and `make test`. Both make a virtual environment in .venv first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PIP_ARGS ?=

# The constraints hold for what builds packages too: pip reads the first name up to version 25.2, the second after it.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip --disable-pip-version-check
# Of all that pip says, a line for each big file; its errors come as they are.
SHELL := bash
INSTALL = set -o pipefail; $(PIP) install --progress-bar off --constraint constraints.txt $(PIP_ARGS) --editable $(1) | \
	while read -r line; do case "$$line" in \
		Downloading*MB*|"Using cached"*MB*|"Building wheel"*) echo "  $$line" ;; \
		"Installing collected"*) echo "  Installing all of it" ;; \
	esac; done

comma := ,

.PHONY: help train test test-long test-processors chaos cluster-test fuzz check bench bench-gpu clean

help:
	@echo "make train   install what is needed, then train the preset 'quickstart' (ARGS='--seed 1' adds flags)"
	@echo "             (PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu' adds flags to every pip install)"
	@echo "make test    install what tests need, then run them, two at a time (ARGS='-k replay' selects, '-n 0' runs one by one)"
	@echo "make test-long   the longest tests, of which 'make test' has shorter forms"
	@echo "make test-processors   the tests of numbers again, as older processors and other numbers of threads round them"
	@echo "make chaos   kill, freeze and starve runs for half an hour, and count their steps; SEED=N repeats the moments of a failure"
	@echo "make cluster-test   a whole cluster on four test hosts of this machine; needs root, minutes"
	@echo "make fuzz    a million inputs, almost right, for everything that reads a file (ARGS='--seconds 600 --seed 7')"
	@echo "make check   ruff and mypy"
	@echo "make bench   the benchmark: prints a table and writes docs/results/"
	@echo "make bench-gpu   what only a GPU can show, in eight minutes; writes docs/results/ (ARGS='--r2dreamer DIR' runs it beside)"
	@echo "make clean   remove .venv and caches; runs/ stays"

train: $(VENV)/main.installed
	$(BIN)/dreamfleet train --preset quickstart $(ARGS)

# Two processes, each with files of its own: half of the time is spent waiting for workers to start.
test: $(VENV)/dev.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-long: $(VENV)/dev.installed
	$(BIN)/python -m pytest -m long $(ARGS)

# Torch's own kernels, convolutions and matrix products are three libraries, each with a setting of its own.
NUMERIC := $(BIN)/python -m pytest -m 'numeric and not slow and not long'
test-processors: $(VENV)/dev.installed
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(NUMERIC) $(ARGS)
	! grep -qw avx2 /proc/cpuinfo || OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2 $(NUMERIC) $(ARGS)

ifndef SEED
SEED := $(shell od -An -N2 -tu2 /dev/urandom | tr -d ' ')
endif
chaos: $(VENV)/dev.installed
	@echo "seed $(SEED)"
	DREAMFLEET_CHAOS_SEED=$(SEED) DREAMFLEET_CHAOS_RESULTS=docs/results/chaos-$$(date +%F).md $(BIN)/python -m pytest -m chaos -s $(ARGS)

cluster-test: $(VENV)/dev.installed
	DREAMFLEET_CLUSTER_TEST=1 $(BIN)/python -m pytest tests/cluster -s $(ARGS)

fuzz: $(VENV)/dev.installed
	$(BIN)/python -m tests.fuzz $(ARGS)

check: $(VENV)/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/bench.installed
	$(BIN)/python -m tests.bench $(ARGS)

bench-gpu: $(VENV)/bench.installed
	$(BIN)/python -m tests.bench.gpu $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; echo "'$(PYTHON) -m venv' failed, see above. On Debian and Ubuntu it needs: sudo apt install python3-venv" >&2; exit 1; }

$(VENV)/main.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing torch, ray, gymnasium and what they need into $(VENV): some minutes the first time"
	@$(call INSTALL,.)
	@touch $@

$(VENV)/dev.installed: $(VENV)/main.installed
	@echo "installing pytest, ruff, mypy and the environment suites into $(VENV)"
	@$(call INSTALL,'.[dev$(comma)dmc$(comma)atari$(comma)minigrid$(comma)crafter]')
	@touch $@

$(VENV)/bench.installed: $(VENV)/dev.installed
	@echo "installing torchrl into $(VENV), to compare with"
	@$(call INSTALL,'.[bench]')
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
