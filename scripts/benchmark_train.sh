#!/usr/bin/env bash
# Training throughput in molecules per millisecond: BATCH_SIZE=120 AMP=false scripts/benchmark_train.sh
set -euo pipefail
exec python -m se3_fast.train --benchmark --amp "${AMP:-true}" --batch_size "${BATCH_SIZE:-240}" --epochs 16 \
    --norm --use_layer_norm --precompute_bases --seed 42 "$@"
