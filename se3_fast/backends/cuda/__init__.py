"""Backend ``cuda``: the CUDA kernels of ``csrc/`` for compute capability 7.0 and 7.5 (docs/volta_turing.md)."""
