# `make figures` and `make test` do all of their own set-up: they rest on the stamp, which makes .venv.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: figures test test-slow lint clean

figures: $(STAMP)          ## the main job: every figure, its data and its picture, into figures/
	$(VENV)/bin/propagate figures

test: $(STAMP) lint        ## style, types, walls, then the tests (a GPU, where there is one, is used too)
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

test-slow: $(STAMP)        ## the long statistical tests alone
	$(VENV)/bin/python -m pytest -n 2 -m slow

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev,text]'
	touch $@

clean:
	rm -rf $(VENV) build dist
