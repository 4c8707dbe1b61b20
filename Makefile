# Every target sets up what it needs. Runs are targets whose stamps are their result files.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.SECONDEXPANSION:
, := ,

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
DATA_DIR ?= data
RESULTS ?= results
RUNS ?= $(if $(filter results,$(RESULTS)),runs,$(RESULTS)/runs)
SEEDS ?= 0
DEVICES ?= 1
NODES ?= 1
LAUNCH ?= here
GPU ?= $(wildcard /dev/nvidia[0-9]*)
SIZE ?= $(if $(GPU),medium,small v1)
export HF_HUB_DISABLE_TELEMETRY ?= 1

names = $(filter-out common,$(basename $(notdir $(wildcard configs/$(1)/*.yaml))))
SIZES := $(patsubst configs/ptb/%/common.yaml,%,$(wildcard configs/ptb/*/common.yaml))
ALL_FIGURES := $(patsubst configs/sentiment/%/common.yaml,%,$(wildcard configs/sentiment/*/common.yaml))
FIGURES ?= $(if $(filter all,$(CURVES)),$(ALL_FIGURES),figure2 figure3 figure10)
TABLE_1 := non_regularized moon moon_embedding zaremba variational_tied variational_untied
BEYOND := vd vd_al vd_re vd_real non_regularized_wt non_regularized_pr non_regularized_wt_pr zaremba_wt bd_wd bd_wt
ROWS ?= $(filter $(foreach size,$(SIZE),$(call names,ptb/$(size))),$(TABLE_1) $(BEYOND))
chosen = $(filter-out all,$(CURVES))
curves = $(filter $(or $(chosen),%),$(call names,sentiment/$(1)))

VARIABLES := PYTHON CONSTRAINTS GPU DATA_DIR RESULTS RUNS SEEDS SIZE ROWS FIGURES CURVES EPOCHS DEVICES NODES LAUNCH SLURM NAME ARGS A B MODEL TEXT
$(foreach variable,$(filter-out $(VARIABLES),$(.VARIABLES)),\
	$(if $(findstring command,$(origin $(variable))),$(error $(variable) is no variable of this Makefile; there are: $(VARIABLES))))
number = $(if $(shell printf %s '$(2)' | tr -d '0-9 '),$(error $(1)="$(2)" is not a number))
$(call number,EPOCHS,$(EPOCHS))$(call number,SEEDS,$(SEEDS))$(call number,NODES,$(NODES))$(call number,DEVICES,$(DEVICES))
$(foreach variable,EPOCHS NODES DEVICES,$(if $(word 2,$($(variable))),$(error $(variable)="$($(variable))": one number is needed)))
$(if $(strip $(SEEDS)),,$(error SEEDS="": at least one is needed))
$(if $(filter 0,$(EPOCHS)),$(error EPOCHS="0": at least one epoch is needed))
$(foreach variable,DEVICES NODES,$(if $(filter 0,$($(variable))),$(error $(variable)="0": at least one is needed)))
# $(call check,VARIABLE,value,what is known,what more to say)
check = $(if $(filter-out $(3),$(2)),$(error $(1)="$(strip $(filter-out $(3),$(2)))" is unknown; choose from: $(strip $(3))$(4)))
$(call check,LAUNCH,$(LAUNCH),here slurm)
ifeq ($(LAUNCH),slurm)
$(if $(filter demo grid,$(MAKECMDGOALS)),$(error LAUNCH="slurm" submits reproduce-ptb and reproduce-sentiment; leave it out for $(MAKECMDGOALS)))
else
$(if $(filter-out 1,$(NODES)),$(error NODES="$(NODES)": several machines need LAUNCH=slurm, or torchrun as in cluster/README.md))
endif
ifneq ($(filter reproduce-ptb cost ensemble ablation status,$(MAKECMDGOALS)),)
$(call check,SIZE,$(SIZE),$(SIZES))
$(if $(filter ensemble,$(MAKECMDGOALS)),$(if $(word 2,$(SEEDS)),,$(error SEEDS="$(SEEDS)": an ensemble needs several)))
$(call check,ROWS,$(ROWS),$(sort $(foreach size,$(SIZE),$(call names,ptb/$(size)))))
endif
ifneq ($(filter reproduce-sentiment status,$(MAKECMDGOALS)),)
$(call check,FIGURES,$(FIGURES),$(ALL_FIGURES))
$(call check,CURVES,$(CURVES),all $(sort $(foreach figure,$(FIGURES),$(call names,sentiment/$(figure)))),; or name another FIGURES="$(FIGURES)"$(,) of: $(ALL_FIGURES))
endif
ifneq ($(filter compare,$(MAKECMDGOALS)),)
$(foreach run,A B,$(if $($(run)),,$(error $(run)="": name two runs, A=EXPERIMENT/GROUP/ROW/seedK B=..., or their result files)))
endif

ifneq ($(filter predict,$(MAKECMDGOALS)),)
$(if $(MODEL),,$(error MODEL="": name a checkpoint, MODEL=runs/.../checkpoints/last.ckpt))
endif

# $(call results,EXPERIMENT/GROUP,rows,seeds): result files
results = $(foreach row,$(2),$(foreach seed,$(3),$(RESULTS)/$(1)/$(row)/seed$(seed).json))
DEMO_RUNS := $(call results,demo/language_model,$(call names,demo/language_model),0) $(call results,demo/sentiment,$(call names,demo/sentiment),0)
PTB_RUNS := $(foreach size,$(SIZE),$(call results,ptb/$(size),$(filter $(call names,ptb/$(size)),$(ROWS)),$(SEEDS)))
PTB_ROWS := $(foreach size,$(SIZE),$(foreach row,$(filter $(call names,ptb/$(size)),$(ROWS)),ptb/$(size)/$(row)))
SENTIMENT_RUNS := $(foreach figure,$(FIGURES),$(call results,sentiment/$(figure),$(call curves,$(figure)),$(SEEDS)))

# Of finished runs, beside their results
ABLATIONS := $(foreach file,$(wildcard $(PTB_RUNS)),$(dir $(file))ablation_$(notdir $(file)))
$(if $(filter ablation,$(MAKECMDGOALS)),$(if $(ABLATIONS),,$(error SIZE="$(SIZE)" ROWS="$(ROWS)" SEEDS="$(SEEDS)": none of these runs is finished$(,) make reproduce-ptb runs them)))

# Ensembles and ablations read weights, or predictions by them; results that came with the repository have none.
READ := $(if $(filter ensemble,$(MAKECMDGOALS)),$(foreach row,$(PTB_ROWS),$(SEEDS:%=$(row)/seed%))) \
	$(if $(filter ablation,$(MAKECMDGOALS)),$(patsubst $(RESULTS)/%,%,$(subst /ablation_,/,$(basename $(filter-out $(wildcard $(ABLATIONS)),$(ABLATIONS))))))
UNREADABLE := $(strip $(foreach run,$(READ),$(if $(wildcard $(RUNS)/$(run)/checkpoints/last.ckpt $(if $(filter ensemble,$(MAKECMDGOALS)),$(RUNS)/$(run)/predictions.pt)),,$(run))))
$(if $(UNREADABLE),$(error RUNS="$(RUNS)" has no checkpoint of $(UNREADABLE); train first: make reproduce-ptb$(,) with RESULTS=mine there and here if their results came without checkpoints))

# A result with fewer epochs than are now asked for is continued from its last checkpoint.
unfinished = $(if $(wildcard $(1)),$(shell awk -F '[:,]' '/^  "epochs"/ {done = $$2} /^  "planned_epochs"/ {planned = $$2} \
	END {wanted = "$(EPOCHS)" == "" || "$(EPOCHS)" + 0 > planned + 0 ? planned : "$(EPOCHS)"; if (done + 0 < wanted + 0) print "FORCE"}' $(1)))
# How far it got, e.g. 100 of 250
length = $(shell awk -F '[:,]' '/^  "epochs"/ {done = $$2} /^  "planned_epochs"/ {planned = $$2} END {print done + 0, "of", planned + 0}' $(1))
missing = $(foreach file,$(1),$(if $(wildcard $(file)),$(if $(call unfinished,$(file)),$(file)),$(file)))
ifneq ($(filter demo reproduce-%,$(MAKECMDGOALS)),)
$(foreach file,$(wildcard $(if $(filter demo,$(MAKECMDGOALS)),$(DEMO_RUNS)) $(if $(filter reproduce-ptb,$(MAKECMDGOALS)),$(PTB_RUNS)) $(if $(filter reproduce-sentiment,$(MAKECMDGOALS)),$(SENTIMENT_RUNS))),\
	$(info $(file) $(if $(call unfinished,$(file)),has $(call length,$(file)) epochs: it goes on where RUNS=$(RUNS) has its checkpoint$(,) else it is trained anew; EPOCHS=$(firstword $(call length,$(file))) leaves it,is there and not run again; other RESULTS= and RUNS= folders would run it anew)))
endif

ifneq ($(filter grid sweep,$(MAKECMDGOALS)),)
$(call check,NAME,$(or $(NAME),(nothing)),$(basename $(notdir $(wildcard configs/sweeps/*.yaml))))
endif
ifneq ($(filter cost reproduce-ptb,$(MAKECMDGOALS)),)
TO_DO := $(call missing,$(PTB_RUNS))
$(if $(GPU),,$(eval $(TO_DO): | cost))
endif

##@ Start here
help: ## show this text
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-22s %s\n", $$1, $$2}' Makefile
	@printf '\nVariables: SIZE="%s" ROWS="%s" FIGURES="figure2 figure3 figure10" CURVES="..." SEEDS="0 1 2" EPOCHS=n DATA_DIR=%s\n' '$(SIZE)' '$(ROWS)' '$(DATA_DIR)'
	@printf '           DEVICES=n NODES=n LAUNCH=slurm SLURM="options of sbatch"\n'
	@printf '           RESULTS=%s RUNS=%s CONSTRAINTS=%s ARGS="further options of main.py"\n' '$(RESULTS)' '$(RUNS)' '$(CONSTRAINTS)'
	@printf '\nTo train on your own texts, and to save and share a model, is for main.py: see docs/guide.md\n'

demo: .venv/ready ## see overfitting and its cure in minutes, on a laptop, no account needed
	@OMP_NUM_THREADS=1 WANDB_SILENT=true $(MAKE) -s --no-print-directory -j2 $(DEMO_RUNS)
	@.venv/bin/python -m reproduction.table --results $(RESULTS) --experiment demo
	@.venv/bin/python -m reproduction.figures --results $(RESULTS) --experiment demo
	@echo "Open $(RESULTS)/figures/demo.png: training error dashed, held-out error solid."

test: .venv/ready ## run the fast tests
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: .venv/ready ## run the slow tests
	.venv/bin/python -m pytest -m slow

##@ Reproduce
ifeq ($(LAUNCH),slurm)
reproduce-ptb: | .venv/ready
	@$(call submit,$(PTB_RUNS))

reproduce-sentiment: | .venv/ready
	@$(call submit,$(SENTIMENT_RUNS))

else
reproduce-ptb: $(PTB_RUNS) ## Penn Treebank rows [SIZE= ROWS= SEEDS= EPOCHS= DATA_DIR= DEVICES= LAUNCH=], then the table
	@.venv/bin/python -m reproduction.table --results $(RESULTS) --experiment ptb --size $(SIZE) --wandb $(RUNS)

reproduce-sentiment: $(RESULTS)/sentiment/baselines.json $(SENTIMENT_RUNS) ## sentiment curves [FIGURES= CURVES= SEEDS= EPOCHS= DATA_DIR= DEVICES= LAUNCH=], then table and figures
	@.venv/bin/python -m reproduction.table --results $(RESULTS) --experiment sentiment --wandb $(RUNS)
	@.venv/bin/python -m reproduction.figures --results $(RESULTS) --experiment sentiment
endif

# Of what is asked for on the command line; of all that is there, where nothing is.
asked = $(findstring command,$(foreach variable,$(1),$(origin $(variable))))
status: | .venv/ready ## which runs are done, running, queued or failed, here or under Slurm [SIZE= ROWS= FIGURES= CURVES= SEEDS=]
	@.venv/bin/python -m experiments.status --results $(RESULTS) --runs $(RUNS) $(patsubst $(RESULTS)/%.json,%,\
		$(if $(or $(call asked,SIZE ROWS),$(if $(call asked,FIGURES CURVES),,$(call asked,SEEDS))),$(PTB_RUNS)) \
		$(if $(or $(call asked,FIGURES CURVES),$(if $(call asked,SIZE ROWS),,$(call asked,SEEDS))),$(SENTIMENT_RUNS)))

cost: | .venv/ready ## what the Penn Treebank runs that are missing will take here [SIZE= ROWS= SEEDS= EPOCHS= DATA_DIR=]
	@$(if $(TO_DO),.venv/bin/python -m benchmarks.cost,echo "All runs are there: nothing to do.") $(call commands,$(TO_DO))

ensemble: $(PTB_ROWS:%=$(RESULTS)/%/ensemble.json) ## average the probabilities of finished Penn Treebank runs [SIZE= ROWS= SEEDS="0 1"]

ablation: $(ABLATIONS) ## approximation, means over masks, temperature: what the test owes to them [SIZE= ROWS= SEEDS=]

table: .venv/ready ## show the tables and render them into RESULTS.md and README.md
	@.venv/bin/python -m reproduction.table --results $(RESULTS) --experiment ptb sentiment
	@.venv/bin/python -m reproduction.table --results $(RESULTS) --experiment ptb sentiment --readme RESULTS.md
	@.venv/bin/python -m reproduction.table --results $(RESULTS) --experiment ptb --size medium --readme README.md

figures: .venv/ready ## draw the curves of all results (PNG and SVG)
	@.venv/bin/python -m reproduction.figures --results $(RESULTS)

grid: .venv/ready ## the runs of configs/sweeps/NAME.yaml [NAME= SEEDS= EPOCHS= DATA_DIR= DEVICES=], then what they reached
	@points="$$(.venv/bin/python -m experiments.grid '$(NAME)')" && $(MAKE) --no-print-directory $(foreach seed,$(SEEDS),$$(for point in $$points; \
		do echo '$(RESULTS)/sweeps/$(NAME)/'$$point/seed$(seed).json; done))
	@.venv/bin/python -m experiments.grid '$(NAME)' --results $(RESULTS)

sweep: .venv/ready ## register it with W&B and train its points by an agent here [NAME= DATA_DIR= ARGS="--count 3"]
	@DATA_DIR="$(DATA_DIR)" .venv/bin/python -m experiments.grid '$(NAME)' --agent $(ARGS)

predict: | .venv/ready ## what a trained model says about a text, and how sure it is [MODEL=runs/.../last.ckpt TEXT=file]
	@.venv/bin/python main.py predict '$(MODEL)' $(if $(TEXT),'$(TEXT)') $(ARGS)

##@ Compare
report: .venv/ready ## write all tables and curves into one HTML page, to be opened from disk
	@.venv/bin/python -m reproduction.report --results $(RESULTS)

compare: .venv/ready ## what differs between two runs [A=ptb/small/zaremba/seed0 B=...]
	@.venv/bin/python -m reproduction.compare --results $(RESULTS) '$(A)' '$(B)'

sync: .venv/ready ## upload the runs that were recorded offline to W&B [RUNS=]
	@.venv/bin/python -m training.tracking $(RUNS)

wandb-table: .venv/ready ## log the tables and curves of all results to W&B
	@.venv/bin/python -m reproduction.table --results $(RESULTS) --wandb $(RUNS)

wandb-report: .venv/ready ## create a report and a workspace in W&B [ARGS="--dry_run --entity TEAM"]
	@.venv/bin/python -m reproduction.wandb_report --results $(RESULTS) $(ARGS)

##@ Develop
setup: .venv/ready ## create .venv and install
lint: .venv/ready ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/ready ## measure speed on this machine's CPU beside torch.nn and others (about ten minutes)
	.venv/bin/python -m benchmarks.speed $(ARGS)

bench-gpu: .venv/ready ## the same on its GPU
	.venv/bin/python -m benchmarks.speed --device cuda $(ARGS)

bench-scaling: .venv/ready ## measure data-parallel training on one and two processes (about ten minutes)
	.venv/bin/python -m benchmarks.scaling $(ARGS)

clean: ## remove runs (checkpoints, logs) and caches; results stay
	rm -rf $(RUNS) .pytest_cache .ruff_cache .mypy_cache .hypothesis

.PHONY: help demo test test-slow reproduce-ptb reproduce-sentiment predict status cost ensemble ablation table figures report compare grid sweep wandb-table wandb-report sync setup lint bench bench-gpu bench-scaling clean FORCE

.venv/ready: pyproject.toml $(wildcard $(CONSTRAINTS))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed, $(PYTHON) is older or missing: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "setting up .venv (about a minute, and more where torch is downloaded)"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

# --- runs -------------------------------------------------------------------------------------------------------------
# $(call options,EXPERIMENT/GROUP/ROW/seedK): of main.py
options = --config configs/$(patsubst %/,%,$(dir $(1))).yaml --seed_everything $(patsubst seed%,%,$(notdir $(1))) \
	--data.init_args.data_dir "$(DATA_DIR)" --trainer.default_root_dir $(RUNS)/$(1) --trainer.devices $(DEVICES) --trainer.num_nodes $(NODES)
reproduce = reproduce $(call options,$(1)) --result $(RESULTS)/$(1).json $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)
commands = $(foreach file,$(1),'$(subst ','\'',$(call reproduce,$(file:$(RESULTS)/%.json=%)))')
# $(call submit,result files): those that are missing, as an array of jobs
submit = $(if $(call missing,$(1)),.venv/bin/python -m experiments.slurm --logs $(RUNS)/slurm --runs $(call commands,$(call missing,$(1))) \
	-- $(SLURM) --job-name=$@ --nodes=$(NODES) --ntasks-per-node=$(DEVICES),echo "All runs are there: nothing to submit. Without LAUNCH=slurm, make $@ shows the table.")

$(RESULTS)/%.json: $$(call unfinished,$$@) | .venv/ready
	@printf '%s\n' $(TO_DO) | awk '$$0 == "$@" {run = NR} END {if (run) print "run " run " of " NR}'
	@.venv/bin/python main.py $(call reproduce,$*)

# A point of a grid: its configuration is that of the sweep.
$(RESULTS)/sweeps/%.json: $$(call unfinished,$$@) | .venv/ready
	@.venv/bin/python main.py reproduce $$(.venv/bin/python -m experiments.grid $(subst /, ,$(patsubst %/,%,$(dir $*)))) \
		$(wordlist 3,100,$(call options,sweeps/$*)) --result $@ $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)

$(RESULTS)/sentiment/baselines.json: | .venv/ready
	@.venv/bin/python -m training.baselines --data_dir "$(DATA_DIR)" --output $@

$(PTB_ROWS:%=$(RESULTS)/%/ensemble.json): $(RESULTS)/%/ensemble.json: $$(foreach seed,$(SEEDS),$(RUNS)/$$*/seed$$(seed)/predictions.pt) FORCE
	@.venv/bin/python -m inference.ensemble $(filter %.pt,$^) --output $@

# $(call tested,EXPERIMENT/GROUP/ROW/seedK): the weights that the row is tested with
tested = $(RUNS)/$(1)/checkpoints/$(if $(shell grep -s 'tested_weights: best' \
	configs/$(patsubst %/,%,$(dir $(1))).yaml configs/$(dir $(patsubst %/,%,$(dir $(1))))common.yaml),best,last).ckpt

$(foreach row,$(PTB_ROWS),$(SEEDS:%=$(RUNS)/$(row)/seed%/predictions.pt)): $(RUNS)/%/predictions.pt: $$(wildcard $(RUNS)/$$*/checkpoints/last.ckpt) | .venv/ready
	@.venv/bin/python main.py predict $(call options,$*) --trainer.logger false $(ARGS) --ckpt_path $(call tested,$*)

run_of = $(subst /ablation_,/,$(1:$(RESULTS)/%.json=%))
$(ABLATIONS): | .venv/ready
	@.venv/bin/python main.py ablate $(call options,$(call run_of,$@)) --trainer.logger false $(ARGS) \
		--ckpt_path $(call tested,$(call run_of,$@)) --result $(RESULTS)/$(call run_of,$@).json

FORCE:
