# `make help` lists the targets. Each one installs what it needs first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
JOBS ?= 2
# Tests start a hundred programs: their modules are compiled once, wherever the environment says that none is kept. And
# they run side by side: threads of one that spun while they wait would keep the other's from the cores.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
CHANGED = $(shell git diff --name-only --diff-filter=d HEAD -- '*.py')

.PHONY: help install run demo test test-full quick bench chaos soak check audit openapi settings format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make the virtual environment, everything in

# torch goes first and alone: with the exact version installed, nothing after it can pull another build.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Cynosure needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) can't make virtual environments: its ensurepip is missing. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[gateway,worker,traces,memory,local,train,dev]'
	@touch $@

run: $(STAMP) ## Start everything on this machine (store, worker, gateway); Ctrl-C stops it
	$(BIN)/cynosure up $(ARGS)

demo: $(STAMP) ## Draw a sheet of every guidance mode into out/demo.png
	$(BIN)/cynosure demo $(ARGS)

test: $(STAMP) ## Run the tests
	$(PYTEST) --durations=20 $(ARGS)

test-full: $(STAMP) ## Run the tests at their full size
	$(PYTEST) --durations=20 --full $(ARGS)

quick: $(STAMP) ## Run the unit tests and one test of the whole service, and lint the changed files; under a minute
	$(BIN)/ruff format --check $(CHANGED)
	$(BIN)/ruff check $(CHANGED)
	$(PYTEST) --quiet tests/unit tests/service/test_service.py -k 'unit or test_one_post' $(ARGS)

bench: $(STAMP) ## Race Cynosure against what a user would write instead (over an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.serving $(ARGS)
	$(BIN)/python -m benchmarks.anatomy
	$(BIN)/python -m benchmarks.gateway
	$(BIN)/python -m benchmarks.png
	$(BIN)/python -m benchmarks.latents.encoding
	$(BIN)/python -m benchmarks.latents.sizes
	$(BIN)/python -m benchmarks.plot

chaos: $(STAMP) ## Kill, pause, starve and cut off its parts, and count what was accepted against what came out
	$(BIN)/python -m chaos $(ARGS)

soak: $(STAMP) ## Load it to 80 % for half an hour, and see that memory stays where it is
	$(BIN)/python -m chaos.soak $(ARGS)

check: $(STAMP) ## Check format, lint, types, import rules and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/typos
	$(BIN)/yamllint --strict .

audit: $(STAMP) ## Look the dependencies up in the database of known weaknesses (needs the network; not part of check)
	$(BIN)/python .ci/audit.py

openapi: $(STAMP) ## Write docs/openapi.json, which a test compares with the code
	$(BIN)/python -m app.commands.openapi > docs/openapi.json

settings: $(STAMP) ## Write docs/settings.md, which a test compares with the code
	$(BIN)/python .ci/settings.py > docs/settings.md

format: $(STAMP) ## Format the code and mend what can be mended
	-$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment, caches and outputs (never data/)
	rm -rf $(VENV) out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
