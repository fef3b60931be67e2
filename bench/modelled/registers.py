"""The registers of a warp as one list, and operands as functions that read it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from bench.modelled.values import WORD, opposite

State: TypeAlias = list[Any]
Constants: TypeAlias = dict[tuple[int, int], "int | None"]
"""Words of 32 bits by bank and offset: bank 0 has the launch and its parameters, bank 2 tables of the compiler."""

Getter: TypeAlias = Callable[[State], Any]

_FIRST = {"R": 0, "UR": 256, "P": 320, "UP": 328}
DISCARDED = 336
"""Where results go that are written to no register."""

SPECIAL = {"SR_TID.X": 337, "SR_LANEID": 338, "SR_CTAID.X": 339, "SR_CTAID.Y": 340, "SR_CTAID.Z": 341}
"""Special registers that differ between threads or programs."""

ALWAYS_ZERO = ("SR_TID.Y", "SR_TID.Z", "SR_CgaCtaId", "SRZ")
SIZE = 342
_OPERAND = re.compile(r"([-~!|]*)(U?[RP])(\d+|Z|T)(\.\S+?)?\|?$")
_CONSTANT = re.compile(r"([-~]?)c\[0x([0-9a-f]+)\]\[(U?R[\dZ]+)?\+?(?:0x([0-9a-f]+))?\]$")
_IMMEDIATE = re.compile(r"(-?)0x([0-9a-f]+)$")


def first_state(program: tuple[int, int, int], warp: int) -> State:
    """Registers of a warp at the start of a program: unknown; predicates do not hold."""
    state: State = [None] * _FIRST["P"] + [False] * (SIZE - _FIRST["P"])
    lanes = np.arange(32, dtype=np.uint64)
    for name, value in zip(SPECIAL, (lanes + np.uint64(32 * warp), lanes, *program), strict=True):
        state[SPECIAL[name]] = value
    return state


def slot(operand: str, following: int = 0) -> int:
    """Where a destination is kept; ``following``: so many registers after it."""
    found = _OPERAND.match(operand)
    if found is None or found[3] in "ZT":
        return DISCARDED
    return _FIRST[found[2]] + int(found[3]) + following


def is_predicate(operand: str) -> bool:
    """Whether an operand is a predicate."""
    found = _OPERAND.match(operand)
    return found is not None and found[2] in ("P", "UP")


def predicate(operand: str) -> Getter:
    """A function that reads a predicate."""
    found = _OPERAND.match(operand)
    if found is None:
        return lambda state: None
    negated = "!" in found[1]
    if found[3] == "T":
        return lambda state: not negated
    place = slot(operand)
    if negated:
        return lambda state: opposite(state[place])
    return lambda state: state[place]


def register(operand: str, constants: Constants, following: int = 0) -> Getter:
    """A function that reads 32 bits: a register, a constant of the launch, or a number in the instruction.

    Args:
        operand: as written.
        constants: of the launch; what is missing in bank 0 is 0.
        following: 1 for the upper half of 64 bits.
    """
    if found := _OPERAND.match(operand):
        if found[3] == "Z":
            return _signed(lambda state: 0, found[1])
        place = slot(operand, following)
        return _signed(lambda state: state[place], found[1])
    if found := _CONSTANT.match(operand):
        bank, offset = int(found[2], 16), int(found[4] or "0", 16) + 4 * following
        missing = 0 if bank == 0 else None
        if found[3] is None:
            constant = constants.get((bank, offset), missing)
            return _signed(lambda state: constant, found[1])
        index = register(found[3], constants)
        return lambda state: constants.get((bank, place + offset), missing) if isinstance(place := index(state), int) else None
    if found := _IMMEDIATE.match(operand):
        number = int(found[1] + found[2], 16) >> 32 * following & WORD
        return lambda state: number
    return lambda state: None


def _signed(get: Getter, sign: str) -> Getter:
    if sign == "-":
        return lambda state: None if (value := get(state)) is None else (value ^ WORD) + 1 & WORD
    if sign == "~":
        return lambda state: None if (value := get(state)) is None else value ^ WORD
    return get if sign == "" else lambda state: None
