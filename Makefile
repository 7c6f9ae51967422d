# make demo   sets everything up and runs the main job on real data
# make test   sets everything up and runs all tests
# The rest is for development; `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
# Options of the build, for example BUILD_OPTIONS=-Ccmake.define.ROBUSTCORE_CUDA=ON
BUILD_OPTIONS ?=
bin := $(VENV)/bin
sources := $(shell find csrc cmake -type f) CMakeLists.txt pyproject.toml
cpp_files := $(shell find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

.PHONY: help setup build demo test bench gpu-check lint format types cuda-check sanitize clean

help:
	@echo "demo        set up, then train on real data: losses, merging, pcr; writes demo-report/index.html"
	@echo "test        set up, then run all tests"
	@echo "bench       run every benchmark and write benchmarks/results/<machine>.json"
	@echo "gpu-check   on a machine with a GPU: build, test, sanitize and benchmark there"
	@echo "lint        check formatting, style and types     format      reformat"
	@echo "cuda-check  compile every kernel with nvcc, fail on register spills"
	@echo "sanitize    run every kernel on the host under AddressSanitizer and UBSan"
	@echo "clean       remove what the build made (the environment in $(VENV) stays)"

$(VENV)/.installed: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet --upgrade pip
	$(bin)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed $(sources)
	@echo "compiling the kernels; this takes minutes, without further output"
	PATH="$(abspath $(bin)):$$PATH" $(bin)/python -m pip install --quiet --no-build-isolation --no-deps \
	  -Cbuild-dir=build/editable $(BUILD_OPTIONS) --editable .
	touch $@

setup: $(VENV)/.installed
build: $(VENV)/.built

demo: build
	$(bin)/robustcore demo

test: build
	$(bin)/python -m pytest

bench: build
	$(bin)/robustcore bench

gpu-check:
	bash tools/gpu_check.sh

lint: setup
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run -Werror $(cpp_files)
	$(bin)/mypy

format: setup
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(cpp_files)

cuda-check: setup
	$(bin)/python tools/check_spills.py

sanitize: setup
	PATH="$(abspath $(bin)):$$PATH" cmake -S tests/simt -B build/simt-sanitize -G Ninja -DSIMT_SANITIZE=ON
	PATH="$(abspath $(bin)):$$PATH" cmake --build build/simt-sanitize
	build/simt-sanitize/simt_check

clean:
	rm -rf build dist
	rm -f $(VENV)/.built
