# `make quickstart` and `make test` need nothing but Python 3.10+ and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test torture pythons fidelity docs lint types clean

quickstart: $(VENV)/.installed
	$(BIN)/python examples/quickstart.py

test: lint types $(VENV)/.trt-rtx
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal --durations=10

# All of what `test` tries a part of: an exception at every line, 500 kills, thousands of damaged files.
torture: $(VENV)/.installed
	EVERLEARN_TORTURE=1 EVERLEARN_EXAMPLES=10000 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(BIN)/python -m pytest --numprocesses=auto \
		tests/runtime/state tests/runtime/test_fuzz.py tests/runtime/test_migration.py tests/export/test_adapt.py

# The device's tests, on every Python that it promises and that is here: make pythons PYTHONS="python3.10 ..."
PYTHONS ?= $(foreach version,3.10 3.11 3.12 3.13,$(shell command -v python$(version)))
pythons:
	@test -n "$(PYTHONS)" || { echo "no python3.10 to python3.13 on the PATH; give PYTHONS=..."; exit 1; }
	@set -e; for python in $(PYTHONS); do \
		$$python -m venv build/device-$$(basename $$python); \
		build/device-$$(basename $$python)/bin/python -m pip install --quiet \
			-e ".[cpu,images]" cryptography dp-accounting onnx pytest pytest-xdist hypothesis scikit-learn; \
		OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 build/device-$$(basename $$python)/bin/python -m pytest \
			--quiet --numprocesses=auto --confcutdir=tests/runtime tests/runtime; \
	done

# How near released code is met: the tables in docs/fidelity.md, measured anew.
fidelity: $(VENV)/.installed
	$(BIN)/python -m pytest -q tests/fidelity --write docs/fidelity.md

# The site, into site/; a broken link or name fails.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e ".[train,cpu,dev]"
	touch $@

# TensorRT's parser and builder, which need no GPU; without the wheel the tests that use them are skipped.
$(VENV)/.trt-rtx: $(VENV)/.installed
ifeq ($(shell uname -sm),Linux x86_64)
	$(BIN)/python -m pip install --quiet -e ".[trt-rtx]" || echo "no TensorRT-RTX here; its tests are skipped"
endif
	touch $@

clean:
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache
