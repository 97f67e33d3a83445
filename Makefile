PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lint tiny experiments bench clean

demo: .venv/ready
	$(BIN)/sdscissor demo --output-dir runs/demo

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The embedded model again from nothing: seeded, CPU, about an hour on one core.
tiny: .venv/ready
	$(BIN)/python -m sd_scissorhands.tiny.train

# Every table of docs/experiments.md.
experiments: .venv/ready
	$(BIN)/python benchmarks/experiments.py
	$(BIN)/python benchmarks/robust.py

# The table of docs/benchmarks.md.
bench: .venv/ready
	$(BIN)/python benchmarks/proof.py

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
