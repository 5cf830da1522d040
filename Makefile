# Both targets do all their set-up on a fresh machine: Python 3.11 or newer with venv is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: setup demo test nightly lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[rgb,train,sim,diffusion,dev]'
	touch $@

# Mixed shards and a report from nothing: bundled hand, scenes, generator and estimator. About five minutes on two cores.
demo: setup
	$(BIN)/pam-aug build demo --ratio 0.5 --out demo-out
	@echo "Open demo-out/report/index.html"

test: setup
	$(BIN)/python -m pytest

# The reliability tests with their full figures: two and a half hours, of which the fuzzers take one and a half.
nightly: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

clean:
	rm -rf demo-out build dist *.egg-info
