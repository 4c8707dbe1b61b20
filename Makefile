# Sets up .venv and hands over: `python -m experiments TARGET` does the rest, and reads these variables from its environment.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VARIABLES := PYTHON CONSTRAINTS GPU DATA_DIR RESULTS RUNS SEEDS SIZE ROWS FIGURES CURVES EPOCHS DEVICES NODES JOBS LAUNCH SLURM NAME ARGS A B MODEL TEXT
$(foreach variable,$(filter-out $(VARIABLES),$(.VARIABLES)),$(if $(findstring command,$(origin $(variable))),\
	$(error $(variable) is no variable of this Makefile; there are: $(VARIABLES))))
# As they were given: a value is text, never a command.
override PYTHON := $(or $(value PYTHON),python3)
override CONSTRAINTS := $(or $(value CONSTRAINTS),constraints.txt)
override GPU := $(if $(findstring undefined,$(origin GPU)),$(wildcard /dev/nvidia[0-9]*),$(value GPU))
override DATA_DIR := $(value DATA_DIR)
override RESULTS := $(value RESULTS)
override RUNS := $(value RUNS)
override SEEDS := $(value SEEDS)
override SIZE := $(value SIZE)
override ROWS := $(value ROWS)
override FIGURES := $(value FIGURES)
override CURVES := $(value CURVES)
override EPOCHS := $(value EPOCHS)
override DEVICES := $(value DEVICES)
override NODES := $(value NODES)
override JOBS := $(value JOBS)
override LAUNCH := $(value LAUNCH)
override SLURM := $(value SLURM)
override NAME := $(value NAME)
override ARGS := $(value ARGS)
override A := $(value A)
override B := $(value B)
override MODEL := $(value MODEL)
override TEXT := $(value TEXT)
export $(VARIABLES)
export HF_HUB_DISABLE_TELEMETRY ?= 1
##@ Start here
help: ## show this text
demo: ## see overfitting and its cure in minutes, on a laptop, no account needed
test: ## run the fast tests
test-slow: ## run the slow tests
##@ Reproduce
reproduce-ptb: ## Penn Treebank rows [SIZE= ROWS= SEEDS= EPOCHS= DATA_DIR= DEVICES= JOBS= LAUNCH=], then the table
reproduce-sentiment: ## sentiment curves [FIGURES= CURVES= SEEDS= EPOCHS= DATA_DIR= DEVICES= JOBS= LAUNCH=], table, figures
status: ## which runs are done, running, queued or failed, here or under Slurm [SIZE= ROWS= FIGURES= CURVES= SEEDS=]
cost: ## what the missing Penn Treebank runs will take here [SIZE= ROWS= SEEDS= EPOCHS= DATA_DIR=]
ensemble: ## average the probabilities of finished Penn Treebank runs [SIZE= ROWS= SEEDS="0 1"]
ablation: ## what the test owes to approximation, means over masks, temperature [SIZE= ROWS= SEEDS=]
table: ## show the tables and render them into RESULTS.md and README.md
figures: ## draw the curves of all results (PNG and SVG)
grid: ## the runs of configs/sweeps/NAME.yaml [NAME= SEEDS= EPOCHS= DATA_DIR= DEVICES= JOBS=], then what they reached
sweep: ## register it with W&B and train its points by an agent here [NAME= DATA_DIR= ARGS="--count 3"]
predict: ## what a trained model says about a text, and how sure it is [MODEL=runs/.../last.ckpt TEXT=file]
##@ Compare
report: ## write all tables and curves into one HTML page, to be opened from disk
compare: ## what differs between two runs [A=ptb/small/zaremba/seed0 B=...]
sync: ## upload the runs that were recorded offline to W&B [RUNS=]
wandb-table: ## log the tables and curves of all results to W&B
wandb-report: ## create a report and a workspace in W&B [ARGS="--dry_run --entity TEAM"]
##@ Develop
setup: ## create .venv and install
lint: ## ruff and mypy
bench: ## measure speed on this machine's CPU beside torch.nn and others (about ten minutes)
bench-gpu: ## the same on its GPU
bench-scaling: ## measure data-parallel training on one and two processes (about ten minutes)
clean: ## remove runs (checkpoints, logs) and caches; results stay
HANDED_OVER := demo reproduce-ptb reproduce-sentiment status cost ensemble ablation table figures grid sweep predict \
	report compare sync wandb-table wandb-report bench bench-gpu bench-scaling
.PHONY: help test test-slow setup lint clean $(HANDED_OVER)
$(HANDED_OVER) test test-slow setup lint: .venv/ready
$(HANDED_OVER):
	@.venv/bin/python -m experiments $@
help:
	@sed -nE 's/^##@ (.*)/\n\1/p; s/^([a-z-]+): ## (.*)/  \1\t\2/p' Makefile | expand -t 24
	@printf '%s\n' '' 'Variables: SIZE="small medium" ROWS="..." FIGURES="figure2 figure3 figure10" CURVES="..." SEEDS="0 1 2" EPOCHS=n JOBS=n' \
	'           DATA_DIR=data RESULTS=results RUNS=runs DEVICES=n NODES=n LAUNCH=slurm SLURM="options of sbatch"' \
	'           ARGS="further options of main.py" CONSTRAINTS=constraints.txt PYTHON=python3' \
	'' 'To train on your own text or export a model, use main.py: see docs/guide.md'
test:
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile
test-slow:
	.venv/bin/python -m pytest -m slow
clean:
	@results="$${RESULTS:-results}"; [[ $$results == results ]] && runs=runs || runs="$$results/runs"; \
	rm -rf -- "$${RUNS:-$$runs}" .pytest_cache .ruff_cache .mypy_cache .hypothesis
lint:
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
.venv/ready: pyproject.toml $(wildcard $(CONSTRAINTS))
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed, $$PYTHON is older or missing: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "setting up .venv (about a minute, and more where torch is downloaded)"
	"$$PYTHON" -m venv .venv
	.venv/bin/python -m pip install --quiet -c "$$CONSTRAINTS" -e '.[dev]'
	@touch $@
