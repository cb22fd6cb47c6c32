# supertiny: `make` lists what can be made. On a fresh machine `make demo` is all it takes.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo models test check lint types fast benchmarks methods format clean

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
SUPERTINY := $(BIN)/supertiny
EXAMPLE := examples/smart_home
# What the demo's teacher and student start from.
MODELS := qwen2.5-coder-1.5b-instruct-q4_k_m smollm2-135m-instruct-q4_1

ifneq ($(filter-out 0 no,$(QUICK)),)
RECIPE := $(EXAMPLE)/recipe_quick.yaml
RUN := runs/smart_home_quick
else
RECIPE := $(EXAMPLE)/recipe.yaml
RUN := runs/smart_home
endif

# Models come through `supertiny models` alone: nothing asks a hub behind its back.
export HF_HUB_OFFLINE = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export TRANSFORMERS_VERBOSITY = error
export TOKENIZERS_PARALLELISM = false
export PYTHONUNBUFFERED = 1

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  make demo QUICK=1   the same thread on less data"

setup: .venv/.installed ## make .venv with the pinned dependencies (instant when it stands)

.venv/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: supertiny needs Python 3.11 or newer (set PYTHON=/path/to/python3.11)" >&2; exit 2; }
	@echo "setup: installing pinned dependencies into .venv (some minutes, once)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@# Grammars for the torch engine; the package asks for GPU compilers that it does not need here.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps xgrammar apache-tvm-ffi
	@$(SUPERTINY) --version
	@touch $@

models: setup ## fetch and verify the model files of the demo
	@$(SUPERTINY) models fetch $(MODELS)

demo: models ## run the smart-home example end to end; run it again after a stop and it goes on
	@echo "demo: $(RECIPE) -> $(RUN)"
	@$(SUPERTINY) run $(RECIPE) --folder $(RUN)

check: setup ## format, lint, types, house rules, laws and fast tests (some minutes)
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory -j2 --output-sync=target types fast
	@echo "check: all well"

lint: setup
	@echo "check: format and lint"
	@$(BIN)/ruff format --check --quiet . || { echo "error: not formatted: run make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .

types: setup
	@echo "check: types"
	@$(BIN)/mypy --no-error-summary

# Each of the two test processes keeps to its half of the cores (tests/conftest.py).
fast: setup
	@echo "check: house rules, laws, fast tests"
	@$(BIN)/pytest -q -m "not model and not slow" -n 2

# An extra that compiles: tests hold all engines to the same answers, and benchmarks compare with it.
.venv/.llama_cpp: .venv/.installed
	@echo "setup: compiling llama.cpp's package (some minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt llama-cpp-python
	@touch $@

test: check models .venv/.llama_cpp ## everything: check, then the tests that need models or time
	@echo "test: with models"
	@$(BIN)/pytest -q -m "model or slow" -n 2 --dist loadscope

benchmarks: models .venv/.llama_cpp ## set up for .venv/bin/python -m benchmarks.NAME, and list them
	@ls benchmarks/*.py | sed -n 's#benchmarks/\([a-z].*\)\.py#  .venv/bin/python -m benchmarks.\1 [--quick] [--json FILE]#p'

methods: setup ## write docs/methods.md from the methods' docstrings
	@$(SUPERTINY) methods --markdown > docs/.methods.md && mv docs/.methods.md docs/methods.md
	@echo "methods: docs/methods.md"

format: setup ## format and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

clean: ## remove caches and .venv; runs/ and model files stay
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
