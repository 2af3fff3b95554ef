# Every target sets up .venv from nothing. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help setup search test faults device soak evidence lowest check format lint types imports wheel clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(READY) ## make .venv with the tested versions (once; torch's CUDA build takes 6 GB)

$(READY): pyproject.toml constraints.txt
	@test -n "$(BASE_PYTHON)" || { echo "error: no python3 found. Install Python 3.11, or name one: make BASE_PYTHON=..." >&2; exit 2; }
	@"$(BASE_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$("$(BASE_PYTHON)" --version) is too old: 3.11 or newer is needed. Name one: make BASE_PYTHON=..." >&2; exit 2; }
	@echo "Setting up $(VENV), once; this takes some minutes ..."
	@"$(BASE_PYTHON)" -m venv $(VENV)
	@$(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test,check,tensorboard,mlflow,wandb]'
	@touch $@

search: $(READY) ## the main job in small: freeze_grid on synthetic X-rays, with its table and figure
	$(PYTHON) -m tune_lung.search --space freeze_grid --image-size 64 --limit 560 --max-epochs 4 \
		--set padding=same --set batch_size=12 --set learning_rate=0.002

test: $(READY) ## run the tests: the searches in one process, all else in another
	$(PYTHON) -m pytest -n 2 --dist loadgroup -m "not faults and not device"

faults: $(READY) ## kill, damage and fill what there is, and see that nothing is lost
	$(PYTHON) -m pytest -n 2 --dist load -m faults tests/faults

device: $(READY) ## the training layer on this machine's GPU; `make test` rehearses it in small on the CPU
	$(PYTHON) -m pytest -m device tests/device

soak: $(READY) ## N rounds of random kills and damage against a small search, 50 unless said: make soak N=10
	$(PYTHON) -m tests.faults.soak $(or $(N),50)

lowest: $(READY) ## the tests on the lowest versions that pyproject.toml allows; LOWEST_TORCH=tested leaves torch as it is
	.ci/lowest $(PYTHON) $(VENV)-lowest $(or $(TESTS),-n 2 --dist loadgroup -m "not faults and not device")

evidence: $(READY) ## show again what an issue promised of the whole tree: make evidence ISSUE=16
	@$(PYTHON) -m tests.evidence $(ISSUE)

check: format lint types imports wheel ## format, lint, types, imports, and the wheel in a fresh environment

format: $(READY)
	$(PYTHON) -m ruff format --check .

lint: $(READY)
	$(PYTHON) -m ruff check .

types: $(READY)
	$(PYTHON) -m mypy
	@# Again as on macOS: what only Linux has is guarded. Here it is the one check of that.
	$(PYTHON) -m mypy --platform darwin --cache-dir .mypy_cache/darwin

imports: $(READY)
	$(VENV)/bin/lint-imports --no-logo

wheel: $(READY)
	.ci/wheel $(PYTHON)

clean: ## remove .venv and everything built
	rm -rf .venv .venv-lowest build dist tune_lung.egg-info .evidence_cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
