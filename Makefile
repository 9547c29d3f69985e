# What a user, a developer and CI run. `make help` lists it.
#
#   PYTHON=…   interpreter to build the environment with (3.10 or newer; found by itself otherwise)
#   VENV=…     the environment's folder (.venv)
#   TORCH=…    what pip is asked for first: a CPU-only torch spares gigabytes of CUDA libraries where an index offers one,
#              e.g. TORCH="torch==2.13.0 --index-url <the CPU index of pytorch.org>"
#   PYTEST_ARGS=…, JOBS=…, V=1 (show what pip and CMake print)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
PYTEST_ARGS ?=
OUT ?= out
V ?=

# The first interpreter that is new enough and can make an environment.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
    $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)

override VENV := $(abspath $(VENV))
STAMPS := $(VENV)/.stamps
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
QUIET := $(if $(V),,-qq)
# The environment's tools come first; nothing of the machine's Python configuration leaks in.
export PATH := $(VENV)/bin:$(PATH)
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH PYTHONHOME

CPP_BUILD := build/tests
# One GPU architecture is enough for the tests that link kernels; `make kernels` and the tests' matrix compile them all.
CPP_ARCHITECTURES ?= 89
SOURCES := $(shell find CMakeLists.txt pyproject.toml LICENSE README.md cmake csrc plugins python -type f \
    -not -name '*.so' -not -name '*.pyc' 2>/dev/null)
CPP_FILES = $(shell git ls-files '*.h' '*.hpp' '*.cpp' '*.cc' '*.cu' '*.cuh')

##@ Use
.PHONY: demo
demo: $(STAMPS)/installed ## Export, build and check the reference head, then detect on a document page with a real model
	@OUT="$(OUT)" $(PY) scripts/demo.py

.PHONY: install
install: $(STAMPS)/installed ## Create .venv and install the package with every CPU part

##@ Develop
.PHONY: test
test: $(STAMPS)/installed ## Run every test: C++ (ctest), then Python (pytest)
	@status=0; \
	$(MAKE) --no-print-directory test-cpp || status=1; \
	$(MAKE) --no-print-directory test-py || status=1; \
	exit $$status

.PHONY: test-cpp
test-cpp: $(STAMPS)/installed ## Only the C++ tests
	@echo "== C++ tests (ctest) =="
	cmake -S . -B $(CPP_BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DDHEAD_TESTS=ON -DDHEAD_PYTHON=OFF -DDHEAD_WERROR=ON \
	    -DPython_EXECUTABLE=$(PY) -DCMAKE_CUDA_ARCHITECTURES=$(CPP_ARCHITECTURES)
	cmake --build $(CPP_BUILD) -j $(JOBS) $(if $(V),--verbose,)
	ctest --test-dir $(CPP_BUILD) --output-on-failure --no-tests=error -j $(JOBS)

.PHONY: test-py
test-py: $(STAMPS)/installed ## Only the Python tests (PYTEST_ARGS="-k decode")
	@echo "== Python tests (pytest) =="
	@$(PY) scripts/run_tests.py --jobs $(JOBS) -m "not serving" $(PYTEST_ARGS)

.PHONY: test-serving
test-serving: $(STAMPS)/installed ## Serve with real Triton and Ray servers, in environments of their own (large, kept)
	@echo "== Serving tests (pytest) =="
	@$(PY) -m pytest -m serving tests/test_triton.py tests/test_ray_serve.py $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMPS)/requirements ## ruff, mypy --strict and clang-format; changes nothing
	@status=0; \
	check() { echo "== $$1"; "$${@:2}" || status=1; }; \
	check "ruff check" ruff check .; \
	check "ruff format --check" ruff format --check .; \
	check "mypy --strict" mypy; \
	check "clang-format on $(words $(CPP_FILES)) files" clang-format --dry-run -Werror $(CPP_FILES); \
	exit $$status

.PHONY: format
format: $(STAMPS)/requirements ## Rewrite the sources the way `make lint` wants them
	ruff check --fix .
	ruff format .
	clang-format -i $(CPP_FILES)

.PHONY: dev
dev: $(STAMPS)/requirements ## Compile the extension modules in place, for PYTHONPATH=python
	cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DDHEAD_TESTS=ON -DPython_EXECUTABLE=$(PY)
	cmake --build build/dev -j $(JOBS)
	cmake --install build/dev --component python --prefix python
	@echo "ready: PYTHONPATH=python $(PY) -m dhead_trt doctor"

.PHONY: bench
bench: $(STAMPS)/installed ## Measure the decode and the engines on this machine
	$(PY) bench/decode.py
	$(PY) bench/engine.py

.PHONY: performance
performance: $(STAMPS)/installed ## Measure all that docs/performance.md shows, and write it (about 8 minutes; resumes)
	$(PY) scripts/performance.py

.PHONY: kernels
kernels: $(STAMPS)/requirements ## Compile every CUDA kernel for every architecture; registers, shared memory, spills
	scripts/kernels.sh

.PHONY: clean
clean: ## Remove build products and caches (VENV and downloads stay; distclean removes VENV too)
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python tests scripts examples bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	rm -f python/dhead_trt/*.so

.PHONY: distclean
distclean: clean ## clean, and remove VENV
	rm -rf "$(VENV)"

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

# ---- the environment -------------------------------------------------------------------------------------------------

$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 or newer with venv and ensurepip was found; install one (Debian:" \
	    "python3-venv) or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || { echo "error: no C++ compiler was found (g++ or clang++; or set CXX)" >&2; exit 1; }
	@echo "== Creating $(VENV) with $(PYTHON) =="
	@test -x $(PY) || $(PYTHON) -m venv "$(VENV)"
	@mkdir -p $(STAMPS) && touch $@

# torch first and alone, so that its index is the user's choice; then everything else the tests and tools need.
$(STAMPS)/requirements: pyproject.toml scripts/requirements.py | $(STAMPS)/venv
	@echo "== Installing the requirements (torch is large: minutes on a first run) =="
	@$(PIP) install $(QUIET) $(TORCH)
	@$(PY) scripts/requirements.py build dev > $(STAMPS)/requirements.txt
	@$(PIP) install $(QUIET) -r $(STAMPS)/requirements.txt
	@touch $@

$(STAMPS)/installed: $(SOURCES) $(STAMPS)/requirements
	@echo "== Building and installing dhead_trt =="
	@headers="$${DHEAD_TENSORRT_HEADERS-$$($(PY) scripts/fetch_tensorrt_headers.py)}" || \
	    echo "TensorRT's headers cannot be fetched: the TensorRT builder and engine are left out" >&2; \
	DHEAD_TENSORRT_HEADERS="$$headers" $(PIP) install $(QUIET) --no-build-isolation --no-deps --force-reinstall .
	@$(PIP) check >/dev/null || $(PIP) check || true
	@touch $@
