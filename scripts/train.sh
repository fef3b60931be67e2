#!/usr/bin/env bash
# The published QM9 training on one GPU (or the CPU). More options replace these: scripts/train.sh --epochs 10 --dataset sample
set -euo pipefail
exec python -m se3_fast.train --amp --norm --use_layer_norm --batch_size 240 --epochs 100 --lr 0.002 --weight_decay 0.1 \
    --num_layers 7 --num_degrees 4 --num_channels 32 --num_heads 8 --precompute_bases --eval_interval 25 \
    --seed 42 --save_ckpt_path model_qm9.pth "$@"
