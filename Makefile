PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Ray starts some processes for every command, and each would compile its imports anew, which takes
# longer than to import them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-slow check bench clean

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

run: $(INSTALLED) ## Install, and run the demonstration: images in, captions and scores out
	$(BIN)/captioner demo

test: check ## Install, check, and run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED) ## Run the tests that take minutes: clusters of their own, storage that is full or away
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

check: $(INSTALLED) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## Measure speed on this machine
	$(BIN)/captioner bench

clean: ## Remove the virtual environment and the demonstration's run
	rm -rf $(VENV) runs/demo

# constraints.txt is the set of versions that the tests ran with. pip compiles nothing, since most
# modules of the packages are never imported; importing compiles those that are, also for a user who
# has PYTHONDONTWRITEBYTECODE set.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]' --constraint constraints.txt
	$(BIN)/python -c 'import ray.data, ray.train.torch, open_clip, matplotlib.pyplot, jobs.cli'
	touch $@
