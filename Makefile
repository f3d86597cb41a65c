# `make demo` and `make test` need only Python >= 3.10 and make; both make the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-gpu bench-gpu test-networks docs fuzz test-versions test-extras format clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

demo: install
	$(BIN)/embedcam demo

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -r fEs -n 2 --dist loadfile

# The tests that depend on the device, on the GPU; an error without one.
test-gpu: install
	$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'test-gpu: torch finds no CUDA GPU here, nothing was tested')"
	$(BIN)/pytest -m gpu

# Explanations, builds, indexes and matches timed on the GPU, under 6 minutes; an error without one.
bench-gpu: install
	$(BIN)/python benchmarks/gpu.py

# Networks of every family that timm, torchvision, transformers and OpenCLIP have; a quarter of an hour.
test-networks: install
	$(BIN)/python -m pip install --quiet --no-deps facenet-pytorch torchreid
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m networks tests/networks

# The documentation, and every command, snippet, notebook and benchmark that it shows.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/pytest -m docs

$(VENV)/.installed-docs: install pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@

# 20,000 spoiled files of every kind, under a watchdog; a few minutes.
fuzz: install
	$(BIN)/python tests/fuzz/fuzz.py --inputs 20000

# The tests with the oldest and the newest dependencies claimed, on every Python that is here; downloads gigabytes.
test-versions: install
	$(BIN)/python tests/versions.py

# Each extra alone, in an environment of its own; downloads gigabytes.
test-extras: install
	$(BIN)/python tests/extras.py

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache
