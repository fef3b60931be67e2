"""The published basis functions: ``get_basis`` and ``update_basis_with_fused``.

Formula and layouts: :mod:`se3_fast.reference.basis`. The models of this package need no bases; these serve code written for the
published implementation, and backend ``dense``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se3_fast.reference import basis as reference


def get_basis(
    relative_pos: Tensor,
    max_degree: int = 4,
    compute_gradients: bool = False,
    use_pad_trick: bool = False,
    amp: bool = False,
) -> dict[str, Tensor]:
    """The pairwise bases of all pairs of degrees 0..max_degree.

    Args:
        relative_pos: [E, 3] relative positions of the edges, any unit.
        max_degree: largest degree.
        compute_gradients: keep the graph to ``relative_pos``; otherwise the bases are constants.
        use_pad_trick: append one zero to the last axis (Tensor Core tiles).
        amp: return the autocast dtype of the device (float16 on CUDA, bfloat16 on the CPU unless set otherwise).

    Returns:
        ``{'d_in,d_out': [E, 2d_in+1, 2 min(d_in,d_out)+1, 2d_out+1 (+1 padded)]}``.

    Raises:
        ValueError: if ``relative_pos`` is not of shape [E, 3].
    """
    if relative_pos.ndim != 2 or relative_pos.shape[1] != 3:
        raise ValueError(f"relative_pos: expected shape [E, 3], got {list(relative_pos.shape)}")
    device_type = relative_pos.device.type
    with torch.set_grad_enabled(compute_gradients and torch.is_grad_enabled()), torch.autocast(device_type, enabled=False):
        bases = reference.pairwise_bases(relative_pos, max_degree, use_pad_trick)
    if amp:
        dtype = torch.get_autocast_dtype(device_type)
        return {key: basis.to(dtype) for key, basis in bases.items()}
    return bases


def update_basis_with_fused(basis: dict[str, Tensor], max_degree: int, use_pad_trick: bool, fully_fused: bool) -> dict[str, Tensor]:
    """The given pairwise bases and the fused ones made from them.

    Args:
        basis: pairwise bases as :func:`get_basis` returns them; left as it is.
        max_degree: largest degree.
        use_pad_trick: whether ``basis`` is padded.
        fully_fused: add the key ``fully_fused`` too.

    Returns:
        A new dict: the pairwise bases without ``'0,0'``, and for every degree d ``out{d}_fused`` and ``in{d}_fused``.

    Raises:
        ValueError: if ``use_pad_trick`` does not fit the bases.
    """
    is_padded = basis["0,0"].shape[-1] == 2
    if is_padded != use_pad_trick:
        raise ValueError(f"use_pad_trick: expected {is_padded}, as the bases were made, got {use_pad_trick}")
    fused = {key: tensor for key, tensor in basis.items() if key != "0,0"}
    for degree in range(max_degree + 1):
        fused[f"out{degree}_fused"] = reference.fused_over_inputs(basis, max_degree, degree)
        fused[f"in{degree}_fused"] = reference.fused_over_outputs(basis, max_degree, degree)
    if fully_fused:
        fused["fully_fused"] = reference.fully_fused(basis, max_degree)
    return fused
