"""How long one warp takes alone: stall counts, scoreboards, asynchronous copies and matrix instructions in flight."""

from __future__ import annotations

from collections import Counter

from bench.modelled.gpu import LATENCY
from bench.modelled.listing import NO_SCOREBOARD, Instruction
from bench.modelled.opcodes import Cost

_SKIPPED_LATENCY = 2


class Clock:
    """The time of a warp, in cycles, while it issues one instruction after another.

    Attributes:
        cycles: so far.
        waited: cycles spent waiting, by the instruction whose result was waited for.
    """

    def __init__(self) -> None:
        self.cycles = 0.0
        self.waited: Counter[str] = Counter()
        self._ready = [0.0] * 6
        self._raised_by = [""] * 6
        self._last_copy = 0.0
        self._copy_groups: list[float] = []
        self._matrix_unit_free = 0.0
        self._matrix_groups: list[float] = []

    def wait_for_scoreboards(self, instruction: Instruction) -> None:
        """Until everything that an instruction needs is there."""
        mask = instruction.wait_mask
        for number in range(6):
            if mask >> number & 1 and self._ready[number] > self.cycles:
                self._wait(self._ready[number], self._raised_by[number])

    def issue(self, instruction: Instruction, cost: Cost, latency: int, is_skipped: bool) -> None:
        """Issue an instruction; its result is there after ``latency`` cycles, or at once where all lanes skip it."""
        if not is_skipped:
            self._occupy(instruction, cost)
        if instruction.write_scoreboard != NO_SCOREBOARD:
            self._raise(instruction.write_scoreboard, _SKIPPED_LATENCY if is_skipped else latency, instruction.name)
        if instruction.read_scoreboard != NO_SCOREBOARD:
            reading = _SKIPPED_LATENCY if is_skipped else LATENCY["store reads its operands"]
            self._raise(instruction.read_scoreboard, reading, f"{instruction.name} read")
        self.cycles += max(instruction.stall, 1)

    def _raise(self, scoreboard: int, latency: int, name: str) -> None:
        until = self.cycles + latency
        if until > self._ready[scoreboard]:
            self._ready[scoreboard], self._raised_by[scoreboard] = until, name

    def _wait(self, until: float, on: str) -> None:
        if until > self.cycles:
            self.waited[on] += until - self.cycles
            self.cycles = until

    def _occupy(self, instruction: Instruction, cost: Cost) -> None:
        name = instruction.name
        if name == "HGMMA":
            self._matrix_unit_free = max(self.cycles, self._matrix_unit_free) + cost.cycles
            if "gsb0" in instruction.operands:
                self._matrix_groups.append(self._matrix_unit_free + LATENCY["matrix group drains"])
        elif name == "WARPGROUP" and "DEPBAR" in instruction.modifiers:
            self._wait_for_groups(self._matrix_groups, int(instruction.operands[-1], 16), "HGMMA")
        elif name == "LDGSTS":
            self._last_copy = max(self._last_copy, self.cycles + LATENCY["asynchronous copy"])
        elif name == "LDGDEPBAR":
            self._copy_groups.append(self._last_copy)
        elif name == "DEPBAR":
            left = int(instruction.operands[1], 16) if len(instruction.operands) > 1 else 0
            self._wait_for_groups(self._copy_groups, left, "LDGSTS")
        elif name == "BAR":
            self._wait(self.cycles + LATENCY["block barrier"], "BAR")

    def _wait_for_groups(self, groups: list[float], left: int, name: str) -> None:
        """Until at most the last ``left`` groups are in flight."""
        if len(groups) > left:
            self._wait(groups[len(groups) - left - 1], name)
