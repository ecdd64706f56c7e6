# `make demo` and `make test` do all the set-up they need on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# On a machine without an NVIDIA driver the CPU build of torch is enough, and gigabytes smaller.
HAS_CUDA := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
# Where pip finds that build, when the default index has only CUDA's: the address on PyTorch's installation page.
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help install demo demo-rlhf demo-corpus test test-all chaos chaos-corpus parity lint

help:
	@echo "make install   virtual environment in $(VENV), pinned packages"
	@echo "make demo      train a language model on Python's own documentation, in minutes"
	@echo "make demo-rlhf the whole chain: pretraining, fine-tuning, reward model, PPO, and a report"
	@echo "make demo-corpus a corpus full of planted faults through every stage of preparation, and what was found"
	@echo "make test      the fast test suite"
	@echo "make test-all  the fast and the slow tests"
	@echo "make chaos     tiny runs killed 200 times at random moments: each must end as if nothing had happened"
	@echo "make chaos-corpus a corpus whose preparation is killed in every step of every stage: no file may differ"
	@echo "make parity    every parallel strategy against one process, on CPUs; writes the table in the docs"
	@echo "make lint      ruff, mypy --strict, import-linter, pydoclint"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@$(if $(HAS_CUDA),true,$(PIP_INSTALL) --dry-run --no-deps --report - torch | $(BIN)/python .ci/torch_is_cpu_build.py)
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable '.[dev]'
	@# pydoclint needs the fork of a parser that jsonargparse also uses; both claim the same module name.
	$(PIP_INSTALL) --force-reinstall --no-deps docstring_parser_fork
	@# litdata asks for torchvision, whose only build on PyPI is CUDA's; lmstack never uses it.
	$(if $(HAS_CUDA),,$(BIN)/pip uninstall --quiet --yes torchvision)
	@touch $@

demo: install
	$(BIN)/lmstack tokenizer train --config conf/tokenizer/stdlib.yaml
	$(BIN)/lmstack data build --config conf/corpus/stdlib.yaml
	$(BIN)/lmstack fit --config conf/demo.yaml ckpt_path=last
	$(BIN)/lmstack generate checkpoint=runs/demo prompt="The following functions"
	$(BIN)/lmstack data baselines path=data/stdlib run=runs/demo

# A generated corpus with planted faults through every stage, and how many of them were found.
demo-corpus: install
	$(BIN)/python benchmarks/dirty_corpus.py --out data/dirty
	$(BIN)/lmstack tokenizer train --config conf/tokenizer/stdlib.yaml
	$(BIN)/lmstack data prepare --config conf/corpus/dirty.yaml
	$(BIN)/python benchmarks/corpus_score.py --truth data/dirty/truth.jsonl --prepared data/dirty_prepared --out data/dirty_score

demo-rlhf: install
	$(BIN)/lmstack pipeline --config conf/pipeline/instructgpt.yaml

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu" --jaxtyping-packages=lmstack,beartype.beartype

test-all: install
	$(BIN)/python -m pytest -m "not gpu" --jaxtyping-packages=lmstack,beartype.beartype

# SEED=... repeats the moments of an earlier time.
chaos: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/recipes/chaos.py --kills 200 $(if $(SEED),--seed $(SEED))

chaos-corpus: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/recipes/chaos_corpus.py --kills 100 $(if $(SEED),--seed $(SEED))

parity: install
	$(BIN)/python benchmarks/strategy_parity.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@# What a function returns or yields is said in its first line or its annotation, unless that is not enough.
	! $(BIN)/pydoclint --quiet src/lmstack 2>&1 | grep -E "Error|DOC[0-9]+" | grep -vE "DOC(201|402|405)"
