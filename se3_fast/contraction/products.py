"""What the product of two degrees couples, channel by channel: its terms in one degree."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from se3_fast.so3 import wigner_3j


class ProductTerm(NamedTuple):
    """product[out] += coefficient * first[first] * second[second]; components counted from the first one of each degree."""

    first: int
    second: int
    out: int
    coefficient: float


@cache
def product_terms(degree: int, degree_first: int, degree_second: int) -> tuple[ProductTerm, ...]:
    """The part of ``degree`` of a product, of the size of its factors: 3j symbols times sqrt(2 degree + 1).

    Where one factor or the part is of degree 0 that is the plain product, and the scalar product over sqrt(2 degree_first + 1).
    """
    if degree_first == 0:
        return tuple(ProductTerm(0, component, component, 1.0) for component in range(2 * degree + 1))
    if degree == 0:
        size = 2 * degree_first + 1
        return tuple(ProductTerm(component, component, 0, 1 / math.sqrt(size)) for component in range(size))
    coupling = wigner_3j(degree, degree_first, degree_second) * math.sqrt(2 * degree + 1)
    return tuple(
        ProductTerm(first, second, out, float(coupling[out, first, second]))
        for out, first, second in coupling.abs().gt(1e-12).nonzero().tolist()
    )
