# SPDX-License-Identifier: GPL-2.0-or-later
# Every target sets up its requirements (tools/setup): as root it installs missing system packages, else it names them.
PYTHON ?= python3
STEPS ?= 10000
SEED ?=
VENV := .venv/bin
# These tests use the kernel through pyroute2, and name servers through dnspython; they also run with the oldest supported
# releases of both.
NETLINK_TESTS := tests/netns/test_uplink.py tests/netns/test_agent.py tests/netns/test_model.py \
	tests/netns/test_name_lookup.py
# These tests share nothing with each other. The shortest come last, so that all processes end together.
ISOLATED := tests/lab tests/netns tests/contract
# For `make quick`: tests of the main task that take little time. They test the uplink operation by operation and as a
# whole; then a scenario runs dom0, two agents, a provider and a qube together.
QUICK := tests/core tests/contract/netlink/test_operations.py tests/netns/test_uplink.py
QUICK_SCENARIO := S-000-6
# Tests of one release stay in one process (tests/conftest.py), and wait more than they compute: they run beside the
# isolated ones. Emulated machines compute, and contain limits that no test can extend (libxl's 10 s): they run beside the
# pure tests, which have one process, and the tests with the oldest releases, which have a lower priority. The tests in
# neither list measure, and run alone.
BOOTING := tests/system
EMULATED := tests/guest tests/system/test_xen.py
WORKERS ?= $(shell echo $$((2 * $$(nproc))))
PARALLEL := -n $(WORKERS) --dist worksteal
# Half as many again: one process each for two releases, which leaves four for the isolated tests.
TOGETHER := -n $(shell echo $$(($(WORKERS) * 3 / 2))) --dist loadscope
# The tests start thousands of interpreters. Without cached bytecode each of them compiles its imports, which takes half
# of the processor time of a test in namespaces (11.6 s instead of 5.6 s for five of them).
unexport PYTHONDONTWRITEBYTECODE
export PYTHON
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help demo test lint hooks unit beside emulated quick coverage soak bench coverage-of-behaviours changelog release setup-test clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-26s %s\n", $$1, $$2 }'

demo: ## one qube gets its network from QubesDB, step by step (no root, no Xen, no Qubes)
	@tools/demo

test: ## everything that CI runs: lint, types, all tests, both pyroute2 generations, coverage of core
	$(MAKE) lint
	$(VENV)/python -m pytest -q $(TOGETHER) $(BOOTING) $(ISOLATED) $(addprefix --ignore=,$(EMULATED))
	$(MAKE) --jobs=2 --output-sync=line beside emulated
	$(VENV)/python -m pytest -q tests $(addprefix --ignore=,tests/core $(ISOLATED) $(BOOTING) $(EMULATED))

# .pre-commit-config.yaml runs these lines before each commit; a test compares the two.
lint: setup-test ## ruff (rules and format) and mypy
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

hooks: setup-test ## have git run what lint runs before each commit
	$(VENV)/pre-commit install

unit: setup-test ## the pure tests only; every branch of core has to be covered by them
	$(VENV)/coverage run -m pytest -q tests/core
	$(VENV)/coverage report --include='qubes_guestnet/core/*' --fail-under=100

# The tests beside the emulated machines. Those have priority: with half a processor they would miss their limits.
beside: unit
	nice -n 10 .venv-oldest/bin/python -m pytest -q -n 2 --dist worksteal tests/contract $(NETLINK_TESTS)

# One machine at a time, which leaves the other processor to `beside`.
emulated: setup-test
	$(VENV)/python -m pytest -q $(EMULATED)

quick: lint ## under a minute on two cores: lint, types, the pure tests, the uplink and one scenario in namespaces
	$(VENV)/python -m pytest -q $(PARALLEL) $(QUICK)
	$(VENV)/python -m qubes_guestnet lab run $(QUICK_SCENARIO)

# Each process writes a file. The figures are printed even if a test failed. The exit status is not 0 if a test failed,
# if core is below 100 % or if the rest is below 90 %.
coverage: export COVERAGE_FILE := $(CURDIR)/.coverage-all/data
coverage: export COVERAGE_RCFILE := $(CURDIR)/tests/coverage.toml
coverage: setup-test ## the lines and branches of all code that tests run, processes in namespaces included (long)
	rm -rf .coverage-all && mkdir .coverage-all
	$(VENV)/coverage run -m pytest -q $(PARALLEL) tests/core $(ISOLATED) || touch .coverage-all/failed
	$(VENV)/coverage combine --quiet
	$(VENV)/coverage report
	@echo "without core: $$($(VENV)/coverage report --format=total --omit='qubes_guestnet/core/*') %"
	$(VENV)/coverage report --include='qubes_guestnet/core/*' --fail-under=100
	@$(VENV)/coverage report --format=total --omit='qubes_guestnet/core/*' --fail-under=90 >/dev/null || \
		{ echo "less than 90 % outside of core" >&2; exit 1; }
	@[ ! -e .coverage-all/failed ] || { echo "tests failed: see above" >&2; exit 1; }

soak: setup-test ## the random walk, STEPS long (default 10000); SEED=N repeats a walk
	GUESTNET_SOAK_STEPS=$(STEPS) GUESTNET_SEED=$(SEED) $(VENV)/python -m pytest -m soak -s -o faulthandler_timeout=0

bench: ## each budget as one ratio measured side by side; fails when one is broken
	@tools/setup bench
	@PYTHONPATH=. $(VENV)/python -m bench

coverage-of-behaviours: setup-test ## which tests cover which behaviour and scenario; writes docs/behaviours.md
	@$(VENV)/python -m tools.behaviours --write docs/behaviours.md

changelog: setup-test ## what the release would say: newsfragments as towncrier collects them; writes nothing
	@$(VENV)/towncrier build --draft --version "$$(cat version)"

release: setup-test ## VERSION=X.Y.Z into every file that has one, newsfragments into CHANGELOG.md (docs/release.md)
	$(VENV)/python -m tools.new_version "$(VERSION)"
	@# The same sources packaged anew (VERSION=X.Y.Z-2) have no news.
	[ "$$(cat rel)" != 1 ] || $(VENV)/towncrier build --yes --version "$$(cat version)"

include tools/packaging.mk

setup-test:
	@tools/setup test

clean: ## remove the environments and everything built
	rm -rf .venv .venv-oldest .daemons build dist .coverage .coverage-all .hypothesis .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
