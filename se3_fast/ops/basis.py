"""The published basis functions: ``get_basis`` and ``update_basis_with_fused``.

Formula and layouts: :mod:`se3_fast.backends.dense.basis`. The models of this package need no bases; these serve code written for
the published implementation, and the formula of the convolution.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype, dtype_name
from se3_fast.autograd.modes import known_when_compiled, not_in_inference_mode
from se3_fast.backends import compiled
from se3_fast.backends.choice import implementation
from se3_fast.backends.dense.basis import connected, pairwise_keys
from se3_fast.ops.basis_origin import remember_fused, remember_pairwise


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
        ValueError: if ``relative_pos`` is not of shape [E, 3], or of a dtype that is not computed with.
    """
    if relative_pos.ndim != 2 or relative_pos.shape[1] != 3:
        raise ValueError(f"relative_pos: expected shape [E, 3], got {list(relative_pos.shape)}")
    check_dtype("relative_pos", relative_pos)
    with_gradients = compute_gradients and torch.is_grad_enabled()
    with not_in_inference_mode(), torch.set_grad_enabled(with_gradients):
        bases = _pairwise(relative_pos, max_degree, use_pad_trick, amp)
        remember_pairwise(bases, relative_pos)
    return bases


def _pairwise(rel_pos: Tensor, max_degree: int, is_padded: bool, amp: bool) -> dict[str, Tensor]:
    device_type = rel_pos.device.type
    dtype = torch.get_autocast_dtype(device_type) if amp else rel_pos.dtype
    if torch.compiler.is_compiling():
        operand = rel_pos if torch.is_grad_enabled() else rel_pos.detach()
        bases = compiled.pairwise_bases(_description(max_degree, is_padded, dtype), [operand])
        return dict(zip(pairwise_keys(max_degree), bases, strict=True))
    with torch.autocast(device_type, enabled=False):
        return connected(implementation("basis", rel_pos.device).pairwise(rel_pos, max_degree, is_padded, dtype), rel_pos)


@known_when_compiled
def _description(max_degree: int, is_padded: bool, dtype: torch.dtype) -> str:
    return json.dumps([max_degree, is_padded, dtype_name(dtype)])


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
        ValueError: if ``use_pad_trick`` does not fit the bases, or a basis is not of the shape that its key says.
    """
    is_padded = basis["0,0"].shape[-1] == 2
    if is_padded != use_pad_trick:
        raise ValueError(f"use_pad_trick: expected {is_padded}, as the bases were made, got {use_pad_trick}")
    is_grad_enabled = torch.is_grad_enabled()
    with not_in_inference_mode(), torch.set_grad_enabled(is_grad_enabled):
        fused = implementation("basis", basis["0,0"].device).fused(basis, max_degree, use_pad_trick, fully_fused)
        remember_fused(fused, basis)
    return {key: tensor for key, tensor in basis.items() if key != "0,0"} | fused
