#!/usr/bin/env bash
# The published QM9 training on all GPUs of a machine: one process each (PROCESSES=2 for another number).
set -euo pipefail
processes=${PROCESSES:-$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
exec python -m torch.distributed.run --standalone --nproc_per_node "$processes" -m se3_fast.train \
    --amp --norm --use_layer_norm --batch_size 240 --epochs 130 --lr 0.01 --min_lr 0.00001 --weight_decay 0.1 \
    --num_layers 7 --num_degrees 4 --num_channels 32 --num_heads 8 --precompute_bases --eval_interval 25 \
    --seed 42 --save_ckpt_path model_qm9.pth "$@"
