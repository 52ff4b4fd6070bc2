# make run     train on real digits with each normalization and write a report
# make test    the whole suite, on every backend, one process each
# make quick   the fast part of it, on one backend
# make check   lint and types
# Only Python 3.11 or newer and make must be there: everything else goes into .venv.

PYTHON ?= python3
BACKEND ?= jax
ARGS ?=
# A folder for each set of settings: a folder of other settings is refused.
OUT ?= runs/$(BACKEND)$(if $(ARGS),-$(firstword $(shell echo '$(ARGS)' | cksum)))
BACKENDS ?= jax tensorflow torch

BIN := .venv/bin
# TensorFlow's CPU package is the small one; PyTorch is pinned in constraints.txt to a version
# whose plain wheel is enough.
PACKAGE_jax := jax
PACKAGE_tensorflow := tensorflow-cpu
PACKAGE_torch := torch
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test quick check clean
.DELETE_ON_ERROR:

run: .venv/.run-$(BACKEND)
	$(BIN)/evenkeel compare --backend $(BACKEND) --out $(OUT) $(ARGS)

test: .venv/.test
	$(BIN)/python tests/run.py $(BACKENDS) -- $(ARGS)

quick: .venv/.test
	$(BIN)/python tests/run.py $(BACKEND) -- -m "not slow" $(ARGS)

check: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist

.venv/.made: | constraints.txt
	$(PYTHON) -m venv .venv
	touch $@

.venv/.run-%: .venv/.made pyproject.toml constraints.txt
	$(PIP) $(PACKAGE_$*) -e ".[compare]"
	touch $@

.venv/.test: .venv/.made pyproject.toml constraints.txt
	$(PIP) $(foreach backend,$(BACKENDS),$(PACKAGE_$(backend))) -e ".[compare]" pytest hypothesis ruff mypy
	touch $@
