# `make test` and `make reproduce` need nothing but Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup test reproduce docs lint clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jdiv needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	touch $@

test: setup
	$(BIN)/python -m pytest -n auto --dist=loadgroup

reproduce: setup
	$(BIN)/python -m experiments.reproduce

# Without warnings and without a network, into docs/_build/html.
docs: setup
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .cache runs docs/_build
