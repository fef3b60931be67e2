"""What the instructions for integers, addresses and predicates compute. Those for floating-point numbers are not here: their
results are not known.

Each entry of :data:`MEANINGS` makes of an instruction's operands a function of values; an unknown source makes all results unknown,
but where the function decides for itself (``is_partial``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bench.modelled.listing import Instruction
from bench.modelled.registers import ALWAYS_ZERO, DISCARDED, SPECIAL, Constants, Getter, is_predicate, predicate, register, slot
from bench.modelled.values import (
    DOUBLE_WORD,
    SIGN,
    WORD,
    Known,
    Predicate,
    as_float,
    as_lanes,
    as_number,
    both,
    choose,
    either,
    from_float,
    opposite,
    shifted_right,
    sign_extended,
)

Reader: TypeAlias = Callable[..., Getter]


class Meaning(NamedTuple):
    """Registers read, what is computed of them (one result for each destination), and where it goes."""

    sources: tuple[Getter, ...]
    function: Callable[..., tuple[Any, ...]]
    destinations: tuple[int, ...]
    is_partial: bool = False


def meaning_of(instruction: Instruction, constants: Constants) -> Meaning | None:
    """What an instruction computes; None where it is not known.

    Args:
        instruction: any.
        constants: of the launch.
    """
    name = instruction.name
    of_scalars = name.removeprefix("U") if name.startswith("U") else name
    make = MEANINGS.get(name) or MEANINGS.get(of_scalars)
    return None if make is None else make(instruction, partial(register, constants=constants))


# sums and products -----------------------------------------------------------------------------------------------------------


def _add3(instruction: Instruction, read: Reader) -> Meaning:
    first, *rest = instruction.operands
    carries_out = []
    while is_predicate(rest[0]):
        carries_out.append(slot(rest.pop(0)))
    negative = [operand.startswith("-") and not operand.startswith("-0x") for operand in rest[:3]]
    terms = [read("~" + operand[1:] if is_negative else operand) for operand, is_negative in zip(rest, negative, strict=False)]
    carries_in = [predicate(operand) for operand in rest[3:]] if "X" in instruction.modifiers else []
    more = sum(negative)

    def add(left: Known, right: Known, third: Known, *carries: bool) -> tuple[Any, ...]:
        total = left + right + third + more
        for carry in carries:
            total = total + as_number(carry)
        return (total & WORD, *((total >> 32) > place for place in range(len(carries_out))))

    return Meaning((*terms, *carries_in), add, (slot(first), *carries_out))


def _multiply_add(instruction: Instruction, read: Reader) -> Meaning:
    first, *rest = instruction.operands
    is_signed = "U32" not in instruction.modifiers
    carry_out = slot(rest.pop(0)) if is_predicate(rest[0]) else None
    factors = (read(rest[0]), read(rest[1]), read(rest[2]))
    if "WIDE" in instruction.modifiers or "HI" in instruction.modifiers:
        is_high = "HI" in instruction.modifiers

        def widely(left: Known, right: Known, low: Known, high: Known) -> tuple[Any, ...]:
            if is_signed:
                left, right = sign_extended(left), sign_extended(right)
            product = left * right & DOUBLE_WORD
            total = product + (low | high << 32) & DOUBLE_WORD
            results = (total >> 32,) if is_high else (total & WORD, total >> 32)
            return results if carry_out is None else (*results, total < product)

        places = (slot(first),) if is_high else (slot(first), slot(first, 1))
        return Meaning((*factors, read(rest[2], following=1)), widely, places if carry_out is None else (*places, carry_out))
    carry = (predicate(rest[3]),) if "X" in instruction.modifiers and len(rest) > 3 else ()

    def narrowly(left: Known, right: Known, third: Known, *carries: bool) -> tuple[Any, ...]:
        return ((left * right + third + sum(map(as_number, carries))) & WORD,)

    return Meaning((*factors, *carry), narrowly, (slot(first),))


def _shift_add(instruction: Instruction, read: Reader) -> Meaning:
    """LEA: a shifted left by a constant, and b added; of 64 bits the upper half with ``HI``."""
    first, *rest = instruction.operands
    modifiers = instruction.modifiers
    carry_out = slot(rest.pop(0)) if is_predicate(rest[0]) else DISCARDED
    carry_in = (predicate(rest.pop()),) if "X" in modifiers else ()
    bits = int(rest.pop(), 16)
    is_high, extends = "HI" in modifiers, "SX32" in modifiers
    top = read(rest[2]) if is_high and len(rest) > 2 else lambda state: 0

    def add(low: Known, base: Known, high: Known, *carries: bool) -> tuple[Any, ...]:
        wide = sign_extended(low) if extends else low | high << 32
        part = ((wide << bits) & DOUBLE_WORD) >> 32 if is_high else (low << bits) & WORD
        total = part + base + sum(map(as_number, carries))
        return total & WORD, total > WORD

    return Meaning((read(rest[0]), read(rest[1]), top, *carry_in), add, (slot(first), carry_out))


def _add2(instruction: Instruction, read: Reader) -> Meaning:
    first, left, right = instruction.operands[:3]
    return Meaning((read(left), read(right)), lambda x, y: ((x + y) & WORD,), (slot(first),))


def _absolute(instruction: Instruction, read: Reader) -> Meaning:
    first, source = instruction.operands

    def absolute(value: Known) -> tuple[Any, ...]:
        return (choose((value & SIGN) != 0, (value ^ WORD) + 1 & WORD, value),)

    return Meaning((read(source),), absolute, (slot(first),))


# bits ------------------------------------------------------------------------------------------------------------------------


_FREQUENT_TABLES: dict[int, Callable[[Known, Known, Known], Known]] = {
    0xC0: lambda x, y, z: x & y,
    0xFC: lambda x, y, z: x | y,
    0x3C: lambda x, y, z: x ^ y,
    0x96: lambda x, y, z: x ^ y ^ z,
    0xFE: lambda x, y, z: x | y | z,
    0xF8: lambda x, y, z: x | y & z,
    0xEA: lambda x, y, z: x & y | z,
    0x80: lambda x, y, z: x & y & z,
}
"""Truth tables of three bits: bit 4x + 2y + z is the result of x, y and z."""


@cache
def _logic(table: int) -> Callable[[Known, Known, Known], Known]:
    if table in _FREQUENT_TABLES:
        return _FREQUENT_TABLES[table]

    def of_table(x: Known, y: Known, z: Known) -> Known:
        result: Known = 0
        for bits in range(8):
            if table >> bits & 1:
                terms = (value if bits & place else value ^ WORD for value, place in ((x, 4), (y, 2), (z, 1)))
                left, middle, right = terms
                result = result | left & middle & right
        return result

    return of_table


def _logic3(instruction: Instruction, read: Reader) -> Meaning:
    operands = list(instruction.operands)
    is_nonzero = slot(operands.pop(0)) if is_predicate(operands[0]) else DISCARDED
    first, left, middle, right, table = operands[:5]
    compute = _logic(int(table, 16))

    def evaluate(x: Known, y: Known, z: Known) -> tuple[Any, ...]:
        result = compute(x, y, z)
        return result, result != 0

    return Meaning((read(left), read(middle), read(right)), evaluate, (slot(first), is_nonzero))


def _shift(instruction: Instruction, read: Reader) -> Meaning:
    first, low, bits, high = instruction.operands
    modifiers = instruction.modifiers
    is_left, is_high = "L" in modifiers, "HI" in modifiers
    is_wide, is_signed = "U64" in modifiers or "S64" in modifiers, "S32" in modifiers or "S64" in modifiers

    def left(x: Known, n: Known, z: Known) -> tuple[Any, ...]:
        n = n & 63
        if is_wide:
            value = ((x | z << 32) << n) & DOUBLE_WORD
            return (value >> 32 if is_high else value & WORD,)
        return ((z if is_high else x) << n & WORD,)

    def right(x: Known, n: Known, z: Known) -> tuple[Any, ...]:
        n = n & 63
        if is_high and not is_wide:
            return (shifted_right(sign_extended(z) if is_signed else z, n, is_signed) & WORD,)
        value = shifted_right(x | z << 32, n, is_signed)
        return (value >> 32 & WORD if is_high else value & WORD,)

    return Meaning((read(low), read(bits), read(high)), left if is_left else right, (slot(first),))


def _permute_bytes(instruction: Instruction, read: Reader) -> Meaning:
    first, low, selector, high = instruction.operands

    def permute(x: Known | None, chosen: Known | None, z: Known | None) -> tuple[Any, ...]:
        if not isinstance(chosen, int):
            return (None,)
        places = [chosen >> 4 * byte & 15 for byte in range(4)]
        needs_low, needs_high = any(place & 7 < 4 for place in places), any(place & 7 >= 4 for place in places)
        if (needs_low and x is None) or (needs_high and z is None):
            return (None,)
        both_words = (0 if x is None else x) | (0 if z is None else z) << 32
        result: Known = 0
        for byte, place in enumerate(places):
            found = both_words >> 8 * (place & 7) & 255
            result = result | (choose((found & 128) != 0, 255, 0) if place & 8 else found) << 8 * byte
        return (result,)

    return Meaning((read(low), read(selector), read(high)), permute, (slot(first),), is_partial=True)


def _sign_extend(instruction: Instruction, read: Reader) -> Meaning:
    first, source, bits = instruction.operands
    width = int(bits, 16)
    is_signed = "U32" not in instruction.modifiers

    def extend(value: Known) -> tuple[Any, ...]:
        kept = value & (1 << width) - 1
        return (((kept ^ 1 << width - 1) + (WORD + 1 - (1 << width - 1))) & WORD if is_signed else kept,)

    return Meaning((read(source),), extend, (slot(first),))


# predicates ------------------------------------------------------------------------------------------------------------------


_COMPARISONS: dict[str, Callable[[Known, Known], Any]] = {
    "LT": lambda x, y: x < y,
    "LE": lambda x, y: x <= y,
    "GT": lambda x, y: x > y,
    "GE": lambda x, y: x >= y,
    "EQ": lambda x, y: x == y,
    "NE": lambda x, y: x != y,
}
_COMBINATIONS = {"AND": both, "OR": either}


def _compare(instruction: Instruction, read: Reader) -> Meaning:
    name, *modifiers = instruction.modifiers
    compare = _COMPARISONS[name]
    combine = _COMBINATIONS[next(part for part in modifiers if part in _COMBINATIONS)]
    flip = 0 if "U32" in modifiers else SIGN
    holds, holds_not, left, right, other, *lower = instruction.operands
    lower_half = predicate(lower[0]) if "EX" in modifiers else lambda state: None

    def upper(x: Known, y: Known, below: Predicate) -> Predicate:
        """The comparison of 64 bits, given that of their lower halves."""
        if name == "NE":
            return either(x != y, below)
        equal = both(x == y, below)
        return equal if name == "EQ" else either(_COMPARISONS[name[0] + "T"](x, y), equal)

    def evaluate(x: Known | None, y: Known | None, given: Predicate, below: Predicate) -> tuple[Any, ...]:
        found: Predicate = None
        if x is not None and y is not None:
            x, y = x ^ flip, y ^ flip
            found = upper(x, y, below) if "EX" in modifiers else compare(x, y)
        return combine(found, given), combine(opposite(found), given)

    sources = (read(left), read(right), predicate(other), lower_half)
    return Meaning(sources, evaluate, (slot(holds), slot(holds_not)), is_partial=True)


def _predicate_logic(instruction: Instruction, read: Reader) -> Meaning:
    first, second, *rest = instruction.operands
    tables = [int(table, 16) for table in rest[3:]] + [0]

    def evaluate(*given: Predicate) -> tuple[Any, ...]:
        return tuple(_of_table(table, given) for table in tables[:2])

    return Meaning(tuple(map(predicate, rest[:3])), evaluate, (slot(first), slot(second)), is_partial=True)


def _of_table(table: int, given: tuple[Predicate, ...]) -> Predicate:
    result: Predicate = False
    for bits in range(8):
        if table >> bits & 1:
            terms = [value if bits & place else opposite(value) for value, place in zip(given, (4, 2, 1), strict=True)]
            result = either(result, both(both(terms[0], terms[1]), terms[2]))
    return result


def _select(instruction: Instruction, read: Reader) -> Meaning:
    first, left, right, condition = instruction.operands

    def select(x: Known | None, y: Known | None, given: Predicate) -> tuple[Any, ...]:
        if isinstance(given, bool):
            return (x if given else y,)
        return (None if x is None or y is None or given is None else choose(given, x, y),)

    return Meaning((read(left), read(right), predicate(condition)), select, (slot(first),), is_partial=True)


def _least_or_most(instruction: Instruction, read: Reader) -> Meaning:
    first, left, right, least = instruction.operands
    flip = 0 if "U32" in instruction.modifiers else SIGN

    def pick(x: Known, y: Known, is_least: bool) -> tuple[Any, ...]:
        takes_left = ((x ^ flip) < (y ^ flip)) ^ opposite(is_least)
        return (choose(takes_left, x, y),)

    return Meaning((read(left), read(right), predicate(least)), pick, (slot(first),))


def _predicates_to_register(instruction: Instruction, read: Reader) -> Meaning:
    first, _, kept, mask = instruction.operands
    chosen = int(mask, 16)
    places = [place for place in range(7) if chosen >> place & 1]

    def gather(old: Known, *given: bool) -> tuple[Any, ...]:
        value = old & (WORD ^ chosen)
        for place, held in zip(places, given, strict=True):
            value = value | as_number(held) << place
        return (value,)

    return Meaning((read(kept), *(predicate(f"P{place}") for place in places)), gather, (slot(first),))


def _register_to_predicates(instruction: Instruction, read: Reader) -> Meaning:
    source, mask = instruction.operands[1:3]
    places = [place for place in range(7) if int(mask, 16) >> place & 1]
    shift = 8 * int(source.rpartition(".B")[2]) if ".B" in source else 0

    def scatter(value: Known) -> tuple[Any, ...]:
        return tuple((value >> place + shift & 1) != 0 for place in places)

    return Meaning((read(source),), scatter, tuple(slot(f"P{place}") for place in places))


# moves -----------------------------------------------------------------------------------------------------------------------


def _move(instruction: Instruction, read: Reader) -> Meaning:
    first, source = instruction.operands[:2]
    return Meaning((read(source),), lambda value: (value,), (slot(first),))


def _to_uniform(instruction: Instruction, read: Reader) -> Meaning:
    def first_lane(value: Known) -> tuple[Any, ...]:
        return (int(value[0]) if isinstance(value, np.ndarray) else value,)

    return Meaning((read(instruction.operands[-1]),), first_lane, (slot(instruction.operands[0]),))


def _special(instruction: Instruction, read: Reader) -> Meaning:
    first, name = instruction.operands
    place = SPECIAL.get(name)
    value = 0 if name in ALWAYS_ZERO else None
    is_pair = instruction.name == "CS2R" and "32" not in instruction.modifiers
    destinations = (slot(first), slot(first, 1)) if is_pair else (slot(first),)
    source: Getter = (lambda state: value) if place is None else (lambda state: state[place])
    return Meaning((source,), lambda found: (found,) * len(destinations), destinations)


def _constant(instruction: Instruction, read: Reader) -> Meaning:
    first, source = instruction.operands
    halves = range(2 if "64" in instruction.modifiers else 1)
    sources = tuple(read(source, following=half) for half in halves)
    return Meaning(sources, lambda *values: values, tuple(slot(first, half) for half in halves), is_partial=True)


def _shuffle(instruction: Instruction, read: Reader) -> Meaning:
    valid, first, source, distance = instruction.operands[:4]
    mode = instruction.modifiers[0]
    lane = np.arange(32)

    def shuffle(value: Known, by: Known) -> tuple[Any, ...]:
        offset = as_lanes(by).astype(np.int64)
        places = {
            "BFLY": lane ^ offset,
            "IDX": offset & 31,
            "DOWN": np.minimum(lane + offset, 31),
            "UP": np.maximum(lane - offset, 0),
        }[mode]
        return as_lanes(value)[places & 31], True

    return Meaning((read(source), read(distance)), shuffle, (slot(first), slot(valid)))


def _half_constants(instruction: Instruction, read: Reader) -> Meaning | None:
    """HFMA2 of zeros, by which the compiler writes constants whose halves are half-precision numbers."""
    first, left, right, *halves = instruction.operands
    if not {left, right} <= {"RZ", "-RZ"} or len(halves) != 2:
        return None
    high, low = (int(np.float16(number.replace("QNAN", "nan").replace("INF", "inf")).view(np.uint16)) for number in halves)
    value = high << 16 | low
    return Meaning((), lambda: (value,), (slot(first),))


# division of integers, which goes through approximate reciprocals -----------------------------------------------------------


def _to_float(instruction: Instruction, read: Reader) -> Meaning | None:
    first, source = instruction.operands
    if "64" in "".join(instruction.modifiers) or "F16" in instruction.modifiers:
        return None
    is_signed, rounds_up = "U32" not in instruction.modifiers, "RP" in instruction.modifiers

    def convert(value: Known) -> tuple[Any, ...]:
        exact = as_lanes(sign_extended(value) if is_signed else value).view(np.int64).astype(np.float64)
        rounded = exact.astype(np.float32)
        if rounds_up:
            rounded = np.where(rounded < exact, np.nextafter(rounded, np.float32(np.inf)), rounded)
        return (from_float(rounded),)

    return Meaning((read(source),), convert, (slot(first),))


def _reciprocal(instruction: Instruction, read: Reader) -> Meaning | None:
    first, source = instruction.operands
    if instruction.modifiers[0] != "RCP":
        return None

    def invert(value: Known) -> tuple[Any, ...]:
        with np.errstate(all="ignore"):
            return (from_float(np.float32(1) / as_float(value)),)

    return Meaning((read(source),), invert, (slot(first),))


def _to_integer(instruction: Instruction, read: Reader) -> Meaning | None:
    first, source = instruction.operands
    if "64" in "".join(instruction.modifiers):
        return None
    least, most = (0, WORD) if "U32" in instruction.modifiers else (-SIGN, SIGN - 1)

    def convert(value: Known) -> tuple[Any, ...]:
        number = np.trunc(np.nan_to_num(as_float(value).astype(np.float64)))
        return (np.clip(number, least, most).astype(np.int64).view(np.uint64) & np.uint64(WORD),)

    return Meaning((read(source),), convert, (slot(first),))


def _check_division(instruction: Instruction, read: Reader) -> Meaning:
    """Operands of a division that need a slower way are rare: none."""
    return Meaning((), lambda: (False,), (slot(instruction.operands[0]),))


MEANINGS: dict[str, Callable[[Instruction, Reader], Meaning | None]] = {
    "IADD3": _add3,
    "IMAD": _multiply_add,
    "LEA": _shift_add,
    "VIADD": _add2,
    "IABS": _absolute,
    "LOP3": _logic3,
    "SHF": _shift,
    "PRMT": _permute_bytes,
    "SGXT": _sign_extend,
    "ISETP": _compare,
    "PLOP3": _predicate_logic,
    "SEL": _select,
    "IMNMX": _least_or_most,
    "VIMNMX": _least_or_most,
    "P2R": _predicates_to_register,
    "R2P": _register_to_predicates,
    "MOV": _move,
    "R2UR": _to_uniform,
    "S2R": _special,
    "S2UR": _special,
    "CS2R": _special,
    "LDC": _constant,
    "SHFL": _shuffle,
    "HFMA2": _half_constants,
    "I2F": _to_float,
    "MUFU": _reciprocal,
    "F2I": _to_integer,
    "FCHK": _check_division,
}
