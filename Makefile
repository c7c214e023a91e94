# `make demo` and `make test` need Python 3.11 or later and make; they set up $(VENV) themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-slow lint format bench notebooks clean

help:
	@echo "make demo       fit a real curve with every engine; writes out/demo.png and out/demo.nc"
	@echo "make test       the tests, in minutes"
	@echo "make test-slow  the tests that take longer"
	@echo "make lint       style, format and types"
	@echo "make format     rewrite the sources in the house format"
	@echo "make bench      measure the figures that README.md and docs/measured.md state"
	@echo "make notebooks  run the notebooks, and keep what they show"
	@echo "make clean      remove the environment, caches and outputs"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Hybrid needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/hybrid demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@mkdir -p out
	$(BIN)/python benchmarks/nuts.py --prior m4 --first
	$(BIN)/python benchmarks/nuts.py --prior bnsl
	$(BIN)/python benchmarks/least_squares.py
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/prior_check.py --plot out/prior_check.png
	$(BIN)/python benchmarks/pfn.py
	for prior in m4 bnsl; do $(BIN)/python benchmarks/agreement.py --prior $$prior || exit 1; done
	for prior in m4 bnsl nsl nslpfn lcpfn; do $(BIN)/python benchmarks/calibration.py --prior $$prior || exit 1; done

notebooks: $(STAMP)
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
