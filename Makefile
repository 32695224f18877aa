# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo test test-slow fuzz lint types package check format clean

setup: $(VENV)/.done

$(VENV)/.done: requirements.txt pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	rm -rf runs/demo
	$(BIN)/upsnet train --config shapes_r18 --output runs/demo
	$(BIN)/upsnet evaluate --checkpoint runs/demo/model.pt --output runs/demo
	$(BIN)/upsnet convert shapes --output runs/demo/images --split val --num-images 8 --seed 1
	$(BIN)/upsnet predict --checkpoint runs/demo/model.pt --input runs/demo/images/val --output runs/demo/overlays
	$(BIN)/upsnet export --checkpoint runs/demo/model.pt --format checkpoint --output runs/demo/exported.pt

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Damaged files and documents, for FUZZ_SECONDS of each test: 20 minutes on two cores.
FUZZ_SECONDS ?= 180
fuzz: setup
	UPSNET_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest -n 2 --dist load tests/fuzz

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Builds sdist and wheel, and uses the wheel in an empty folder.
package: setup
	bash .ci/check_wheel

check: lint types test

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
