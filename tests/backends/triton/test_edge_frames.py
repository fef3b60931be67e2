"""The angles of the edges' frames, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from se3_fast.backends.dense.edge_frames import edge_directions
from tests.ops.test_edge_frames import POLES_AND_AXES, directions
from tests.support import TRITON_DEVICE

pytest.importorskip("triton")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("length", [1.0, 1e-30, 1e30])
def test_angles_point_along_the_edge(dtype: torch.dtype, tolerance: float, length: float) -> None:
    from se3_fast.kernels.edge_frames import frame_angles

    unit = directions().to(dtype)
    cos_alpha, sin_alpha, cos_beta, sin_beta = frame_angles((length * unit).to(TRITON_DEVICE)).cpu()
    rebuilt = torch.stack([sin_beta * sin_alpha, cos_beta, sin_beta * cos_alpha], -1)
    torch.testing.assert_close(rebuilt, unit, rtol=0, atol=tolerance)
    torch.testing.assert_close(cos_alpha**2 + sin_alpha**2, torch.ones_like(cos_alpha), rtol=0, atol=tolerance)


def test_poles_have_alpha_zero_and_zero_length_has_no_angles() -> None:
    from se3_fast.kernels.edge_frames import frame_angles

    rel_pos = torch.cat([POLES_AND_AXES[:2], torch.zeros(1, 3, dtype=torch.float64)])
    angles = frame_angles(rel_pos.to(TRITON_DEVICE)).cpu()
    assert angles.T.tolist() == [[1, 0, 1, 0], [1, 0, -1, 0], [0, 0, 0, 0]]
    assert torch.equal(edge_directions(rel_pos)[2], torch.zeros(3, dtype=torch.float64))


def test_no_edges() -> None:
    from se3_fast.kernels.edge_frames import frame_angles

    assert frame_angles(torch.zeros(0, 3, device=TRITON_DEVICE)).shape == (4, 0)


def test_constants_of_the_kernels_that_are_compiled_ahead_of_time() -> None:
    from se3_fast.backends.triton.edge_frames import axis_swaps
    from se3_fast.kernels.edge_frames import SWAPS_TO_DEGREE_3

    assert axis_swaps(3) == pytest.approx(SWAPS_TO_DEGREE_3, abs=1e-14)
    assert [entry != 0 for entry in axis_swaps(3)] == [entry != 0 for entry in SWAPS_TO_DEGREE_3]
