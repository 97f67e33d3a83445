PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test types pytest guides dist tiny experiments bench bench-gpu clean

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
	$(BIN)/python benchmarks/guides.py

# Wheel and sdist into dist/, with every file in them; the wheel installed where nothing is, and used.
dist: .venv/ready
	$(BIN)/python benchmarks/packages.py

# The embedded model again from nothing: seeded, CPU, about an hour on one core.
tiny: .venv/ready
	$(BIN)/python -m sd_scissorhands.tiny.train

# Every table of docs/experiments.md.
experiments: .venv/ready
	$(BIN)/python benchmarks/experiments.py
	$(BIN)/python benchmarks/robust.py
	$(BIN)/python benchmarks/unseen.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/families.py

# The tables of docs/benchmarks.md: an hour and more on two cores, 20 GiB of memory.
bench: .venv/ready
	$(BIN)/python benchmarks/proof.py
	$(BIN)/python benchmarks/scale.py selection projection growth
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/formats.py

# Its table of a GPU: at most eight minutes; says so where there is none.
bench-gpu: .venv/ready
	$(BIN)/python benchmarks/gpu.py

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
