# Everything runs from a .venv in the checkout, made on first use and brought up to date when pyproject.toml changes.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
TORCH ?= torch==2.13.0# named by itself, before the rest, so that one known build is used
MODEL ?= smollm2
SEED ?= 0
OUT ?= quickstart
JOBS ?= 2

BIN := .venv/bin
# Byte-compiling at install would take a minute; Python does it on the first import, for what is used, if it may.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/pip install -qq --no-compile --disable-pip-version-check
READY := .venv/.ready
READY_DEV := .venv/.ready-dev

.DELETE_ON_ERROR:
.PHONY: help quickstart test lint format docs wheel clean baselines

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(READY)  ## MovieLens-100K from raw logs to recommendations (MODEL=smollm2|small SEED=0 OUT=quickstart)
	$(BIN)/python recipes/quickstart.py --model $(MODEL) --seed $(SEED) --out $(OUT)

test: $(READY_DEV)  ## run all tests in two processes (ARGS="-m 'not slow'" for the quick ones, JOBS=0 for one process)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: $(READY_DEV)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY_DEV)  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY_DEV)  ## the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(READY_DEV)  ## build dist/*.whl
	$(BIN)/python -m build --wheel

baselines: .venv-baselines/.ready  ## an environment of its own for RecTools' SASRec, HSTU, EASE (benchmarks/baselines)

clean:  ## remove build output and tool caches; .venv and results stay
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv

.venv-baselines/.ready: benchmarks/baselines/requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up .venv-baselines; this takes a few minutes."
	$(PYTHON) -m venv .venv-baselines
	.venv-baselines/bin/pip install -qq --disable-pip-version-check "$(TORCH)"
	.venv-baselines/bin/pip install -qq --disable-pip-version-check --requirement $<
	@touch $@

$(READY): pyproject.toml | .venv/bin/python
	@echo "Setting up .venv; this takes a minute or two."
	$(INSTALL) "$(TORCH)"
	$(INSTALL) --editable .
	@touch $@

$(READY_DEV): $(READY)
	$(INSTALL) --editable ".[dev,quant]"
	@touch $@
