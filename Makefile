# Any Python from 3.11 on: PYTHON=... names another.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
BIN := .venv/bin

.PHONY: architecture demo test types pytest guides dist tiny experiments bench bench-gpu clean

demo: .venv/ready
	$(BIN)/sdscissor demo --output-dir runs/demo

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs 2 types pytest

types: .venv/ready
	$(BIN)/mypy

pytest: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Every block of docs/guides as written, on small stand-ins for the models that they name.
guides: .venv/ready
	$(BIN)/python -m pytest -m slow tests/test_guides.py

# Wheel and sdist into dist/, with every file in them; the wheel installed where nothing is, and used.
dist: .venv/ready
	$(BIN)/python -m pytest -m slow tests/test_packages.py

# The embedded model again from nothing: seeded, CPU, about an hour on one core.
tiny: .venv/ready
	$(BIN)/python -m sd_scissorhands.tiny.train

# Every table of docs/experiments.md: a day on two cores. `python experiments/robust.py --smoke` tries one in minutes.
experiments: .venv/ready
	$(BIN)/python experiments/robust.py
	$(BIN)/python experiments/unseen.py
	$(BIN)/python experiments/methods.py
	$(BIN)/python experiments/families.py

# The picture of docs/architecture.md, out of the package's imports.
architecture: .venv/ready
	$(BIN)/python docs/architecture.py

# The tables of docs/benchmarks.md: an hour and more on two cores, 20 GiB of memory.
bench: .venv/ready
	$(BIN)/python benchmarks/proof.py
	$(BIN)/python benchmarks/scale.py selection projection growth
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/formats.py

# Its table of a GPU: at most eight minutes; where there is none, it prints so and ends well.
bench-gpu: .venv/ready
	$(BIN)/python benchmarks/gpu.py

.venv/ready: pyproject.toml
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or name it with PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
