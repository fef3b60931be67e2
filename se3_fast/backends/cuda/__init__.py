"""Backend ``cuda``: the CUDA kernels of ``csrc/`` for devices that Triton does not use well (docs/volta_turing.md)."""

from se3_fast.backends.cuda import library
from se3_fast.backends.protocol import Support


def available() -> Support:
    """Whether PyTorch sees a CUDA device and the kernels can be made ready for it."""
    reason = library.reason()
    if reason is not None:
        return Support.no(reason)
    return Support() if library.is_available() else Support.no("PyTorch sees no CUDA device")
