# `make search`, `make deploy` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= configs/mobilenetv2.py
ARGS ?=
# Each half of the tests stays on one worker until the other has none left, so
# that few fixtures of a file are made by both.
WORKERS := -n 2 --dist worksteal
# Large pages for what malloc gives: steps on a CPU spend a fifth of their time
# on page faults without them. Only glibc reads this.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: search deploy test test-slow lint bench setup

search: .venv/ready
	$(BIN)/python launch/search.py --config=$(CONFIG) $(ARGS)

deploy: .venv/ready
	$(BIN)/python launch/deploy.py --config=$(CONFIG) $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest -q $(WORKERS) -m "not slow"

test-slow: .venv/ready
	$(BIN)/python -m pytest -q $(WORKERS) -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: .venv/bench
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/mixture.py
	$(BIN)/python benchmarks/wall.py
	$(BIN)/python benchmarks/policies.py
	$(BIN)/python benchmarks/ascents.py
	$(BIN)/python benchmarks/allocation.py
	$(BIN)/python benchmarks/agreement.py
	$(BIN)/python benchmarks/zero_points.py

setup: .venv/ready

# What benchmarks compare with, and nothing else needs.
.venv/bench: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  qwix==0.1.8
	@touch $@

# What is imported is compiled then: all that is installed takes half a minute.
.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-compile -r requirements.txt -e .
	@touch $@
