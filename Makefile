# make train   train on the sample data set          make test    run the tests, but for those that take long
# make test-fast   the tests of a minute or two      make coverage   which lines the tests run
# make bench   backends side by side                 make lint    ruff, mypy, shellcheck, hadolint
# make docs    the site of docs/ in build/site       make release  archive and wheel in dist/, checked
# make gpu     tests and measurements on a CUDA GPU, in the Python that has its PyTorch (PYTHON=...), which needs nothing installed;
#              OUT=... folder of the results, GPU_SECONDS=570 for all of it, ONLY="tests operations" sections of bench/gpu.py,
#              DATA_DIR=... folder of qm9_edge.npz, without which the sample is repeated
# make bench-gpu   the measurements alone, with the same options
# make gpu-rehearsal   the same program without a GPU, at tiny sizes, with rows that crash, hang and cannot be captured
# make reproduce   the published QM9 training run; PYTHON=..., DATA_DIR=... (else ./data), MINUTES=..., OPTIONS=... (docs/reproduce.md)
# make fuzz       backends against each other, files and runs under attack, for FUZZ_SECONDS=1200 on two cores, and the tests that
#                 take long (docs/reliability.md)
# make sanitize   the tests of the C++ operations under the address and undefined-behaviour sanitizers

PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 1200
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all

.PHONY: setup train test test-fast coverage fuzz bench bench-gpu gpu gpu-rehearsal reproduce sanitize lint docs release clean

setup: .venv/installed

.venv/installed: requirements-dev.txt setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*.h)
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

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --cov=se3_fast --cov-report=term-missing:skip-covered

fuzz: setup
	$(BIN)/python -m tests.fuzz $(FUZZ_SECONDS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m long

bench: setup
	$(BIN)/python -m bench

GPU_OPTIONS = $(addprefix --out ,$(OUT)) $(addprefix --data_dir ,$(DATA_DIR)) $(addprefix --seconds ,$(GPU_SECONDS))

gpu:
	SE3_FAST_CPP=0 $(PYTHON) -m bench.gpu $(GPU_OPTIONS) $(if $(ONLY),--only $(ONLY))

bench-gpu:
	SE3_FAST_CPP=0 $(PYTHON) -m bench.gpu $(GPU_OPTIONS) --only kernels throughput operations models memory rivals

gpu-rehearsal: setup
	$(BIN)/python -m bench.rehearsal --out $(or $(OUT),build/rehearsal)

reproduce:
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
	$(PYTHON) -m bench.reproduce $(addprefix --data_dir ,$(DATA_DIR)) $(addprefix --minutes ,$(MINUTES)) $(OPTIONS)

sanitize: setup
	CXXFLAGS="$(SANITIZE)" $(BIN)/python setup.py --quiet build_ext --build-lib build/sanitized
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 SE3_FAST_LIBRARY=build/sanitized/se3_fast/backends/cpp/operations.so \
	    $(BIN)/python -m pytest -q -s tests/backends/cpp tests/ops/test_depthwise_conv.py \
	    tests/ops/test_force_network.py tests/ops/test_trained_force_network.py -k "not triton"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck scripts/*.sh
	$(BIN)/hadolint Dockerfile

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

release: setup
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf .venv results build dist *.egg-info
