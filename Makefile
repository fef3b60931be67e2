# make train   train on the sample data set          make test    run the tests
# make bench   backends side by side                 make lint    ruff and mypy

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup train test bench lint clean

setup: .venv/installed

.venv/installed: requirements-dev.txt setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

train: setup
	$(BIN)/python -m se3_fast.train --dataset sample --task homo

test: setup
	$(BIN)/python -m pytest -n 2

bench: setup
	$(BIN)/python -m bench

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv results build dist *.egg-info
