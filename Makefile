# Everything happens in .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-huge lint bench gpu-check docs world clean

help: ## this list
	@echo "t2ifb: improve text-to-image diffusion models with learned feedback"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "On a fresh machine: 'make demo' sets itself up and runs both stages, 'make test' sets itself up and tests."
	@echo "Afterwards: $(BIN)/python -m t2ifb.train --help"

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,sweeps]'
	@touch $@

install: $(STAMP) ## the package and its development tools in .venv

# The demo's runs lie in folders of their own: one with a summary.json is finished and skipped, one with checkpoints is
# resumed. Delete such a folder to run it again.
RUNS := outputs/shapes
DEMO := $(RUNS)/reward_mlp/demo/summary.json $(RUNS)/refl_overoptimised/demo/summary.json $(RUNS)/refl/demo/summary.json
.PRECIOUS: $(DEMO)
demo_train = $(BIN)/python -m t2ifb.train $(if $(wildcard $(@D)/checkpoints/last.ckpt),resume=$(@D),$(1) hydra.run.dir=$(@D))

demo: $(DEMO) ## both stages in the embedded domain, a run that over-optimises, a page that compares them (about 20 minutes)
	$(BIN)/python -m t2ifb.report $(dir $(DEMO)) --output $(RUNS)/report.html

$(RUNS)/reward_mlp/demo/summary.json: | $(STAMP)
	$(call demo_train,+experiment=reward_mlp)

# Long enough to fail: 40 of 60 updates, with fewer validations and test prompts.
$(RUNS)/refl_overoptimised/demo/summary.json: | $(STAMP) $(RUNS)/reward_mlp/demo/summary.json
	$(call demo_train,+experiment=refl_overoptimised algorithm.epochs=0.1333 algorithm.validate_every=20 prompts.test.count=40)

$(RUNS)/refl/demo/summary.json: | $(STAMP) $(RUNS)/refl_overoptimised/demo/summary.json
	$(call demo_train,+experiment=refl reward.source=$(RUNS)/reward_mlp/demo)

test: $(STAMP) ## the default tests (under 5 minutes)
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-slow: $(STAMP) ## the long tests: kills and resumes, whole runs
	$(BIN)/python -m pytest -m slow -n 3 --dist worksteal --durations=10

test-huge: $(STAMP) ## networks at their published size with random weights: minutes each, up to 12 GB
	$(BIN)/python -m pytest -m huge --durations=10

lint: $(STAMP) ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP) ## speed, as ratios measured side by side
	$(BIN)/python -m tests.bench

gpu-check: $(STAMP) ## fine-tuning on a GPU with random weights, against the plan and fp32 (about 5 minutes)
	$(BIN)/python -m tests.gpu_check

$(VENV)/.docs: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs ## the documentation in site/, built strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

world: $(STAMP) ## train the embedded domain's models from nothing (about 80 minutes)
	$(BIN)/python -m t2ifb.shapes.training

clean: ## remove .venv, caches and builds; outputs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
