# Every target sets up what it needs: a virtual environment with torch as named in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo demo-real test check thorough generate cockpit lint-page e2e faults soak clean

demo: $(READY)  ## the whole main job on the embedded model, some minutes
	$(BIN)/scaler demo

demo-real: $(READY)  ## the same on SmolLM2-135M
	$(BIN)/scaler demo --model smollm2

test: $(READY)  ## the tests, in two processes
	$(BIN)/python -m pytest

thorough: $(READY)  ## of the slow tests and the campaigns of faults those that continuous integration runs as well
	$(BIN)/python -m pytest -m thorough

faults: $(READY)  ## kills, power cuts, full disks, flipped bits, all counts: an hour or two, root for all of it
	$(BIN)/python -m pytest -n 0 -m faults

soak: $(READY)  ## all of every campaign five times over, for hours; writes docs/reference/reliability.md
	$(BIN)/python tests/faults/reliability.py docs/reference/reliability.md --times 5

check: $(READY)  ## every static check: format, lint, types, layers, generated files; no test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_schemas.py --check
	$(BIN)/python scripts/generate_contract.py --check
	$(BIN)/python scripts/generate_growth.py --check

generate: $(READY)  ## write the generated files again
	$(BIN)/python scripts/generate_schemas.py
	$(BIN)/python scripts/generate_contract.py
	$(BIN)/python scripts/generate_growth.py
	$(BIN)/python tests/test_words.py

e2e: $(READY)  ## the cockpit in a real browser; needs chromium, and Node 20 or newer for axe
	$(BIN)/pip install --quiet -c constraints.txt -e '.[e2e]'
	test -d cockpit/node_modules || (cd cockpit && npm ci --no-audit --no-fund)
	$(BIN)/python -m pytest -m "e2e and not alone" -n 2 --dist worksteal tests/e2e
	$(BIN)/python -m pytest -m "e2e and alone" -n 0 tests/e2e

lint-page:  ## the page's own checks: lint, types, unit tests; needs Node 20 or newer
	cd cockpit && npm ci --no-audit --no-fund && npm run lint && npx tsc --noEmit && npm test

cockpit: generate  ## build the web page into the package again; needs Node 20 or newer
	cd cockpit && npm ci --no-audit --no-fund && npm run build && npm test

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:  ## remove the virtual environment; runs stay
	rm -rf $(VENV)
