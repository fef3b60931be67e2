"""What the product of two degrees couples, channel by channel: its terms in one degree."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.so3 import wigner_3j


class ProductTerm(NamedTuple):
    """product[out] += coefficient * first[first] * second[second]; components counted from the first one of each degree."""

    first: int
    second: int
    out: int
    coefficient: float


@constant
def product_coupling(degree: int, degree_first: int, degree_second: int) -> Tensor:
    """The part of ``degree`` of a product, of the size of its factors: 3j symbols times sqrt(2 degree + 1).

    Returns:
        [2 degree + 1, 2 degree_first + 1, 2 degree_second + 1] float64. Of scalars it is the plain product; in degree 0 the scalar
        product over sqrt(2 degree_first + 1).
    """
    return wigner_3j(degree, degree_first, degree_second) * math.sqrt(2 * degree + 1)


@cache
def product_terms(degree: int, degree_first: int, degree_second: int) -> tuple[ProductTerm, ...]:
    """The coefficients of :func:`product_coupling` that are not zero."""
    coupling = product_coupling(degree, degree_first, degree_second)
    return tuple(
        ProductTerm(first, second, out, float(coupling[out, first, second]))
        for out, first, second in coupling.abs().gt(1e-12).nonzero().tolist()
    )
