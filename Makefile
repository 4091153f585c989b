# Each target makes or reuses .venv by itself. PYTHON chooses the interpreter: 3.11 or newer.
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; exit; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/digits
BENCH_WORKDIR ?= runs/bench

GPU_WORKDIR ?= runs/gpu
MINUTES ?= 30

.PHONY: demo quick test test-slow lint types docs wheel bench gpu clean

demo: $(VENV)/runtime
	$(BIN)/python -m experiments.short_run --workdir=$(WORKDIR)
	@echo "Pictures are in $(WORKDIR)/figures."

quick: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m quick

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m "not slow"

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/mypy

# The site, in build/site, with warnings as errors.
docs: $(VENV)/docs
	$(BIN)/python docs/build.py

wheel: $(VENV)/dev
	$(BIN)/python -m build

bench: $(VENV)/dev
	$(BIN)/python -m experiments.throughput --workdir=$(BENCH_WORKDIR) \
		$(if $(SMALL),--config=small)
	$(BIN)/python -m experiments.throughput --workdir=$(BENCH_WORKDIR) \
		--config=training$(if $(SMALL),_small)

# On a machine without network: WHEELS is a folder of the wheels that it lacks and DATA one
# of images, see `python -m experiments.gpu --help`.
gpu: $(VENV)/$(if $(WHEELS),carried,dev)
	$(BIN)/python -m experiments.gpu --workdir=$(GPU_WORKDIR) --data_dir="$(DATA)" \
		--minutes=$(MINUTES) $(if $(SMALL),--small)

$(VENV)/carried:
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
		$(WHEELS)/*.whl
	touch $@

# A file in the environment says that an installation is complete.
$(VENV)/created:
	@test -n "$(PYTHON)" || { echo "ebmjax needs Python 3.11 or newer: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/runtime: requirements.txt pyproject.toml $(VENV)/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev: requirements-dev.txt requirements.txt pyproject.toml $(VENV)/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/runtime

$(VENV)/docs: requirements-docs.txt pyproject.toml $(VENV)/created
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

# XLA's compiler for TPUs, by which tests compile for them: none is needed.
$(VENV)/tpu: $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "jax[tpu]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache build
