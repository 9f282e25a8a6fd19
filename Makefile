# Everything from a checkout, Python 3.11 or later with venv, and a C compiler.
#
#   make demo        run scenarios/passthrough.toml: the table, and the path of its report
#   make test        the suite with coverage; statistical tests at reduced size
#   make test-long   the suite with statistical tests at full size
#   make test-debug  the suite on a core with bounds checks, in build/debug
#   make test-install  the source distribution, installed and used from elsewhere
#   make lint        ruff, mypy (strict), cython-lint
#   make bench       throughput and memory of the simulator
#   make bench-instructions  instructions of the core per access, against those on record
#   make docs        docs/_build/html, warnings as errors
#   make build       the compiled core, beside its sources
#   make clean       remove what was built (not .venv, not runs)

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
DEBUG_TREE := build/debug
INSTALL_TREE := build/install

.PHONY: demo test test-long test-debug test-install lint bench bench-instructions docs build clean
.DELETE_ON_ERROR:

demo: build
	$(PY) -m simvm scenario scenarios/passthrough.toml --out runs/passthrough

test: build $(VENV)/.test $(VENV)/.bench
	$(PY) -m pytest --cov

test-long: build $(VENV)/.test $(VENV)/.bench
	SIMVM_LONG=1 $(PY) -m pytest

# A copy of the tree holds the debug core, so that the release core stays what it is. Compiled
# files survive from one copy to the next. PYTHONPATH leads the commands that tests start there.
test-debug: $(VENV)/.test $(VENV)/.bench
	mkdir -p $(DEBUG_TREE)
	find $(DEBUG_TREE) -type f -not -path '$(DEBUG_TREE)/build/*' -delete
	tar -cf - --exclude='*.so' --exclude=__pycache__ --exclude=docs/_build \
	    simvm tests scenarios docs $(wildcard benchmarks) \
	    setup.py pyproject.toml Makefile MANIFEST.in LICENSE $(wildcard *.md *.cff) \
	    | tar -xf - -C $(DEBUG_TREE)
	cd $(DEBUG_TREE) && SIMVM_DEBUG=1 "$(CURDIR)/$(PY)" setup.py --quiet build_ext --inplace
	cd $(DEBUG_TREE) && SIMVM_DEBUG=1 PYTHONPATH="$(CURDIR)/$(DEBUG_TREE)" \
	    "$(CURDIR)/$(PY)" -m pytest

test-install: $(VENV)/.package
	rm -rf $(INSTALL_TREE)
	$(PY) setup.py --quiet sdist --dist-dir $(INSTALL_TREE)
	$(PY) -m venv $(INSTALL_TREE)/venv
	$(INSTALL_TREE)/venv/bin/python -m pip --disable-pip-version-check install --quiet \
	    $(INSTALL_TREE)/simvm-*.tar.gz
	cd $(INSTALL_TREE) && venv/bin/python -m simvm hardware list
	cd $(INSTALL_TREE) && venv/bin/python -m simvm walk --guest 1GiB --host 2MiB --format json

lint: $(VENV)/.lint
	$(PY) -m ruff check .
	$(PY) -m mypy
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint simvm/_core.pyx simvm/core

bench: build $(VENV)/.bench
	$(PY) -m simvm bench

# With another compiler than the record's, counts are shown and nothing is compared.
bench-instructions: build
	@if command -v valgrind >/dev/null; then $(PY) benchmarks/instructions.py; \
	    else echo "bench-instructions: skipped, valgrind is not installed"; fi

docs: $(VENV)/.docs
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs: $(CURDIR)/docs/_build/html/index.html"

# setup.py itself sees in a second whether there is anything to compile.
build: $(VENV)/.package
	$(PY) setup.py --quiet build_ext --inplace

clean:
	rm -rf build dist *.egg-info docs/_build .coverage htmlcov
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f simvm/_core*.so
	find simvm tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installs one list of requirements of pyproject.toml, named by its keys; the package itself is not
# compiled again for it.
define install_requirements
	$(PY) -c "import functools, sys, tomllib; \
	    project = tomllib.load(open('pyproject.toml', 'rb')); \
	    print(*functools.reduce(dict.__getitem__, sys.argv[1:], project), sep='\n')" \
	    $(1) > $@.txt
	$(PIP) --requirement $@.txt
endef

$(VENV)/.package: pyproject.toml setup.py | $(VENV)/.python
	$(call install_requirements,build-system requires)
	$(PIP) --no-build-isolation --editable .
	@touch $@

# What `simvm bench` compares with may have no wheel for this machine: its tests are then skipped.
$(VENV)/.bench: $(VENV)/.package
	$(call install_requirements,project optional-dependencies bench) || \
	    echo "the peers of simvm bench cannot be installed here: not measured, not tested"
	@touch $@

$(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(VENV)/.package
	$(call install_requirements,project optional-dependencies $*)
	@touch $@

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "simvm needs Python 3.11 or later, and '$(PYTHON)' is not that." \
	        "Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
