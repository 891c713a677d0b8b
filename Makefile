# make quickstart: installs everything and runs the main job on real CT.
# make test:       installs everything and runs formatter, linter, type checker and all tests.
# make plans:      compiles full-size configs for absent TPU slices; see docs/plans.

PYTHON ?= python3
BIN := .venv/bin

# Packages are installed without bytecode (see .venv/runtime), so keep what imports compile.
export PYTHONDONTWRITEBYTECODE =

.PHONY: setup quickstart test plans format clean

setup: .venv/runtime

# XLA allocates buffers in every step. On Linux, large pages save up to a tenth of the step's time.
quickstart: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
quickstart: .venv/runtime
	$(BIN)/python run.py quickstart

test: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

# Renews only plans whose config has changed; each takes minutes.
plans: .venv/dev
	$(BIN)/python -m configs.plans

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build m3djax.egg-info

# The target is pip, because a venv has no pip if the system's Python has no ensurepip.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "m3djax needs Python 3.11 or newer. Cure: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# Stamp files are newer than their requirements, so a second make installs nothing. Python compiles
# modules at import; compiling all installed files would take as long as their installation.
.venv/runtime: requirements.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt requirements-plan.txt requirements.txt | .venv/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ .venv/runtime
