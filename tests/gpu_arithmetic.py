"""Triton's interpreter with the arithmetic of a GPU, where that is less exact than a CPU's.

In float32 a GPU divides, and takes roots and exponentials, to two units in the last place; the interpreter rounds correctly, so
that a test could rest on what no GPU does. Here every such result is off by up to two units, by a number that depends on its bits
alone: two runs stay the same to the last bit. An exponential is one to the base 2, of a rounded product, as Triton compiles it.
Products of float32 in three terms of TF32 are those of the matrix unit, which cuts sums off instead of rounding them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_UNITS = 2
"""In the last place, by which a result is off."""

SUMMED_AT_ONCE = 4
"""Products that the matrix unit adds to a sum at once: cut off to the bits of the largest of them, then to float32."""

Values = NDArray[Any]


def off(values: Values) -> Values:
    """Float32 numbers that are off by up to :data:`MOST_UNITS`; zeros, infinities and NaN stay, as do other dtypes."""
    if values.dtype != np.float32:
        return values
    bits = values.view(np.int32)
    mixed = bits.astype(np.uint32) * np.uint32(2654435761)  # the top bits of a product with a large odd number look random
    units = (mixed >> np.uint32(8)).astype(np.int64) % (2 * MOST_UNITS + 1) - MOST_UNITS
    is_off = np.isfinite(values) & (np.abs(values) > 2 * np.finfo(np.float32).tiny) & (np.abs(values) < 1e38)
    return np.where(is_off, bits + units, bits).astype(np.int32).view(np.float32)


def exponential(values: Values) -> Values:
    """e^x as 2^(x log2 e); 1 for 0, as CUDA promises."""
    if values.dtype != np.float32:
        return np.exp(values)
    return np.where(values == 0, np.float32(1), off(np.exp2(values * np.float32(np.log2(np.e)))))


def tf32(values: Values) -> Values:
    """Float32 numbers rounded to the 11 bits of TF32, halves away from zero."""
    bits = values.view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)


def cut_off(values: Values, quantum: Values) -> Values:
    """Float64 numbers cut off, towards zero, to multiples of a quantum."""
    return np.trunc(values / quantum) * quantum


def add_on_matrix_unit(left: Values, right: Values, total: Values) -> Values:
    """total + left @ right of TF32 numbers, in float64 that holds float32 numbers."""
    for start in range(0, left.shape[-1], SUMMED_AT_ONCE):
        part = slice(start, start + SUMMED_AT_ONCE)
        terms = left[..., :, part, None].astype(np.float64) * right[..., None, part, :]
        terms = np.concatenate([terms, total[..., :, None, :]], axis=-2)
        _, exponent = np.frexp(np.abs(terms).max(-2, keepdims=True))
        total = cut_off(terms, np.ldexp(1.0, exponent - 25)).sum(-2)
        _, exponent = np.frexp(total)
        total = cut_off(total, np.ldexp(1.0, exponent - 24))
    return total


def three_terms(left: Values, right: Values) -> Values:
    """left @ right of float32 numbers, each of which is the sum of two of TF32; the product of the small ones is left out."""
    large_left, large_right = tf32(left), tf32(right)
    small_left, small_right = tf32(left - large_left), tf32(right - large_right)
    total = np.zeros((*left.shape[:-1], right.shape[-1]))
    for first, second in ((small_left, large_right), (large_left, small_right), (large_left, large_right)):
        total = add_on_matrix_unit(first, second, total)
    return total.astype(np.float32)


def install() -> None:
    """From now on the interpreter computes like that."""
    from triton._C.libtriton import ir
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    product = builder.create_dot
    of_one = {
        "create_exp": exponential,
        "create_exp2": lambda x: off(np.exp2(x)),
        "create_log": lambda x: off(np.log(x)),
        "create_log2": lambda x: off(np.log2(x)),
        "create_sqrt": lambda x: off(np.sqrt(x)),
        "create_rsqrt": lambda x: off(np.reciprocal(np.sqrt(x))),
        "create_sin": lambda x: off(np.sin(x)),
        "create_cos": lambda x: off(np.cos(x)),
    }
    for name, function in of_one.items():
        setattr(builder, name, lambda self, x, function=function: self.unary_op(x, function))
    builder.create_fdiv = lambda self, left, right: self.binary_op(left, right, lambda x, y: off(np.divide(x, y)))

    def dot(self: Any, left: Any, right: Any, total: Any, precision: Any, *options: Any) -> Any:
        if precision != ir.INPUT_PRECISION.TF32x3 or total.data.dtype != np.float32:
            return product(self, left, right, total, precision, *options)
        return interpreter.TensorHandle(three_terms(left.data, right.data) + total.data, total.dtype.scalar)

    builder.create_dot = dot
