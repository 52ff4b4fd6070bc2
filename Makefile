# make run     train on real digits with each normalization and write a report
# make test    the whole suite, on every backend, one process each
# make quick   the fast part of it, on one backend
# make fronts  the fronts for PyTorch, JAX and flax, each where Keras is not installed
# make check   lint and types
# make gpu     on a machine with a GPU: every number of the GPU kernels, then their speed
# make sanitize  the native core's own test under sanitizers (needs a C++ compiler)
# make wheel   build the wheel into dist/
# Only Python 3.11 or newer and make must be there: everything else goes into .venv.

PYTHON ?= python3
BACKEND ?= jax
ARGS ?=
# A folder for each set of settings: a folder of other settings is refused.
OUT ?= runs/$(BACKEND)$(if $(ARGS),-$(firstword $(shell echo '$(ARGS)' | cksum)))
BACKENDS ?= jax tensorflow torch

BIN := .venv/bin
# TensorFlow's CPU package is the small one; PyTorch is pinned in constraints.txt to a version
# whose plain wheel is enough.
PACKAGE_jax := jax
PACKAGE_tensorflow := tensorflow-cpu
PACKAGE_torch := torch
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test quick fronts check gpu sanitize wheel clean
.DELETE_ON_ERROR:

run: .venv/.run-$(BACKEND)
	$(BIN)/truenorm compare --backend $(BACKEND) --out $(OUT) $(ARGS)

test: .venv/.test
	$(BIN)/python tests/run.py $(BACKENDS) -- $(ARGS)
	$(MAKE) build/gpu-kernels

# The kernels for GPUs on the CPU: what they compute, in Triton's interpreter, and how they compile.
# Not in .venv: TensorFlow and Triton, each with an LLVM of its own, do not stand one process.
build/gpu-kernels: wheel FORCE
	rm -rf $@
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch jax triton pytest hypothesis
	$@/bin/pip install --quiet --disable-pip-version-check --no-deps dist/truenorm-*.whl
	TRITON_INTERPRET=1 $@/bin/python -m pytest tests/gpu_kernels
	$@/bin/python -m pytest tests/gpu_kernels

quick: .venv/.test
	$(BIN)/python tests/run.py $(BACKEND) -- -m "not slow" $(ARGS)

# What each of these environments has besides NumPy; all take the wheel that is built first.
FRONT_torch := torch torchvision onnxruntime onnxscript
FRONT_jax := jax flatbuffers
FRONT_flax := jax flax equinox
FRONTS ?= torch jax flax
fronts: wheel
	for front in $(FRONTS); do $(MAKE) build/front-$$front || exit 1; done

build/front-%: FORCE
	rm -rf $@
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(FRONT_$*) pytest hypothesis
	$@/bin/pip install --quiet --disable-pip-version-check --no-deps dist/truenorm-*.whl
	! $@/bin/python -c "import keras" 2> /dev/null
	$@/bin/python -m pytest tests/fronts/$*

check: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# With the Python that has PyTorch, Triton and JAX for this GPU: a bare machine has no .venv.
GPU_PYTHON ?= python3
gpu:
	$(GPU_PYTHON) benchmarks/gpu.py $(ARGS)

# Without a compiler there is nothing to test.
CXX_FOUND := $(shell command -v c++ || command -v g++ || command -v clang++)
sanitize: .venv/.test
ifeq ($(CXX_FOUND),)
	@echo "make sanitize: no C++ compiler was found; nothing is tested"
else
	$(MAKE) build/sanitize-memory build/sanitize-threads
endif
ifeq ($(and $(shell command -v qemu-aarch64),$(shell command -v aarch64-linux-gnu-g++)),)
	@echo "make sanitize: no qemu-aarch64 with aarch64-linux-gnu-g++; NEON is not tested"
else
	$(BIN)/cmake -S . -B build/neon -DTRUENORM_SANITIZE=undefined -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/neon --parallel 2
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/neon/core_test 60
endif

build/sanitize-memory: SANITIZERS = address,undefined
build/sanitize-threads: SANITIZERS = thread
build/sanitize-memory build/sanitize-threads: FORCE
	$(BIN)/cmake -S . -B $@ -DTRUENORM_SANITIZE=$(SANITIZERS) -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build $@ --parallel 2
	$@/core_test

wheel: .venv/.test
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps -c constraints.txt -w dist .

FORCE:

clean:
	rm -rf .venv build dist

.venv/.made: | constraints.txt
	$(PYTHON) -m venv .venv
	touch $@

.venv/.run-%: .venv/.made pyproject.toml constraints.txt
	$(PIP) $(PACKAGE_$*) -e ".[compare]"
	touch $@

.venv/.test: .venv/.made pyproject.toml constraints.txt
	$(PIP) $(foreach backend,$(BACKENDS),$(PACKAGE_$(backend))) -e ".[compare,migrate]" pytest hypothesis jupytext onnxruntime onnxscript tf2onnx flax equinox torchvision ruff mypy cmake
	touch $@
