# make quickstart: sets everything up and runs the main job on real CT.
# make test:       sets everything up and runs formatter, linter, type checker and all tests.
# make plans:      compiles full-size configs for TPU slices that are not there; see docs/plans.

PYTHON ?= python3
BIN := .venv/bin

# Whatever the shell says: who compiles nothing ahead, see .venv/runtime, must keep what is compiled.
export PYTHONDONTWRITEBYTECODE =

.PHONY: setup quickstart test plans format clean

setup: .venv/runtime

# Large pages for what XLA allocates anew in every step: up to a tenth of the time on Linux, nothing elsewhere.
quickstart: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
quickstart: .venv/runtime
	$(BIN)/python run.py quickstart

test: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

# Only plans whose config has changed; each takes minutes.
plans: .venv/dev
	$(BIN)/python -m configs.plans

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build m3djax.egg-info

# pip is what a venv lacks when the system's Python comes without ensurepip.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "m3djax needs Python 3.11 or newer. Cure: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# The stamps are newer than the requirements they stand for, so a second make installs nothing.
# Python compiles what it imports; to compile all that is installed would take as long as to install.
.venv/runtime: requirements.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt requirements-plan.txt requirements.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ .venv/runtime
