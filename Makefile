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
	$(BIN)/python -m se3_fast.train --dataset sample --task homo --num_layers 2 --num_degrees 3 --num_channels 16 --num_heads 4 \
	    --norm --use_layer_norm --batch_size 32 --lr 0.003 --weight_decay 0.01 --epochs 8 --eval_interval 1 --ckpt_interval 1 \
	    --num_workers 0 --seed 1 --log_dir results --save_ckpt_path results/model.pth

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

bench: setup
	$(BIN)/python -m bench

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv results build dist *.egg-info
