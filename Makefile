# `make demo` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: demo test lint unit slow clean

# The CPU build of torch is installed first and by exact version: a bare "torch" may pull gigabytes of
# GPU libraries. On Linux the exact version falls back to whatever build the index offers.
# From the top of the tree mypy would find the source folder instead of the installed package, so it runs elsewhere.
# The editable install is strict so that type checkers resolve graphprune.passes and graphprune.cli,
# and is repeated when a source file is added or removed, since it links single files.
LISTING := $(shell find passes graphprune cli -name '*.py' | sort | cksum | cut -d' ' -f1)

$(STAMP)-$(LISTING): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "setuptools>=77" wheel
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]" --config-settings editable_mode=strict
	rm -f $(STAMP)-*
	touch $@

demo: $(STAMP)-$(LISTING)
	$(BIN)/graphprune demo --output demo-out --force

test: lint unit

lint: $(STAMP)-$(LISTING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && bin/mypy --config-file $(CURDIR)/pyproject.toml -p graphprune

# Two processes of one thread each: two threads of one network wait for each other as soon as anything else runs.
unit: $(STAMP)-$(LISTING)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

slow: $(STAMP)-$(LISTING)
	$(BIN)/python -m pytest -q -m slow

clean:
	rm -rf $(VENV) build demo-out .pytest_cache .mypy_cache .ruff_cache
