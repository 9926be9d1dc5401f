# `make demo` and `make test` do all set-up themselves. Everything lives in .venv; `make clean` removes it.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2

# Two test processes share two cores: torch's own threads would only get in each other's way.
TESTING := OMP_NUM_THREADS=1 FLWR_TELEMETRY_ENABLED=0 $(BIN)/pytest -n $(JOBS)

# The first Python 3.11 or 3.12 that can make a virtual environment; `make PYTHON=/path/to/python` overrides.
CAN_SERVE := import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	"$$p" -c '$(CAN_SERVE)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

.PHONY: demo test test-slow lint types layers check venv clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)  ## the main job on embedded data
	$(BIN)/fedsprig demo

test: $(INSTALLED)  ## all tests but the slow ones
	$(TESTING) -m "not slow"

test-slow: $(INSTALLED)  ## the slow tests
	$(TESTING) -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

layers: $(INSTALLED)
	$(BIN)/lint-imports

check: lint types layers test

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 with the module venv:" \
		"install one (Debian: python3-venv) or say make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "installing into $(VENV) with $(PYTHON): some minutes and 6 GB, most of it torch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find shared server client simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +
