# `make figures` and `make test` do all of their own set-up: they rest on the stamp, which makes .venv.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
WEIGHTS := build/weights
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
unexport PYTHONDONTWRITEBYTECODE  # some containers set it: every process would compile NumPy, SymPy and torch anew
MAKEFLAGS += --jobs=2

.PHONY: figures test test-slow lint types references docs notebooks lab weights measure-text clean

figures: $(STAMP)          ## the main job: every figure, its data and its picture, into build/figures, beside the committed ones
	$(VENV)/bin/propagate figures

test: lint types references ## style, types, walls, references of the documentation, tests, notebooks run small (a GPU, where there is one, is used too)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(STAMP)        ## the long statistical tests alone
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -m slow

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

types: $(STAMP)
	$(VENV)/bin/mypy

references: $(STAMP)       ## the documentation read and resolved, nothing worked out or written: a warning or a broken reference is an error
	$(VENV)/bin/python -m sphinx -q -t outline -b dummy -E -W --keep-going -n -c docs . build/references

docs: $(STAMP)             ## the documentation, into build/docs: a warning or a broken link is an error
	$(VENV)/bin/python -m sphinx -q -E -W --keep-going -n -c docs . build/docs
	$(VENV)/bin/python -m docs.check_links build/docs

notebooks: $(STAMP)        ## every notebook in full: its text, executed, with its outputs into notebooks/*.ipynb
	$(VENV)/bin/python notebooks/execute.py

lab: $(STAMP)              ## the notebooks in JupyterLab, on this machine alone
	$(VENV)/bin/python -m pip install --quiet --editable '.[lab]'
	$(VENV)/bin/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir=. notebooks/1_ten_minutes.ipynb

weights: $(WEIGHTS)/.installed ## four trained models and an English text to measure: data only, hash-checked

measure-text: $(STAMP) weights ## the second moments of that text as the model embeds it, into figures/measured
	$(VENV)/bin/python figures/measure_text.py

$(WEIGHTS)/.installed: | $(STAMP)
	$(VENV)/bin/propagate weights --to $(WEIGHTS)
	touch $@

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable '.[dev,docs,notebooks,text,torch]'
	touch $@

clean:
	rm -rf $(VENV) build dist
