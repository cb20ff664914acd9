# What can be done with this repository. `make` alone lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-bench
ROUNDS ?= 5
# One thread per process: the tests start many processes, and two workers run them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --durations=40 --durations-min=5

.PHONY: help install demo test quick lint types docs bench bench-peers clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: $(STAMP)  ## make .venv with everything in it (again only when pyproject.toml or constraints.txt changed)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Modelyard needs Python 3.11 or newer"; \
		echo "  mend: make install PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "  mend: on Debian and Ubuntu, apt install python3-venv"; exit 2; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: install  ## take the digits project the whole way and show it; leaves nothing running
	@PATH="$(BIN):$$PATH" examples/demo.sh demo

test: lint types  ## everything that must hold: lint, types, all tests
	$(PYTEST)

quick: install  ## the tests without the slow ones
	$(PYTEST) -m "not slow"

lint: install  ## formatting and style
	@$(BIN)/ruff format --check --quiet . src/modelyard/templates || { \
		echo "  mend: $(VENV)/bin/ruff format . src/modelyard/templates"; exit 1; }
	@$(BIN)/ruff check . src/modelyard/templates

types: install  ## static types, strict
	@$(BIN)/mypy

docs: install  ## links and commands in the pages, and the reference against the code
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/docs

bench: install  ## start-up time, and the training loop against a hand-written one
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.training_loop

bench-peers: $(PEERS)/.installed  ## training and data against the peers (Lightning, Accelerate, Keras, Ray, …), in .venv-bench
	$(PEERS)/bin/python -m benchmarks.data --rounds $(ROUNDS)
	$(PEERS)/bin/python -m benchmarks.training --rounds $(ROUNDS)

$(PEERS)/.installed: benchmarks/requirements.txt constraints.txt pyproject.toml
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@echo "installing the peers into $(PEERS) (4 GB, several minutes the first time)"
	@$(PEERS)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -r benchmarks/requirements.txt -e '.[all,dev]'
	@touch $@

clean:  ## remove what was made, except .venv and .venv-bench
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
