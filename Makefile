# Two commands do everything on a fresh machine: `make bench` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bench test test-processes test-rest lint install clean

# The stamp is newer than pyproject.toml exactly when the environment matches it.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@# torch comes first and alone: where a CPU wheel is at hand pip takes it, and nothing later replaces it.
	$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

install: $(VENV)/.installed

bench: install
	$(BIN)/gyges bench ablation

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Both at once: tests that start processes wait for much of their time, and the others need one core.
test: lint
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-processes test-rest

test-processes: install
	$(BIN)/python -m pytest -m engine

test-rest: install
	$(BIN)/python -m pytest -m "not engine"

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
