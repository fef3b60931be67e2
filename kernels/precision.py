"""How kernels round: types of operands and of sums, precision of float32 products, sizes that the matrix unit wants."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}
"""Triton's types by PyTorch's."""

THREE_TERMS = "tf32x3"
"""Triton's name for float32 products as :func:`split_product_constants` has them."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
"""Those that kernels are compiled for, by Triton's names."""


@triton.jit
def add_product(left, right, total, PRECISION: tl.constexpr, OPERAND: tl.constexpr):
    """total + left @ right. OPERAND: the operands' type, but float32 for bfloat16 in the interpreter, which multiplies bits."""
    return tl.dot(left.to(OPERAND), right.to(OPERAND), total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def add_rounded_product(left, right, total, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr):
    """total + left @ right, both rounded to COMPUTE; OPERAND as for :func:`add_product`."""
    return add_product(left.to(COMPUTE), right.to(COMPUTE), total, PRECISION, OPERAND)


def is_half(dtype: torch.dtype) -> bool:
    """Whether products run on the matrix unit whatever the settings, and leave the registers to sums."""
    return dtype in (torch.float16, torch.bfloat16)


def is_tf32(dtype: torch.dtype) -> bool:
    """Whether products are rounded to TF32: float32 is multiplied as such, unless PyTorch is told that TF32 will do
    (``torch.backends.cuda.matmul.allow_tf32``)."""
    return dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sum_type(dtype: torch.dtype) -> tl.dtype:
    """The same as Triton's type."""
    return TYPES[sum_dtype(dtype)]


def product_constants(dtype: torch.dtype) -> dict[str, object]:
    """The constexpr arguments of a kernel that multiplies matrices of a dtype."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    operand = tl.float32 if is_interpreted and dtype == torch.bfloat16 else TYPES[dtype]
    return {"PRECISION": "tf32" if is_tf32(dtype) else "ieee", "OPERAND": operand, "SUM": sum_type(dtype)}


def split_product_constants(dtype: torch.dtype) -> dict[str, object]:
    """As :func:`product_constants`, but full float32 on the matrix unit: operands are split into two numbers of TF32, and three
    products of those added. As exact as float32, for kernels whose ordinary cores would wait for their operands. AMD's GPUs
    multiply as ever."""
    constants = product_constants(dtype)
    is_split = dtype == torch.float32 and constants["PRECISION"] == "ieee" and torch.version.hip is None
    return constants | {"PRECISION": THREE_TERMS} if is_split else constants


def padded(size: int, widest: int | None = None) -> int:
    """A side of a tile: a power of two from 16 on, as the matrix unit wants, and at most ``widest``."""
    smallest = max(triton.next_power_of_2(size), 16)
    return smallest if widest is None else min(smallest, widest)


def power_of_two_below(value: float) -> int:
    """The largest power of two not above ``value``; at least 1."""
    return 1 << max(math.floor(math.log2(value)), 0) if value > 0 else 1


class Rounding(NamedTuple):
    """How a launch rounds: the dtype, its name in Triton, and the precision of float32 products."""

    dtype: torch.dtype
    type_name: str
    precision: str = "ieee"

    @property
    def sum_name(self) -> str:
        """Triton's name of the type that sums, parameters, angles and constant tables have."""
        return "fp64" if self.dtype == torch.float64 else "fp32"

    @property
    def uses_matrix_unit(self) -> bool:
        """Whether products run on the matrix unit; full float32 does not, and float64 need not."""
        return is_half(self.dtype) or self.precision != "ieee"

    def split(self) -> Rounding:
        """The same where :func:`split_product_constants` are taken."""
        return self._replace(precision=THREE_TERMS) if self == ROUNDINGS["fp32"] else self

    def product_constants(self) -> dict[str, object]:
        """As :func:`product_constants`, compiled, with this precision."""
        return {"PRECISION": self.precision, "OPERAND": TYPES[self.dtype], "SUM": sum_type(self.dtype)}


ROUNDINGS = {
    "fp16": Rounding(torch.float16, "fp16"),
    "bf16": Rounding(torch.bfloat16, "bf16"),
    "fp32": Rounding(torch.float32, "fp32"),
    "tf32": Rounding(torch.float32, "fp32", "tf32"),
    "fp64": Rounding(torch.float64, "fp64"),
}
"""Those that kernels are compiled for, by name."""
