# Everything runs in .venv, made here on first use. `make test PYTHON=python3.12` takes another Python.
PYTHON ?= python3
# Installed first and by exact version: a range would let pip fetch gigabytes of CUDA on a machine without a GPU.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
ARGS ?=
DEMO ?= demo-output

.PHONY: help demo test quick faults fuzz lint bench bench-report clean
.DEFAULT_GOAL := help

help: ## say what there is to make
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/python: # an environment with torch
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/demo: $(VENV)/python constraints.txt setup.cfg
	$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/test: $(VENV)/python constraints.txt setup.cfg
	$(PIP) -e ".[test,lint]"
	@touch $@ $(VENV)/demo

demo: $(VENV)/demo ## extract keypoints from real photographs with two workers, show the result
	$(BIN)/kpstore demo $(DEMO)

# Bytecode is kept even where the surroundings say otherwise: tests start some two hundred processes.
# A file stays in one process: what its tests share, a store or a trained model, is made once.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/test ## run the tests (ARGS="-k name" for some of them)
	$(PYTEST) $(ARGS)

quick: $(VENV)/test ## run the part of the tests that takes less than a minute
	$(PYTEST) --quick $(ARGS)

faults: $(VENV)/test ## kill, corrupt and mislead for hours: nothing may be lost or wrong (docs/reliability.md)
	$(BIN)/python -m benchmarks.faults $(ARGS)

fuzz: $(VENV)/test ## read mutated files for hours (ARGS="pickle pose --minutes 20")
	$(PIP) -e ".[fuzz]"
	$(BIN)/python -m benchmarks.fuzz $(ARGS)

lint: $(VENV)/test ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/test ## measure speed and size, write results (hours; ARGS="shuffle render" for some)
	$(PIP) -e ".[bench]"
	$(BIN)/python -m benchmarks $(ARGS)

bench-report: $(VENV)/test ## put tables of the committed results into docs/benchmarks.md
	$(BIN)/python -m benchmarks.report

clean: ## remove what this file made
	rm -rf $(VENV) $(DEMO) build *.egg-info
