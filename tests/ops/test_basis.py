from __future__ import annotations

import pytest
import torch

from se3_fast import get_basis, update_basis_with_fused
from se3_fast.so3 import alignment_map, num_paths


def rel_pos() -> torch.Tensor:
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_gradient_to_positions() -> None:
    positions = rel_pos().requires_grad_()

    def bases(relative: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(get_basis(relative, 2, compute_gradients=True).values())

    assert torch.autograd.gradcheck(bases, positions)


def test_bases_are_constants_unless_asked() -> None:
    positions = rel_pos().requires_grad_()
    assert not any(basis.requires_grad for basis in get_basis(positions, 1).values())


def test_caller_keeps_its_dict() -> None:
    basis = get_basis(rel_pos(), 1)
    fused = update_basis_with_fused(basis, 1, use_pad_trick=False, fully_fused=False)
    assert "0,0" in basis and "0,0" not in fused and "fully_fused" not in fused and "out0_fused" not in basis


def test_amp_gives_the_autocast_dtype() -> None:
    assert {basis.dtype for basis in get_basis(rel_pos().float(), 1, amp=True).values()} == {torch.bfloat16}


def test_wrong_padding_is_named() -> None:
    with pytest.raises(ValueError, match="use_pad_trick: expected True"):
        update_basis_with_fused(get_basis(rel_pos(), 1, use_pad_trick=True), 1, use_pad_trick=False, fully_fused=True)


@pytest.mark.parametrize("degree_in", range(5))
@pytest.mark.parametrize("degree_out", range(5))
def test_basis_on_the_polar_axis_has_the_aligned_pattern(degree_in: int, degree_out: int) -> None:
    """DESIGN 1.1: zero unless |m_in| = |m_out|; symmetric for even parity, antisymmetric for odd."""
    pole = torch.tensor([[0.0, 2.0, 0.0]], dtype=torch.float64)
    basis = get_basis(pole, max(degree_in, degree_out))[f"{degree_in},{degree_out}"][0]  # [l, f, k]
    smaller = min(degree_in, degree_out)
    expected = torch.zeros_like(basis)
    rows = alignment_map(degree_in, degree_out)
    for m in range(smaller + 1):
        for sign in (1, -1):
            expected[degree_in + sign * m, :, degree_out + sign * m] = rows[m]
            if m > 0:
                expected[degree_in + sign * m, :, degree_out - sign * m] += sign * rows[smaller + m]
    torch.testing.assert_close(basis, expected, rtol=0, atol=1e-14)
    assert rows.shape == (num_paths(degree_in, degree_out),) * 2
    assert torch.linalg.cond(rows) < 2**0.5 + 1e-9
