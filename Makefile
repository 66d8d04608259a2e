# All that one does with this project. Needs Python 3.11 or newer and a C/C++ compiler.
#
# Everything is installed into .venv. llama.cpp is compiled from source there, for this CPU;
# CMAKE_ARGS reaches that build, e.g. make run CMAKE_ARGS=-DGGML_CUDA=on

PYTHON ?= python3
PROMPT ?= Once upon a time, in a small village by the sea, there lived
PYTEST_ARGS ?=
PEERS_ARGS ?=
BENCH_ARGS ?= --drafter auto,prompt-lookup,recycle --warm

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed
# Left out of llama.cpp on processors that have them, for our kernels are quicker than AMX at a few
# rows and need its layout not to be there; gcc 12 sets AMX up wrongly, too, and llama.cpp crashes at
# the first prompt. Arithmetic in half precision rounds otherwise than our attention.
HAS := $(shell echo | $(CC) -march=native -dM -E - 2>/dev/null | grep -o '__AMX_TILE__\|__AVX512FP16__')
LEFT_OUT := $(if $(findstring AMX,$(HAS)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16) \
	$(if $(findstring FP16,$(HAS)),-mno-avx512fp16)
ifneq ($(HAS),)
export CFLAGS += $(LEFT_OUT)
export CXXFLAGS += $(LEFT_OUT)
endif
# pip would take an earlier build with other arguments
FRESH := $(if $(CMAKE_ARGS)$(HAS),--no-cache-dir)
MIN_PYTHON := import sys; sys.exit(sys.version_info < (3, 11) and \
	"specgen needs Python 3.11 or newer: make PYTHON=python3.12")

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run dev check lint format types test test-fast gemma bench peers verify host docs clean

help: ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | \
		while IFS='	' read -r target text; do printf '%-10s %s\n' "$$target" "$$text"; done

run: $(INSTALLED) ## Set up, then continue a text with the default model.
	$(BIN)/specgen generate -p "$(PROMPT)" -n 60 --stats

dev: $(DEVELOPED) ## Set up with the development tools.

check: lint types test ## Set up, then run everything that must pass: linter, types, tests, docs.

KERNELS := $(wildcard kernels/*.h kernels/*.cpp)

lint: $(DEVELOPED) ## Check style and formatting.
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(KERNELS)
	$(CXX) -std=c++17 -fsyntax-only -Wall -Wextra -Werror kernels/kernels.cpp

format: $(DEVELOPED) ## Correct style and formatting.
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format
	$(BIN)/clang-format -i $(KERNELS)

types: $(DEVELOPED) ## Check types.
	$(BIN)/python -m mypy

# Tests on real models use all cores themselves, so they run one after the other.
REAL := model or gemma

test: test-fast ## Run all tests, those on the default model and those of many cases too.
	$(BIN)/specgen pull smollm2-135m
	$(BIN)/python -m pytest -n auto -m "long and not ($(REAL))" $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m "$(REAL)" $(PYTEST_ARGS)

test-fast: $(DEVELOPED) ## Run the tests that need no real model and little time.
	$(BIN)/python -m pytest -n auto -m "not (long or $(REAL))" $(PYTEST_ARGS)

gemma: $(DEVELOPED) ## Accept the terms of gemma-3-270m, fetch it, run its tests.
	$(BIN)/specgen pull gemma-3-270m --accept-license
	$(BIN)/python -m pytest -m gemma $(PYTEST_ARGS)

RESULT := benchmarks/results/$(shell date -u +%Y-%m-%d)

bench: $(DEVELOPED) ## Measure the default model into benchmarks/results: 12 quiet minutes.
	mkdir -p benchmarks/results
	$(BIN)/specgen bench $(BENCH_ARGS) -o md --save $(RESULT).json --plot $(RESULT).svg >$(RESULT).part
	mv $(RESULT).part $(RESULT).md
	cat $(RESULT).md

peers: $(DEVELOPED) ## Compare with llama-server, built the first time: some quiet minutes.
	mkdir -p benchmarks/results
	$(BIN)/python -m benchmarks.peers $(PEERS_ARGS) --save $(RESULT)-peers.json >$(RESULT)-peers.part
	mv $(RESULT)-peers.part $(RESULT)-peers.md
	cat $(RESULT)-peers.md

verify: $(DEVELOPED) ## Prove that drafts leave the default model's text alone.
	$(BIN)/specgen verify
	$(BIN)/specgen verify --strict

host: $(DEVELOPED) ## Measure the time that a step spends outside llama.cpp.
	$(BIN)/python benchmarks/host_overhead.py

docs: $(DEVELOPED) ## Write docs/cli.md anew.
	$(BIN)/python -m docs.generate_cli

clean: ## Remove .venv and everything that was built.
	rm -rf $(VENV) build dist core/llama/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c '$(MIN_PYTHON)'
	$(PYTHON) -m venv $(VENV)

# An archive of the sources does not keep these links.
LINKS := specgen/cli specgen/core specgen/drafters
$(LINKS):
	ln -s ../$(@F) $@

# Stamps: done again when the dependencies may have changed.
$(INSTALLED): pyproject.toml setup.py $(wildcard kernels/*) | $(BIN)/python $(LINKS)
	@echo "Installing. The first time, llama.cpp is compiled, which takes some minutes."
	$(PIP) install --quiet --upgrade "pip>=25.1"
	PYTHONWARNINGS=ignore $(PIP) install --quiet $(FRESH) --no-binary llama-cpp-python --editable .
	@touch $@

$(DEVELOPED): $(INSTALLED)
	$(PIP) install --quiet --group dev
	@touch $@
