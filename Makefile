# Everything happens in .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Compiled modules are kept: without them every test process compiles all of them again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo demo-full test test-slow test-huge lint bench gpu-check docs world clean

help: ## this list
	@echo "t2ifb: improve text-to-image diffusion models with learned feedback"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "On a fresh machine: 'make demo' sets itself up and runs both stages, 'make test' sets itself up and tests."
	@echo "Afterwards: $(BIN)/python -m t2ifb.train --help"

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes about 2 minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,sweeps]'
	@touch $@

install: $(STAMP) ## the package and its development tools in .venv

# A run's folder is a step. With a summary.json it is finished and skipped, with checkpoints/last.ckpt it is resumed,
# otherwise it starts from the beginning. Delete a folder to run its step again.
RUNS := outputs/shapes
DEMO := $(foreach run,reward_mlp refl refl_overoptimised,$(RUNS)/$(run)/demo/summary.json)
FULL := $(foreach run,reward_mlp refl refl_overoptimised dpo,$(RUNS)/$(run)/demo_full/summary.json)
SHIPPED := $(RUNS)/figure8/demo/summary.json
.PRECIOUS: $(DEMO) $(FULL) $(SHIPPED)
step = @printf '\n==> %s\n'
train = $(BIN)/python -m t2ifb.train $(if $(wildcard $(@D)/checkpoints/last.ckpt),resume=$(@D),$(1) hydra.run.dir=$(@D))
small = $(call train,build.size=small $(1))

demo: $(DEMO) $(SHIPPED) ## both stages in the embedded domain, and a page that compares runs (about 10 minutes)
	$(step) "5 of 5: a page that compares the three runs (seconds)"
	$(BIN)/python -m t2ifb.report $(dir $(DEMO)) --output $(RUNS)/report.html

$(RUNS)/reward_mlp/demo/summary.json: | $(STAMP)
	$(step) "1 of 5: draw and rank images for 500 prompts, train a reward model on the rankings (about 2 minutes)"
	$(call small,+experiment=reward_mlp head=interaction)

# Long enough to fail: 24 updates at twice the experiment's learning rate.
$(RUNS)/refl_overoptimised/demo/summary.json: | $(STAMP) $(RUNS)/reward_mlp/demo/summary.json
	$(step) "2 of 5: tune the image model by a reward that does not see the prompt, until it fails (about 2 minutes)"
	$(call small,+experiment=refl_overoptimised optimizer.lr=4e-3 algorithm.epochs=0.08 algorithm.validate_every=8 \
		prompts.test.count=40 algorithm.guidance_scales=[4] algorithm.guidance_prompts=16 \
		algorithm.best_of=1)

# A third of the usual updates at twice the learning rate, and half of the test prompts.
$(RUNS)/refl/demo/summary.json: | $(STAMP) $(RUNS)/refl_overoptimised/demo/summary.json
	$(step) "3 of 5: tune the image model by the learned reward, compare it with the base model (about 4 minutes)"
	$(call small,+experiment=refl reward.source=$(RUNS)/reward_mlp/demo optimizer.lr=2e-3 \
		algorithm.epochs=0.1333 algorithm.validate_every=10 prompts.test.count=200 \
		algorithm.guidance_scales=[4] algorithm.guidance_prompts=32)

# At the scale that people use. The adapters are of a run of `+experiment=dpo` with earlier settings.
$(SHIPPED): | $(STAMP) $(RUNS)/refl/demo/summary.json
	$(step) "4 of 5: compare the shipped adapters with the base model at guidance 4 (about 2 minutes)"
	$(BIN)/python -m t2ifb.evaluate +experiment=figure8 run=t2ifb/shapes/weights/dpo sampling.guidance_scale=4 \
		prompts.most=100 evaluation.images_per_prompt=2 hydra.run.dir=$(@D)

demo-full: $(FULL) ## the same with the full data set and the usual lengths, and Diffusion-DPO (about 50 minutes)
	$(step) "5 of 5: a page that compares the four runs (seconds)"
	$(BIN)/python -m t2ifb.report $(dir $(FULL)) --output $(RUNS)/report_full.html

$(RUNS)/reward_mlp/demo_full/summary.json: | $(STAMP)
	$(step) "1 of 5: draw and rank images for 1,600 prompts, train a reward model on the rankings (about 5 minutes)"
	$(call train,+experiment=reward_mlp head=interaction)

# Long enough to fail: 40 of 60 updates, with fewer validations and test prompts.
$(RUNS)/refl_overoptimised/demo_full/summary.json: | $(STAMP) $(RUNS)/reward_mlp/demo_full/summary.json
	$(step) "2 of 5: tune the image model by a reward that does not see the prompt, until it fails (about 3 minutes)"
	$(call train,+experiment=refl_overoptimised algorithm.epochs=0.1333 algorithm.validate_every=20 prompts.test.count=40 \
		algorithm.guidance_scales=[4] algorithm.guidance_prompts=16 algorithm.best_of=1)

$(RUNS)/refl/demo_full/summary.json: | $(STAMP) $(RUNS)/refl_overoptimised/demo_full/summary.json
	$(step) "3 of 5: tune the image model by the learned reward, compare it with the base model (about 11 minutes)"
	$(call train,+experiment=refl reward.source=$(RUNS)/reward_mlp/demo_full)

$(RUNS)/dpo/demo_full/summary.json: | $(STAMP) $(RUNS)/refl/demo_full/summary.json
	$(step) "4 of 5: tune the image model by Diffusion-DPO at guidance 4 (about half an hour)"
	$(call train,+experiment=dpo reward.source=$(RUNS)/reward_mlp/demo_full)

test: $(STAMP) ## the default tests (about 15 minutes on two cores)
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-slow: $(STAMP) ## the long tests: kills and resumes, whole runs
	$(BIN)/python -m pytest -m slow -n 3 --dist worksteal --durations=10

test-huge: $(STAMP) ## networks at their published size with random weights: minutes each, up to 20 GB
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

world: $(STAMP) ## train the embedded domain's models from nothing (5 to 6 hours)
	$(BIN)/python -m t2ifb.shapes.training

clean: ## remove .venv, caches and builds; outputs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
