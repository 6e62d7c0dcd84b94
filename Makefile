# Everything a person types. `make help` lists it. Each target does the set-up it needs, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(shell cksum requirements.lock pyproject.toml | cksum | cut -d' ' -f1)
ARGS   ?=
UV     := 0.13.9
export PYTHONSAFEPATH = 1

.PHONY: help setup demo test check bench chaos lock jars

help:     ## this list
	@awk -F':.*## ' '/^[a-z]+:.*##/ {printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) jars  ## the virtual environment and Kafka's jars (once; about 6.4 GB, torch with CUDA is most of it)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Slatecast needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "== virtual environment in $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check "uv==$(UV)" || { echo "uv could not be had: no package registry answers. Set PIP_INDEX_URL to a mirror and try again." >&2; exit 1; }
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes --no-deps -r requirements.lock || { echo "A locked package could not be had (named above). Set UV_INDEX_URL to a mirror that has it and try again." >&2; exit 1; }
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-* && touch $(STAMP)

jars: $(STAMP)
	@$(BIN)/slatecast kafka fetch

demo: setup  ## real baskets through real Kafka: lists, a click, the list after (ARGS='--fast --json')
	@$(BIN)/slatecast demo $(ARGS)

test: setup  ## the whole suite, on the real broker, in two processes (ARGS='-k name', or '-n 0' for one)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: setup  ## ruff, mypy --strict, import-linter: before every commit
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: setup  ## the hot path against Faust and a bare loop (ARGS='--json')
	@$(BIN)/slatecast bench hot-path $(ARGS)

chaos: setup  ## every fault at real workers on a real Kafka, about 15 minutes (ARGS='--json', '--only kills', '--quick')
	@PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

lock:  ## resolve again after a change of dependencies
	$(BIN)/uv pip compile pyproject.toml --extra bench --extra demo --extra dev --extra plots --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --only-binary :all: --no-annotate --upgrade -o requirements.lock
