# Everything here runs from a fresh clone with nothing but make and Python 3.10 or newer: the virtual environment
# is made on first use and made anew when pyproject.toml or the interpreter changes. Nothing needs activating.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# A third of the tests' time is waiting for processes that they have started. A file's tests stay together: some share servers.
PARALLEL ?= --numprocesses 3 --dist loadfile
# What `make compiled` runs.
TESTS ?= tests/unit tests/conformance tests/wire tests/integration/test_links.py tests/integration/test_waking.py tests/test_properties.py tests/test_packaging.py

BIN := $(VENV)/bin
# The version is part of the stamp's name, so that another PYTHON gets an environment of its own making.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STAMP := $(VENV)/.installed-$(VERSION)
# Made only when every server that tests talk to is on the machine: until then each run says what is missing, or installs it.
SERVERS := $(VENV)/.servers
COMPILED := $(VENV)-compiled
COMPILED_STAMP := $(COMPILED)/.installed-$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help demo test suites check compiled bench format test-all clean
# A recipe that fails half-way must not leave its target behind as if it were made.
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  PYTHON=python3.12 chooses the interpreter, ARGS="..." is passed on: make test ARGS="-k relay"'
	@echo '  PARALLEL= runs the tests one after the other'

demo: $(STAMP)  ## three processes: thousands of files over one TCP connection, through a relay
	@$(BIN)/python -m demo $(ARGS)

test: $(STAMP) $(SERVERS)  ## the whole test suite
	$(BIN)/pytest $(PARALLEL) $(ARGS)

suites: $(STAMP)  ## the interpreter's and gevent's own network tests, on sockets and on a mesh
	@$(BIN)/python tests/patches/compare.py $(ARGS)

check: $(STAMP)  ## style, types, import directions, package contents
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/check_imports.py
	$(BIN)/python tools/check_package.py

bench: $(STAMP)  ## streams on one link against a TCP connection each: make bench ARGS=--quick
	@$(BIN)/python load/bench.py $(ARGS)

# The tests that say what a stream, a link and the wire are; TESTS=tests runs all. Of the conformance suite not what gevent's own sockets do,
# which the build does not change. Run from elsewhere: programs started here would import the checkout.
compiled: $(COMPILED_STAMP)  ## the compiled variant (needs a C compiler) in an environment of its own, and its core tests
	@version=$$($(COMPILED)/bin/python -I -m astranet_gevent --version) && echo "$$version" && case $$version in *'(compiled'*) ;; *) exit 1 ;; esac
	cd $(COMPILED) && bin/python $(abspath $(BIN))/pytest -c $(CURDIR)/pyproject.toml $(PARALLEL) $(or $(ARGS),-q -k 'not (gevent- or mesh-unix)') $(abspath $(TESTS))

format: $(STAMP)  ## apply what `make check` would ask for, where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-all:  ## the whole test suite with every Python from 3.10 to 3.14 on this machine
	@$(PYTHON) tools/test_all.py $(ARGS)

clean:  ## remove everything that make and the tools have made
	rm -rf $(VENV) $(COMPILED) .venvs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find astranet_gevent -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) tools/make_venv.py $(VENV) dev
	@touch $@

$(SERVERS): tools/install_servers.py $(STAMP)
	@$(BIN)/python tools/install_servers.py $@

$(COMPILED_STAMP): $(STAMP) setup.py tools/make_compiled.py $(wildcard astranet_gevent/*.c astranet_gevent/*.p* astranet_gevent/*/*.p* patches/*.py)
	@$(BIN)/python tools/make_compiled.py $(COMPILED) $(VENV)
	@touch $@
