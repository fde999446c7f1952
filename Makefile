# make install | demo | test | test-slow | lint. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Keep the memory of temporaries in the process: XLA on the CPU is up to three times faster (see jpmhc_jax/core/launch.py).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4000000000:glibc.malloc.arena_max=2

.PHONY: install demo test test-slow lint clean
.DEFAULT_GOAL := install

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

install: $(STAMP)

demo: install
	$(BIN)/jpmhc train --config=configs/arc_tiny.py:demo --workdir=runs/demo

# Two workers: most of the time is compilation, which takes one core each.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs sweeps
