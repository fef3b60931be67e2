"""Values of registers while a warp is followed: integers that all lanes share, arrays of 32 lanes, or not known (None).

Registers are 32 bits, kept in Python integers or arrays of uint64 so that sums carry; predicates are bool or arrays of bool. What
is not known stays so: floating-point numbers, what other warps have left in shared memory, what memory holds of floats.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

Lanes: TypeAlias = np.ndarray
Value: TypeAlias = "int | Lanes | None"
Predicate: TypeAlias = "bool | Lanes | None"
Known: TypeAlias = "int | Lanes"

WORD = 0xFFFFFFFF
DOUBLE_WORD = (1 << 64) - 1
SIGN = 1 << 31


def as_lanes(value: Known) -> Lanes:
    """A register in every lane."""
    return value if isinstance(value, np.ndarray) else np.full(32, value, np.uint64)


def as_mask(value: bool | Lanes) -> Lanes:
    """A predicate in every lane."""
    return value if isinstance(value, np.ndarray) else np.full(32, value)


def is_true(value: Predicate) -> bool:
    """Whether it is known to hold in all lanes."""
    return value is True or (isinstance(value, np.ndarray) and bool(value.all()))


def is_false(value: Predicate) -> bool:
    """Whether it is known to hold in no lane."""
    return value is False or (isinstance(value, np.ndarray) and not value.any())


def settled(value: Predicate) -> Predicate:
    """The same, without lanes where all agree."""
    if is_true(value):
        return True
    return False if is_false(value) else value


def both(left: Predicate, right: Predicate) -> Predicate:
    """And, known where one of them decides."""
    if is_false(left) or is_false(right):
        return False
    return None if left is None or right is None else left & right


def either(left: Predicate, right: Predicate) -> Predicate:
    """Or, known where one of them decides."""
    if is_true(left) or is_true(right):
        return True
    return None if left is None or right is None else left | right


def opposite(value: Predicate) -> Predicate:
    """Not."""
    return None if value is None else value ^ True


def as_number(value: bool | Lanes) -> Known:
    """A predicate as 0 or 1, to be added."""
    return value.astype(np.uint64) if isinstance(value, np.ndarray) else int(value)


def choose(condition: bool | Lanes, left: Known, right: Known) -> Known:
    """``left`` where the condition holds."""
    if isinstance(condition, np.ndarray):
        return np.where(condition, as_lanes(left), as_lanes(right))
    return left if condition else right


def sign_extended(value: Known) -> Known:
    """32 bits with a sign as 64 bits."""
    return ((value ^ SIGN) - SIGN) & DOUBLE_WORD if isinstance(value, int) else (value ^ np.uint64(SIGN)) - np.uint64(SIGN)


def shifted_right(value: Known, bits: Known, is_signed: bool) -> Known:
    """64 bits shifted right, with copies of the sign or zeros."""
    if not is_signed:
        return value >> bits
    if isinstance(value, int) and isinstance(bits, int):
        return (value - ((value >> 63) << 64) >> bits) & DOUBLE_WORD
    return (as_lanes(value).view(np.int64) >> as_lanes(bits).view(np.int64)).view(np.uint64)


def as_float(value: Known) -> Lanes:
    """The bits of a register read as float32."""
    return as_lanes(value).astype(np.uint32).view(np.float32)


def from_float(value: Lanes) -> Lanes:
    """The bits of float32 numbers."""
    return value.astype(np.float32).view(np.uint32).astype(np.uint64)
