# make install | demo | test | test-slow | test-nightly | test-stores | lint | docs | lock. PYTHON chooses the interpreter (3.11 to
# 3.13); LOCK, a file of requirements/, installs the versions that it lists instead of the newest.
PYTHON ?= python3
LOCK ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Keep the memory of temporaries in the process: XLA on the CPU is up to three times faster (see jpmhc_jax/core/process.py).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4000000000:glibc.malloc.arena_max=2

.PHONY: install demo test test-slow test-nightly test-stores lint docs lock clean
.DEFAULT_GOAL := install

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]" $(if $(LOCK),--constraint $(LOCK))
	touch $(STAMP)

install: $(STAMP)

demo: install
	$(BIN)/jpmhc train --config=arc_tiny:demo --workdir=runs/demo

# Two workers: most of the time is compilation, which takes one core each.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not nightly"

test-nightly: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m nightly

# What needs the server of an object store, which has an environment of its own: moto holds other packages back.
STORES := tests/core/test_objects.py tests/training/test_store_runs.py tests/sweeps/test_pool.py

test-stores:
	$(PYTHON) -m venv .venv-stores
	.venv-stores/bin/python -m pip install --quiet --editable ".[dev,stores]"
	.venv-stores/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(STORES)
	.venv-stores/bin/python -m pytest -m slow tests/training/test_store_runs.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, build/site/index.html, which opens without a server or a network; warnings are errors.
docs: install
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --quiet

# The versions that an installation from nothing takes today: requirements/dev-3.11.txt for Python 3.11.
lock:
	$(PYTHON) -m venv --clear .lock
	.lock/bin/python -m pip install --quiet --editable ".[dev]"
	.lock/bin/python -m pip freeze --exclude-editable \
	  > requirements/dev-$$(.lock/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt
	rm -rf .lock

clean:
	rm -rf $(VENV) .venv-stores .lock runs sweeps
