# `make demo` and `make test` need only Python >= 3.10 and make; both make the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test fuzz test-versions format clean

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
	$(BIN)/pytest

# 20,000 spoiled files of every kind, under a watchdog; a few minutes.
fuzz: install
	$(BIN)/python tests/fuzz/fuzz.py --inputs 20000

# The tests with the oldest and the newest dependencies claimed, on every Python that is here; downloads gigabytes.
test-versions: install
	$(BIN)/python tests/versions.py

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache
