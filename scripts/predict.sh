#!/usr/bin/env bash
# Predictions of a trained model for the test set: scripts/predict.sh --load_ckpt_path model.pth
set -euo pipefail
exec python -m se3_fast.inference --amp --batch_size 240 --load_ckpt_path model_qm9.pth --output predictions.csv "$@"
