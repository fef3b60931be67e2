"""Edge frames: directions and the rotation that takes the polar axis to each edge (DESIGN 1.1).

    D^d(alpha, beta) = Z(alpha) J_d Z(beta) J_d,   cos(beta) = y,  sin(beta) = sqrt(x^2 + z^2),  alpha = atan2(x, z)

for the unit vector (x, y, z) of the edge: J_d is constant, Z(a) holds cos(m a), sin(m a) on its two diagonals. No trigonometric
function is evaluated: multiples of an angle come from the angle-addition recursion. At the poles alpha = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se3_fast.so3 import axis_swap


def edge_directions(rel_pos: Tensor) -> Tensor:
    """Unit vectors of the edges, [E, 3]; a zero-length edge has no direction and gets (0, 0, 0), one that is not finite NaN.

    Differentiable, with gradient 0 at zero length.
    """
    # Scaled by the largest component first, so that squares neither overflow nor vanish.
    largest = rel_pos.detach().abs().amax(-1, keepdim=True)
    has_length = largest != 0  # also where it is NaN
    scaled = torch.where(has_length, rel_pos, 0.0) / torch.where(has_length, largest, 1.0)
    return scaled / torch.where(has_length, scaled.norm(dim=-1, keepdim=True), 1.0)


def wigner_blocks(direction: Tensor, max_degree: int) -> Tensor:
    """Wigner D of each edge's frame, all degrees side by side.

    Args:
        direction: [E, 3] unit vectors, or (0, 0, 0) where an edge has no direction.
        max_degree: largest degree.

    Returns:
        [E, sum of (2d+1)^2], the blocks of degree 0, 1, ... each row-major; all zero for an edge without direction.
    """
    x, y, z = direction.unbind(-1)
    sin_beta = torch.hypot(x, z)
    is_pole = sin_beta == 0
    safe = torch.where(is_pole, 1.0, sin_beta)
    alpha = _multiples(torch.where(is_pole, 1.0, z / safe), torch.where(is_pole, 0.0, x / safe), max_degree)
    beta = _multiples(y, sin_beta, max_degree)
    blocks = [_wigner_block(degree, alpha, beta).flatten(1) for degree in range(max_degree + 1)]
    has_direction = (direction != 0).any(-1, keepdim=True)
    return torch.cat(blocks, -1) * has_direction


def frame_angles(rel_pos: Tensor) -> Tensor:
    """cos(alpha), sin(alpha), cos(beta), sin(beta) of every edge, [4, E], from relative positions [E, 3]; zero at length zero."""
    direction = edge_directions(rel_pos)
    x, y, z = direction.unbind(-1)
    sin_beta = torch.hypot(x, z)
    is_pole = sin_beta == 0
    safe = torch.where(is_pole, 1.0, sin_beta)
    has_direction = (direction != 0).any(-1)
    cos_alpha = torch.where(is_pole, has_direction.to(y.dtype), z / safe)
    return torch.stack([cos_alpha, torch.where(is_pole, 0.0, x / safe), y, sin_beta])


def wigner_of_angles(angles: Tensor, max_degree: int) -> list[Tensor]:
    """Wigner D of the frames that angles describe, [E, 2d+1, 2d+1] of each degree d = 0..max_degree.

    Args:
        angles: [4, E] cos(alpha), sin(alpha), cos(beta), sin(beta).
        max_degree: largest degree.
    """
    cos_alpha, sin_alpha, cos_beta, sin_beta = angles
    alpha, beta = _multiples(cos_alpha, sin_alpha, max_degree), _multiples(cos_beta, sin_beta, max_degree)
    return [_wigner_block(degree, alpha, beta) for degree in range(max_degree + 1)]


def _multiples(cosine: Tensor, sine: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """cos(m a) and sin(m a), each [E, 2 count + 1], for m = count..-count (the order of e3nn's components, see Z)."""
    cosines, sines = [torch.ones_like(cosine)], [torch.zeros_like(sine)]
    for _ in range(count):
        cosines.append(cosines[-1] * cosine - sines[-1] * sine)
        sines.append(sines[-1] * cosine + cosines[-2] * sine)
    all_cosines = torch.stack(cosines[:0:-1] + cosines, -1)
    all_sines = torch.stack(sines[:0:-1] + [-sine_m for sine_m in sines], -1)
    return all_cosines, all_sines


def _wigner_block(degree: int, alpha: tuple[Tensor, Tensor], beta: tuple[Tensor, Tensor]) -> Tensor:
    """Z(alpha) J Z(beta) J of one degree, [E, 2d+1, 2d+1]."""
    swap = axis_swap(degree).to(alpha[0])
    return _turn_about_y(degree, alpha, swap @ _turn_about_y(degree, beta, swap.expand(len(alpha[0]), -1, -1)))


def _turn_about_y(degree: int, angle: tuple[Tensor, Tensor], matrices: Tensor) -> Tensor:
    """Z(angle) @ matrices, [E, 2d+1, n]: row i is cos(m a) row i + sin(m a) row -i, m = d..-d."""
    middle = angle[0].shape[-1] // 2
    cosine, sine = (values[:, middle - degree : middle + degree + 1, None] for values in angle)
    return cosine * matrices + sine * matrices.flip(1)
