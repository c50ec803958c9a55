# Verbs of the project; each sets up what it needs. The logic is in Python (scripts/).
.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := $(if $(NEURALGRAPH_VENV),$(NEURALGRAPH_VENV),.venv)
PY := $(VENV)/bin/python
BOOT := $(if $(PYTHON),$(PYTHON),$(shell command -v python3 || command -v python))
# `make run` needs the SBML libraries; the other verbs also the tools of development.
RUN_ENV := @$(BOOT) scripts/environment.py sbml
DEV_ENV := @$(BOOT) scripts/environment.py sbml dev docs
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q --dist=loadfile -n auto --maxprocesses=2

# What `make run` runs, and what may be added to it: make run ARGS="seed=1 budget=smoke"
RUN ?= metabolism_s
ARGS ?=

.PHONY: help setup run test test-all check lint types format docs bench reproduce wheel-check lock clean

##@ Use
help: ## show this page
	@awk 'BEGIN {FS = ":.*## "; \
	  printf "\n  \033[1mneuralgraph\033[0m — learn the dynamics of biological networks\n"} \
	  /^##@ / {printf "\n  \033[2m%s\033[0m\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "    \033[36mmake %-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf "\n  Options: \033[36mRUN\033[0m=experiment  \033[36mARGS\033[0m=\"key=value …\"  \033[36mEXP\033[0m=experiment  \033[36mPYTHON\033[0m=/path/to/python\n\n"

setup: ## create .venv with the locked versions (a no-op when up to date)
	$(DEV_ENV)

run: ## train the first experiment, metabolism_s, and write its report
	$(RUN_ENV)
	@$(PY) -m neuralgraph.train +experiment=$(RUN) $(ARGS)

reproduce: ## re-run a claimed experiment and compare: make reproduce EXP=metabolism_s
	$(RUN_ENV)
	@test -n "$(EXP)" || { echo "name an experiment: make reproduce EXP=$$(ls experiments | head -1)"; exit 2; }
	@$(PY) scripts/reproduce.py $(EXP)

bench: ## training speed beside a plain per-frame loop
	$(RUN_ENV)
	@$(PY) scripts/bench_training.py $(ARGS)

##@ Develop
test: ## the tests that take seconds (two workers)
	$(DEV_ENV)
	@$(PYTEST) -m "not long" $(ARGS)

test-all: ## every test, with the long validations
	$(DEV_ENV)
	@$(PYTEST) $(ARGS)

check: lint types test ## lint + types + layers + tests

lint: ## ruff, format and the layer contracts
	$(DEV_ENV)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@PYTHONPATH=. $(VENV)/bin/lint-imports

types: ## pyright: basic everywhere, strict in core, numerics, training
	$(DEV_ENV)
	@$(VENV)/bin/pyright

format: ## sort imports, fix what ruff can fix, format
	$(DEV_ENV)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs: ## build docs/_build/html; a warning is an error
	$(DEV_ENV)
	@$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel-check: ## build the wheel and train from it in an empty folder elsewhere
	$(DEV_ENV)
	@$(PY) scripts/wheel_check.py $(ARGS)

lock: ## write constraints.txt from .venv (after a change of versions)
	$(DEV_ENV)
	@$(PY) scripts/lock.py

clean: ## remove what can be built again (never runs/ nor .venv)
	@rm -rf build dist docs/_build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find neuralgraph tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
