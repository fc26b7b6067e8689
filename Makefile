# One file to set up, try and check bitbrush. `make help` lists what there is.
# Needs python3.11 or newer (with venv) and make; everything else comes into .venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow test-shuffled test-oldest lint format features docs dist clean distclean

# The first Python that is new enough and can make virtual environments. The pins were tested with 3.11, so it comes first.
# Tried by running it: a version manager's shim may be on the path and yet point nowhere.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

# On Linux the default torch wheel carries CUDA (several GB). To have the small CPU build, name PyTorch's CPU wheel index:
#   make setup TORCH_INDEX=<address of the index>
TORCH_INDEX ?=
# Errors only: the versions are pinned, so pip's warnings are about the machine it runs on. `make setup PIP_FLAGS=` shows all.
PIP_FLAGS ?= --quiet --quiet
WORKERS ?= 2
SEED ?= $(shell date +%s)

BIN := .venv/bin
STAMP := .venv/.bitbrush-setup
PIP := $(BIN)/python -m pip --disable-pip-version-check $(PIP_FLAGS)
PINNED := --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the pinned packages and bitbrush in it (about two minutes; instant when up to date)

# The stamp is written last: an interrupted set-up has none and is taken up again. An environment that already exists is adopted
# when every file its packages list is there, and made anew when not (killed half-way through a package, or its Python is gone).
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@if $(BIN)/python .ci/venv_intact.py 2>/dev/null; then \
		echo "setup 1/4: using the environment in .venv"; \
	else \
		test -n "$(PYTHON)" || { echo "setup: needs Python 3.11 or newer with venv; name one with PYTHON=..." >&2; exit 1; }; \
		echo "setup 1/4: making .venv with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear .venv; \
	fi
	@echo "setup 2/4: build tools"
	@$(PIP) install $(PINNED) hatchling editables
	@echo "setup 3/4: torch (the largest download)"
	@$(PIP) install $(PINNED) $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") torch
	@echo "setup 4/4: bitbrush and the other pinned packages"
	@$(PIP) install $(PINNED) --no-build-isolation --editable '.[dev]'
	@touch $@
	@echo "setup: done. Try: make demo, make test, $(BIN)/bitbrush --help"

demo: setup ## quantize the bundled pipeline and write a page that compares it with full precision (demo/)
	$(BIN)/bitbrush demo -o demo

lint: setup ## ruff (rules and format) and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint ## lint, then every test that is not slow
	$(PYTEST)

test-slow: setup ## the slow tests alone
	$(PYTEST) -m slow

test-shuffled: setup ## the tests in a random order (SEED=N repeats one)
	$(PYTEST) --shuffle $(SEED)

# The training recipes and the kernels for cards ask for newer versions; of the house one is enough.
test-oldest: ## the tests with the oldest packages that pyproject.toml allows, in .venv-oldest (several GB without TORCH_INDEX)
	@$(PYTHON) -m venv --clear .venv-oldest
	@.venv-oldest/bin/python -m pip --disable-pip-version-check $(PIP_FLAGS) install --constraint constraints-oldest.txt \
		$(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") --editable '.[parquet,lora]' \
		pytest pytest-xdist pytest-timeout hypothesis
	.venv-oldest/bin/python -m pytest -n $(WORKERS) --dist loadfile -o filterwarnings=default --ignore tests/training \
		--ignore tests/runtime/cuda --ignore tests/test_unet_gpu.py --ignore tests/test_house.py --ignore tests/test_imports.py

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

features: setup ## write the table of features from its tests (docs/how-to/features.md)
	$(BIN)/python -m tests.features

docs: setup ## build the documentation into site/ (open site/index.html), with links checked and nothing fetched when it is read
	@$(PIP) install $(PINNED) --no-build-isolation --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python .ci/site_offline.py site

dist: setup ## build sdist and wheel into dist/ and check that the wheel is whole
	@$(PIP) install $(PINNED) build
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python .ci/wheel_whole.py dist/*.whl

clean: ## remove caches, build products and the demo's output
	rm -rf build dist demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the environments too
	rm -rf .venv .venv-oldest
