# `make demo` and `make test` make their own virtual environment in .venv; both are safe to run again.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SHELL  := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-all lint lock clean

help:           ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("mer needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "== making $(VENV)"
	@$(PYTHON) -m venv $(VENV) && touch $@

# CI compiles only what it imports: 14,000 modules take pip a minute
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(INSTALL_OPTIONS)
# worksteal: the last files are shared out test by test, so that no process waits for the other
PYTEST      = $(BIN)/python -m pytest -n 2 --dist worksteal

$(VENV)/.installed: requirements.txt pyproject.toml $(VENV)/.created
	@echo "== installing mer and its pinned requirements into $(VENV) (about 3 minutes and 5.3 GB on disk the first time)"
	@$(PIP_INSTALL) -r requirements.txt
	@$(PIP_INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/.test-installed: requirements-test.txt $(VENV)/.installed
	@echo "== installing what only the tests need"
	@$(PIP_INSTALL) -r requirements-test.txt
	@touch $@

install: $(VENV)/.installed ## the virtual environment with mer in it

demo: $(VENV)/.installed    ## extract and train on the built-in synthetic corpus, in demo/
	@mkdir -p demo
	@echo "== demo/: mer extract --dataset synthetic"
	@cd demo && ../$(BIN)/mer extract --dataset synthetic
	@echo "== demo/: mer train feats.h5"
	@cd demo && ../$(BIN)/mer train feats.h5

test: $(VENV)/.test-installed ## the default tests: CPU, offline, a few minutes
	@echo "== tests"
	@$(PYTEST)

test-slow: $(VENV)/.test-installed ## the slow tests; with SAMPLE=2/4 the second of four parts, by name
	@echo "== slow tests$(if $(SAMPLE),: part $(SAMPLE))"
	@$(PYTEST) -m "slow and not exhaustive and not gpu" $(if $(SAMPLE),-vv --slow-sample $(SAMPLE))

test-all: $(VENV)/.test-installed ## everything that needs no GPU, the exhaustive sets included
	@echo "== all tests"
	@$(PYTEST) -m "not gpu" --timeout 3600

lint: $(VENV)/.test-installed ## format, lint rules and types, as CI checks them
	@echo "== ruff format, ruff check, mypy"
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@mkdir -p $(VENV)/typed && ln -sfn ../.. $(VENV)/typed/mer
	@MYPYPATH=$(VENV)/typed $(BIN)/mypy -p mer.pipeline -p mer.fusion -p mer.manifests -p mer.commands -m mer.cli

lock:           ## recompile the two lock files from pyproject.toml (needs uv)
	uv pip compile pyproject.toml -o requirements.txt --no-annotate --upgrade
	uv pip compile pyproject.toml --extra test -c requirements.txt -o requirements-test.txt --no-annotate --upgrade

clean:          ## what the demo made (the environment stays)
	rm -rf demo
