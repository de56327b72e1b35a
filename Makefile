# Everything a checkout needs, from nothing but Python (3.11 or newer) and make.
# The virtual environment is made on first use and brought up to date only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Half of the tests' time is waiting, so three processes keep two cores busy. JOBS=0 runs them one after another in one process.
JOBS ?= 3

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
# An interpreter that no longer runs (an upgraded system) takes its stamps with it, so that everything is made anew.
_ := $(shell $(BIN)/python -c '' 2>/dev/null || rm -f $(READY) $(READY_DEV))
# On CI a test that is skipped proves nothing, so it fails the run.
NO_SKIPS := $(if $(CI),-p tests.no_skips)
PYTEST = $(BIN)/python -m pytest $(NO_SKIPS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test slow lint format types docs bench matrix pictures clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo '  Options: ARGS="..." is passed on (make run ARGS="--listen 127.0.0.1:9000"); PYTHON=python3.13 chooses the interpreter.'
	@echo '           make test JOBS=6 runs tests in as many processes, JOBS=0 in one.'

run: $(READY) ## set up and start the relay
	@$(BIN)/python -m relay serve $(ARGS)

test: $(READY_DEV) ## set up and run all tests but the slow ones
	@$(PYTEST) -m "not slow" -n $(JOBS) --dist loadfile $(ARGS)

slow: $(READY_DEV) ## run the slow tests
	@$(PYTEST) -m slow $(ARGS)

lint: $(READY_DEV) ## check style and format
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

format: $(READY_DEV) ## put the code into its format
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

types: $(READY_DEV) ## check types
	@$(BIN)/python -m mypy

docs: $(READY_DEV) ## write the schema and the reference of all settings anew
	@$(BIN)/python -m relay schema > config/relay.schema.json.new
	@mv config/relay.schema.json.new config/relay.schema.json
	@{ awk '{ print } /^<!-- relay schema/ { exit }' docs/configuration.md; echo; $(BIN)/python -m relay schema --markdown; } > docs/configuration.md.new
	@mv docs/configuration.md.new docs/configuration.md

bench: $(READY_DEV) ## measure the relay against other proxies
	@$(BIN)/python -m bench $(ARGS)

matrix: $(READY_DEV) ## run every fault against a relay and print the table
	@$(BIN)/python -m tests.matrix $(ARGS)

pictures: $(READY_DEV) ## draw the board for docs/, from real data
	@$(PIP) install --constraint constraints.txt --group docs
	@$(BIN)/python -m grafana.pictures $(ARGS)

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip 25.1 is the first that reads dependency groups, so it comes before anything else.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'relay needs Python 3.11 or newer; "$(PYTHON) --version" says:' "$$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
		echo 'Install a newer one, or name one that is installed:  make PYTHON=python3.13 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '"$(PYTHON)" cannot make virtual environments. On Debian and Ubuntu:  apt install python3-venv' >&2; exit 1; }
	@echo 'Setting up $(VENV) (once, about half a minute)' >&2
	@$(PYTHON) -m venv --clear $(VENV)

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	@$(PIP) install --constraint constraints.txt --upgrade 'pip>=25.1'
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(READY_DEV): $(READY)
	@$(PIP) install --constraint constraints.txt --group dev
	@touch $@
