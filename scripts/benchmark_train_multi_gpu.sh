#!/usr/bin/env bash
# Training throughput of all GPUs of a machine; BATCH_SIZE, AMP and PROCESSES as in the other scripts.
set -euo pipefail
processes=${PROCESSES:-$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
exec python -m torch.distributed.run --standalone --nproc_per_node "$processes" -m se3_fast.train --benchmark \
    --amp "${AMP:-true}" --batch_size "${BATCH_SIZE:-240}" --epochs 16 --norm --use_layer_norm --precompute_bases --seed 42 "$@"
