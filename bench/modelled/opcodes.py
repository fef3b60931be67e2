"""What each instruction costs: the pipe it occupies, for how many cycles, and after how many its result is there.

Cycles are those of the pipe of one of the four schedulers (``tensor``: of a warp group's instructions, of the multiprocessor;
``memory``: of the multiprocessor, counted access by access). An instruction that is not in the table is counted as unknown.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from bench.modelled.gpu import LATENCY, WARP_MATRIX_CYCLES
from bench.modelled.listing import Instruction

PIPES = ("alu", "fp32", "integer multiply", "special", "double", "tensor", "memory", "uniform", "control", "unknown")


class Cost(NamedTuple):
    """Pipe, its cycles, and cycles until who waits for the result goes on."""

    pipe: str
    cycles: float
    latency: int


def _table() -> dict[str, Cost]:
    special, double, other = LATENCY["special function"], LATENCY["double"], LATENCY["other"]
    groups = {
        Cost("alu", 2, 8): "IADD3 LOP3 ISETP SEL PRMT SHF LEA IMNMX VIMNMX FSETP FMNMX FSEL FSET PLOP3 P2R R2P F2FP SGXT BMSK I2FP "
        "IABS MOV VIADD FCHK HSETP2 HMNMX2 HSET2 CS2R F2F VOTE LEPC FSWZADD",
        Cost("fp32", 1, 6): "FFMA FMUL FADD HADD2 HFMA2 HMUL2",
        Cost("integer multiply", 2, 6): "IMAD",
        Cost("special", 8, special): "MUFU I2F F2I FRND POPC FLO BREV",
        Cost("double", 2, double): "DFMA DADD DMUL DSETP",
        Cost("alu", 2, LATENCY["to uniform register"]): "R2UR",
        Cost("memory", 0, LATENCY["shared memory"]): "LDS LDSM ATOMS",
        Cost("memory", 0, LATENCY["L2 hit"]): "LDG LDL",
        Cost("memory", 0, LATENCY["store reads its operands"]): "STS STG STSM STL",
        Cost("memory", 0, LATENCY["asynchronous copy"]): "LDGSTS",
        Cost("memory", 0, LATENCY["atomic"]): "ATOMG ATOM RED REDG",
        Cost("memory", 1, LATENCY["shuffle"]): "SHFL",
        Cost("memory", 1, LATENCY["warp reduction"]): "REDUX",
        Cost("control", 0, LATENCY["constant"]): "LDC ULDC",
        Cost("control", 0, LATENCY["special register"]): "S2R S2UR",
        Cost("control", 0, LATENCY["fence"]): "MEMBAR FENCE",
        Cost("control", 0, other): "BAR BRA EXIT NOP WARPGROUP BSSY BSYNC WARPSYNC LDGDEPBAR DEPBAR CALL RET ERRBAR CCTL YIELD "
        "BREAK NANOSLEEP WARPGROUPSET BMOV JMP BRX",
        Cost("uniform", 2, other): "UIADD3 ULOP3 UISETP USEL UPRMT USHF ULEA UIMAD UMOV UPLOP3 USGXT UP2UR UR2UP UFLO UPOPC UBREV "
        "VOTEU UBMSK UIMNMX",
    }
    return {name: cost for cost, names in groups.items() for name in names.split()}


TABLE = _table()
UNKNOWN = Cost("unknown", 0, LATENCY["other"])
GLOBAL = frozenset(("LDG", "STG", "LDGSTS", "ATOMG", "ATOM", "RED", "REDG"))
SHARED = frozenset(("LDS", "STS", "LDSM", "STSM", "ATOMS"))
STORES = frozenset(("STG", "RED", "REDG"))
BRANCHES = frozenset(("BRA", "EXIT", "RET", "CALL", "BRX", "JMP"))
_NAMES_THAT_WRITE_NOTHING = (
    "STS STSM STL LDGSTS BAR NOP MEMBAR FENCE WARPGROUP WARPGROUPSET BSSY BSYNC WARPSYNC LDGDEPBAR DEPBAR ERRBAR CCTL YIELD BREAK "
    "NANOSLEEP"
)
WRITES_NO_REGISTER = STORES | BRANCHES | frozenset(_NAMES_THAT_WRITE_NOTHING.split())
_MATRIX_SHARE = {"16816": 1.0, "1688": 0.5, "1684": 0.25}
"""Of the products of m16n8k16 that other shapes have."""


def cost_of(instruction: Instruction) -> Cost:
    """What an instruction costs."""
    if instruction.name == "HGMMA":
        columns = group_matrix_shape(instruction)[1]
        # A tile of A [64, 16] from shared memory takes 16 cycles, one of B [16, columns] columns / 4.
        cycles = max(columns / 2, 16 + columns / 4 if instruction.operands[1].startswith("gdesc") else 8)
        return Cost("tensor", cycles, 0)
    if instruction.name in ("HMMA", "IMMA"):
        cycles = WARP_MATRIX_CYCLES * _MATRIX_SHARE.get(instruction.modifiers[0], 1.0)
        return Cost("tensor", cycles * (2 if "TF32" in instruction.modifiers else 1), LATENCY["matrix instruction"])
    if instruction.name == "DMMA":
        return Cost("tensor", 16, LATENCY["matrix instruction"])
    return TABLE.get(instruction.name, UNKNOWN)


def group_matrix_shape(instruction: Instruction) -> tuple[int, int, int]:
    """Rows, columns and depth of a warp group's matrix instruction."""
    shape = next(found for part in instruction.modifiers if (found := re.fullmatch(r"(\d+)x(\d+)x(\d+)", part)))
    return int(shape[1]), int(shape[2]), int(shape[3])


def matrix_flop(instruction: Instruction) -> float:
    """Additions and multiplications on the tensor cores, of one warp."""
    if instruction.name == "HGMMA":
        rows, columns, depth = group_matrix_shape(instruction)
        return 2 * rows * columns * depth / 4  # four warps share it
    if instruction.name in ("HMMA", "IMMA"):
        return 4096 * _MATRIX_SHARE.get(instruction.modifiers[0], 1.0)
    return 0.0


def access_bytes(instruction: Instruction) -> int:
    """Bytes that a lane reads or writes."""
    for part, size in (("128", 16), ("64", 8), ("16", 2), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1)):
        if part in instruction.modifiers:
            return size
    return 4


def num_destinations(instruction: Instruction) -> int:
    """How many registers from the first operand on an instruction writes."""
    name, modifiers = instruction.name, instruction.modifiers
    if name == "HGMMA":
        return group_matrix_shape(instruction)[1] // 2
    if name == "LDSM":
        return int(modifiers[-1]) if modifiers[-1].isdigit() else 1
    if name in ("LDG", "LDS", "LDL", "ATOMG", "ATOM", "ATOMS"):
        return max(1, access_bytes(instruction) // 4)
    if name in ("HMMA", "IMMA", "DMMA"):
        return 4
    wide = name in ("DFMA", "DADD", "DMUL") or "64" in modifiers or "WIDE" in modifiers
    return 2 if wide else 1
