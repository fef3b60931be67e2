"""Triton kernels, one file per operation; installed as ``se3_fast.kernels``. They depend on torch and triton only."""
