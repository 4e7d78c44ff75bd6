# Every target makes .venv on first use. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# tests run in so many processes of one thread each, of up to 2 GB
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.PHONY: help install demo test test-all check format bench docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP) ## make .venv and install head2toe with everything a contributor needs

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[all,dev]"
	touch $@

demo: $(STAMP) ## fit Linear, All-l2 and Head2Toe on scikit-learn's digits with the bundled backbone
	$(BIN)/head2toe demo --out demo-out

test: $(STAMP) ## the test suite (JOBS=N: in N processes)
	$(PYTEST)

test-all: $(STAMP) ## the test suite with the slow contract tests (every family)
	$(PYTEST) -m "slow or not slow"

check: $(STAMP) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP) ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## the benchmarks that need no data: solvers, store (long)
	$(BIN)/python benchmarks/group_lasso.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/ridge.py

docs: $(STAMP) ## run every example of README and docs
	$(BIN)/python -m pytest tests/test_docs.py

clean: ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis demo-out
