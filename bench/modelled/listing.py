"""Machine code as a list of instructions, with the fields by which the compiler schedules them.

An instruction has 128 bits. Bits 105 to 121 tell the scheduler: how many cycles to stall after it, which of six scoreboards it
raises until its result is there (write) or its operands are read (read), and on which scoreboards it waits before it issues.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cache

from se3_fast.kernels.resources import disassemble

NO_SCOREBOARD = 7
_FIRST_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/")
_SECOND_LINE = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
_GUARD = re.compile(r"@(!?U?P[0-9T]+)\s+")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: in bytes from the start of the kernel.
        guard: the predicate under which lanes carry it out, such as ``"!P0"``; None: all do.
        name: such as ``"IMAD"``.
        modifiers: such as ``("WIDE", "U32")``.
        operands: as written, destinations first.
        stall: cycles until the warp's next instruction may issue.
        write_scoreboard: raised until the result is there; :data:`NO_SCOREBOARD`: none.
        read_scoreboard: raised until the operands are read.
        wait_mask: a bit for each scoreboard that has to be down before it issues.
    """

    address: int
    guard: str | None
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    stall: int
    write_scoreboard: int
    read_scoreboard: int
    wait_mask: int


@cache
def instructions_of(cubin: bytes) -> list[Instruction]:
    """The instructions of a compiled kernel.

    Raises:
        FileNotFoundError: without a disassembler.
    """
    return read_listing(disassemble(cubin, "-sass"))


def read_listing(text: str) -> list[Instruction]:
    """The instructions of a listing, in which each takes two lines.

    Raises:
        ValueError: if there are none.
    """
    instructions = []
    first = None
    for line in text.splitlines():
        if found := _FIRST_LINE.match(line):
            first = found
        elif first is not None and (found := _SECOND_LINE.match(line)):
            instructions.append(_instruction(int(first[1], 16), first[2], int(found[1], 16) >> 41))
            first = None
    if not instructions:
        raise ValueError(f"listing: expected instructions of two lines each, got {text[:60]!r}")
    return instructions


def table_words(cubin: bytes) -> list[int]:
    """Constant bank 2 of a compiled kernel in words of 32 bits: where branches of many ways lead; empty where there are none."""
    start = int.from_bytes(cubin[0x28:0x30], "little")
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, start + number * size) for number in range(count)]
    for name, _, _, _, offset, length in headers:
        if cubin.startswith(b".nv.constant2", headers[names][4] + name):
            return list(struct.unpack_from(f"<{length // 4}I", cubin, offset))
    return []


def _instruction(address: int, text: str, control: int) -> Instruction:
    guard = _GUARD.match(text)
    name, _, rest = text[guard.end() if guard else 0 :].partition(" ")
    first, *modifiers = name.split(".")
    return Instruction(
        address,
        guard[1] if guard else None,
        first,
        tuple(modifiers),
        tuple(_operands(rest)),
        stall=control & 15,
        write_scoreboard=control >> 5 & 7,
        read_scoreboard=control >> 8 & 7,
        wait_mask=control >> 11 & 63,
    )


def _operands(text: str) -> list[str]:
    """Split at commas outside of brackets; whether a register is kept for the next instruction does not matter here."""
    return [part.strip().replace(".reuse", "") for part in re.split(r",(?![^\[(]*[\])])", text) if part.strip()]
