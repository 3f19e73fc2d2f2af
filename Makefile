# `make test`, `make test-fast`, `make demo`, `make lint`: each does its own set-up from a fresh clone (Python 3.11+, a C++ compiler).
# make demo DATA=path SUBSET=s4   runs the demo's path on a real AVSBench download.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
SUBSET ?= demo
PEERS ?= build/peers
OUT ?= outputs/demo$(if $(filter-out demo,$(SUBSET)),_$(SUBSET))

.DEFAULT_GOAL := all
.PHONY: all help install demo test test-fast test-hermetic test-peers lint docs clean

all: install help

help:
	@sed -n '1,2s/^# //p' Makefile

# Installed again only when a file that decides what is installed has changed.
$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {v[0]}.{v[1]} was found as $(PYTHON); name another with make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/python examples/demo.py --out $(OUT) --subset $(SUBSET) $(if $(DATA),--data_dir $(DATA))

# One process per core; `.venv/bin/python -m pytest tests/metric` runs a part in one process.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: install
	$(PYTEST)

# Before each commit: without what is marked slow (setup.cfg).
test-fast: install
	$(PYTEST) -m "not slow"

# As on a machine that has never seen this project, in random order, twice.
test-hermetic: install
	VENV=$(VENV) bash tests/hermetic.sh

# transformers' and evaluate's own test suites, of the installed versions, on our classes; fetched into $(PEERS).
test-peers: install
	$(BIN)/python tests/peers/fetch_peers.py $(PEERS)
	PEERS=$(PEERS) $(BIN)/python -m pytest tests/peers

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy avsbench_robust_dataset evaluate_metrics avs_engine

# The site of docs/ in build/site: without a network, and any broken link fails (not with --quiet, which hides them). `.venv/bin/mkdocs serve` shows it.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf outputs build *.egg-info .pytest_cache .ruff_cache
