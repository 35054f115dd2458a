# SPDX-License-Identifier: Apache-2.0
# One command each; `make help` lists them. Needs Python 3.11 or newer and a package index, nothing else.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/.ready
# Test files that run at the same time; 0 runs them one after the other.
TESTERS ?= 2
BACKENDS := $(VENV)/.backends
export FLWR_TELEMETRY_ENABLED := 0
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help
help: ## Say what each command does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml uv.lock
	@scripts/make-venv "$(PYTHON)" "$(VENV)"
	@touch $@

# Keras's torch backend and torch modules are tested, but torch is no dependency of ours:
# it comes from wherever pip finds a build, so that a machine with a CPU build at hand gets that one.
$(BACKENDS): $(READY)
	@scripts/install-torch "$(VENV)"
	@touch $@

.PHONY: setup
setup: $(READY) ## Make .venv with everything that demo, tests and docs need

.PHONY: demo
demo: $(READY) ## Four edges train one model; then a model that got bad repairs itself; on this machine
	@$(BIN)/python examples/01_digits/demo.py
	@$(BIN)/python examples/09_self_repair/demo.py

.PHONY: lint
lint: $(READY) ## Format check, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy -p solar_corona

.PHONY: format
format: $(READY) ## Put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test
test: $(BACKENDS) lint unit docs-check ## Run all checks: lint, types, tests with coverage, docs

.PHONY: unit
unit: $(BACKENDS) ## Run the tests alone; ARGS='-k name' picks some
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(TESTERS) --dist loadfile $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=85

.PHONY: bench
bench: $(READY) ## Run one benchmark: make bench NAME=round_overhead
	@test -n "$(NAME)" || { echo "say which: make bench NAME=<one of: $$(cd benchmarks && ls *.py | grep -v '^_' | sed 's/\.py//' | xargs)>"; exit 2; }
	$(BIN)/python -m solar_corona.benchmarks.$(NAME)

.PHONY: docs
docs: $(READY) ## Write the generated pages of docs/reference anew
	$(BIN)/python scripts/generate_reference.py

.PHONY: docs-check
docs-check: $(READY) ## Fail if a generated page is not what the code says
	$(BIN)/python scripts/generate_reference.py --check
