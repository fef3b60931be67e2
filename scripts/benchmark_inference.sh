#!/usr/bin/env bash
# Inference throughput and latency percentiles of a trained model: BATCH_SIZE=400 AMP=false scripts/benchmark_inference.sh
set -euo pipefail
exec python -m se3_fast.inference --benchmark --amp "${AMP:-true}" --batch_size "${BATCH_SIZE:-1600}" \
    --load_ckpt_path model_qm9.pth --silent "$@"
