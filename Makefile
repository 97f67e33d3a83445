# Any Python from 3.11 on, those that the tests were run on first: PYTHON=... names another.
FITS := -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python \
	$(wildcard $(addsuffix /python3.[1-9][0-9],$(subst :, ,$(PATH)))); do $$python $(FITS) && { echo $$python; break; }; done)
NEEDED := needs Python 3.11 or newer with venv (on Debian and Ubuntu a package of its own, python3-venv): install one, or name it with PYTHON=/path/to/python3
BIN := .venv/bin

.PHONY: architecture demo test test-oldest types pytest guides clients dist tiny experiments bench bench-gpu clean

demo: .venv/ready
	$(BIN)/sdscissor demo --output-dir runs/demo

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --jobs 2 types pytest

types: .venv/ready
	$(BIN)/mypy

pytest: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Erase, load, export, eval with the lowest versions that pyproject.toml allows, torch apart (2.13 on a CPU): minutes.
OLDEST := tests/test_erase.py $(addprefix tests/test_inputs.py::test_, \
	an_erasure_from_our_own_export_is_measured_against_the_very_file \
	a_part_that_is_not_as_its_file_is_named_with_the_tensor \
	a_single_file_is_converted_with_names_that_former_releases_read_too \
	a_tokenizer_of_one_file_becomes_one_of_three \
	a_tokenizer_without_a_length_takes_the_encoder_s \
	what_is_erased_from_a_variant_has_its_names_and_the_very_same_base)

test-oldest: .venv-oldest/ready
	.venv-oldest/bin/python -m pytest $(OLDEST)

# Every block of docs/guides as written, on small stand-ins for the models that they name.
guides: .venv/ready
	$(BIN)/python -m pytest -m slow tests/test_guides.py

# ComfyUI's and kohya's own loaders on our files, from checkouts of yours: make clients COMFYUI=/path/to/ComfyUI KOHYA=/path/to/sd-scripts.
clients: .venv-clients/ready
	COMFYUI="$(COMFYUI)" KOHYA="$(KOHYA)" CLIENTS_PYTHON=.venv-clients/bin/python $(BIN)/python -m pytest -m slow -n 0 -rs -s tests/test_clients.py

# Wheel and sdist into dist/, with every file in them; the wheel installed where nothing is, and used.
dist: .venv/ready
	$(BIN)/python -m pytest -m slow tests/test_packages.py

# The embedded model again from nothing: seeded, CPU, about an hour on one core.
tiny: .venv/ready
	$(BIN)/python -m sd_scissorhands.tiny.train

# Every table of docs/experiments.md: a day on two cores. `python experiments/default.py --smoke` tries one in minutes.
experiments: .venv/ready
	$(BIN)/python experiments/default.py
	$(BIN)/python experiments/methods.py
	$(BIN)/python experiments/calibration.py
	$(BIN)/python experiments/models.py table

# The picture of docs/architecture.md, out of the package's imports.
architecture: .venv/ready
	$(BIN)/python docs/architecture.py

# The tables of docs/benchmarks.md: an hour and more on two cores, 20 GiB of memory.
bench: .venv/ready
	$(BIN)/python benchmarks/evaluations.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/proof.py
	$(BIN)/python benchmarks/scale.py selection projection growth
	$(BIN)/python benchmarks/steps.py
	$(BIN)/python benchmarks/formats.py
	$(BIN)/python benchmarks/first_steps.py

# Its table of a GPU: at most eight minutes; where there is none, it prints so and ends well.
bench-gpu: .venv/ready
	$(BIN)/python benchmarks/gpu.py

.venv/ready: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) $(FITS) || { echo "make $(NEEDED)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

.venv-oldest/ready: pyproject.toml tests/oldest.py
	@test -x .venv-oldest/bin/python || $(PYTHON) $(FITS) || { echo "make $(NEEDED)"; exit 1; }
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet torch==2.13.0
	.venv-oldest/bin/python tests/oldest.py > .venv-oldest/pins.txt
	.venv-oldest/bin/pip install --quiet --constraint .venv-oldest/pins.txt --editable . "pytest>=8"
	touch $@

# What these programs import beyond what is here, in the versions that kohya's scripts ask for; torchvision is a stub, see tests/clients.py.
CLIENTS := einops opencv-python-headless diffusers==0.32.1 transformers==4.54.1 tokenizers==0.21.4 huggingface-hub==0.34.3
.venv-clients/ready: .venv/ready
	test -x .venv-clients/bin/python || $(BIN)/python -m venv .venv-clients
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])" > "$$(.venv-clients/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")/ours.pth"
	.venv-clients/bin/pip install --quiet --no-deps $(CLIENTS)
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-clients runs
