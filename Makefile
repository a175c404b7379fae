# `make demo` trains a GAN on MNIST, `make test` passes the tests, `make test-fast` those that are quick.
# Both make .venv on first use; later runs start at once.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test test-fast bench docs offline lint wheel clean

# less than half of the steps that are the default
demo: $(READY)
	$(PY) -m gkfast train --data mnist --set encoder_steps=1200 --set steps=800 --set warmup=250 --set control_steps=1550

# a process for each core, each with whole files, in the order of tests/conftest.py
PYTEST := $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder --benchmark-disable

test: $(READY)
	$(PYTEST)

# under three minutes on two cores
test-fast: $(READY)
	$(PYTEST) -m "not slow and not interpreter and not gpu"

# wants the machine for itself, for about a quarter of an hour; what got slower since the last commit, by
# python -m bench.regressions bench/results/MACHINE.csv
bench: $(VENV)/.bench-ready
	$(PY) -m pytest --benchmark-only --benchmark-quiet --save-rows=bench/results
	$(PY) -m bench.report

# the GPU kernels, compiled without a GPU by the Triton at hand, by the oldest one that is supported and by the newest;
# about an hour and a half on two cores. OFFLINE="--targets 90" or OFFLINE=--bars is quicker and writes no file
offline: $(READY)
	failed=0; $(PY) bench/offline.py $(OFFLINE) || failed=1; \
	for wanted in triton==3.6.0 triton; do \
		$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/other/$$wanted $$wanted || exit 1; \
		PYTHONPATH=$(VENV)/other/$$wanted $(PY) bench/offline.py $(OFFLINE) || failed=1; \
	done; exit $$failed

# the site, in build/site; a broken link within it fails (with --quiet it would not: strict counts what is shown)
docs: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "open build/site/index.html; with search: $(PY) -m http.server -d build/site"

$(VENV)/.docs-ready: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[docs]'
	touch $@

# the rivals, besides what tests need
$(VENV)/.bench-ready: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[bench]'
	touch $@

# pyproject.toml and the pins decide what is installed; the stamp is written only after all of it
$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gkfast needs Python 3.11 or newer; run: make PYTHON=python3.12 " + "demo")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[train,mnist,dev]'
	touch $(READY)

# mypy and editors see gkfast.kernels through this git-ignored link
lint: $(READY)
	ln -sfn ../kernels gkfast/kernels
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

# the source distribution and the wheel, which is imported outside the checkout: the mapping of kernels/ must hold there.
# LEVELS="x86-64-v3 x86-64-v4" compiles the CPU kernels for all processors of these levels into it, which takes half a
# minute for each: they serve this Python, this Numba and this system, and others compile their own
LEVELS ?=
TAGS = $(shell $(PY) -c 'import sys, sysconfig; print("-C--build-option=--python-tag=cp%d%d" % sys.version_info[:2], "-C--build-option=--plat-name=" + sysconfig.get_platform().replace("-", "_"))')
wheel: $(READY)
	rm -rf dist build kernels/cpu/ready-made
	for level in $(LEVELS); do $(PY) -m gkfast compile --level $$level --into kernels/cpu/ready-made || exit 1; done
	$(PY) -m build --sdist --wheel --no-isolation $(if $(LEVELS),$(TAGS))
	rm -rf build kernels/cpu/ready-made
	rm -rf $(VENV)/outside && mkdir $(VENV)/outside
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/outside dist/gkfast-*.whl
	cd $(VENV)/outside && PYTHONPATH=. ../bin/python -I -c 'import sys; sys.path.insert(0, "."); import gkfast, numpy; print(gkfast.__file__, gkfast.rbf(numpy.eye(2), sigma=1.0))'

clean:
	rm -rf $(VENV) build dist *.egg-info gkfast/kernels
