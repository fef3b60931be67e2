"""One warp of a program, followed through its machine code: integers and branches for real, floating-point numbers as unknown.

Counts what is asked of each pipe and of memory, and drives the :class:`Clock`. What cannot be known is counted, too.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.modelled.clock import Clock
from bench.modelled.gpu import LATENCY, LINE_BYTES, SECTOR_BYTES
from bench.modelled.listing import Instruction
from bench.modelled.meaning import Meaning, meaning_of
from bench.modelled.memory import Memory
from bench.modelled.opcodes import (
    BRANCHES,
    GLOBAL,
    SHARED,
    STORES,
    WRITES_NO_REGISTER,
    Cost,
    access_bytes,
    cost_of,
    matrix_flop,
    num_destinations,
)
from bench.modelled.registers import DISCARDED, Constants, Getter, State, first_state, is_predicate, predicate, register, slot
from bench.modelled.values import (
    DOUBLE_WORD,
    WORD,
    Known,
    Lanes,
    Predicate,
    as_lanes,
    as_mask,
    both,
    choose,
    is_false,
    is_true,
    settled,
)

MOST_INSTRUCTIONS = 400_000
"""After which a warp is given up; counted among the unknown branches."""

BANKS, BANK_BYTES = 32, 4
_SIGNED_PARTS = {"S8", "S16"}
"""Loads whose sign would have to be extended: what they bring is taken as unknown."""

_MATRIX_ROWS, _MATRIX_ROW_WORDS = 8, 4


@dataclass
class Work:
    """What one warp does.

    Attributes:
        instructions: by pipe.
        cycles: of each pipe of a scheduler (``tensor`` of ``HGMMA`` and ``memory`` of the multiprocessor).
        alone: cycles that it takes by itself.
        waited: of these, cycles of waiting by the instruction waited for.
        sectors_read: of global memory, that no warp of the program had read before.
        written: sectors of global memory.
        matrix_flop: on the tensor cores.
        requests, unknown_requests: of global memory; those whose addresses are not known.
        unknown_branches: whose predicate is not known, calls, and a warp that does not end.
        unknown_instructions: that are not in the table, by name.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    cycles: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    alone: float = 0.0
    waited: Counter[str] = field(default_factory=Counter)
    sectors_read: int = 0
    written: set[Any] = field(default_factory=set)
    matrix_flop: float = 0.0
    requests: int = 0
    unknown_requests: int = 0
    unknown_branches: int = 0
    unknown_instructions: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Decoded:
    """An instruction with all that does not change from one time to the next."""

    instruction: Instruction
    cost: Cost
    guard: Getter | None
    meaning: Meaning | None
    destinations: tuple[int, ...]
    address: Callable[[State], Known | None] | None
    target: int | None
    condition: Getter | None


class Code:
    """The machine code of a launch, ready to be followed.

    Args:
        instructions: of the kernel.
        constants: of the launch.
        memory: what pointers among them point to.
    """

    def __init__(self, instructions: Sequence[Instruction], constants: Constants, memory: Memory) -> None:
        self._memory = memory
        self._constants = constants
        self._place = {instruction.address: number for number, instruction in enumerate(instructions)}
        self._decoded = [self._decode(instruction) for instruction in instructions]

    def follow(self, program: tuple[int, int, int], warp: int, visited: set[Any]) -> Work:
        """What a warp does.

        Args:
            program: its number along each axis of the grid.
            warp: the number of the warp in it.
            visited: sectors that warps of the program have read before; this one's are added.
        """
        work, clock, state = Work(), Clock(), first_state(program, warp)
        before = len(visited)
        place: int | None = 0
        count = 0
        while place is not None:
            decoded = self._decoded[place]
            count += 1
            if count > MOST_INSTRUCTIONS:
                work.unknown_branches += 1
                break
            clock.wait_for_scoreboards(decoded.instruction)
            active: Predicate = True if decoded.guard is None else settled(decoded.guard(state))
            is_skipped = active is False
            work.instructions[decoded.cost.pipe] += 1
            work.cycles[decoded.cost.pipe] += decoded.cost.cycles
            latency = decoded.cost.latency
            if not is_skipped:
                if decoded.address is not None:
                    latency = self._access(decoded, state, active, work, visited)
                else:
                    self._carry_out(decoded, state, active, work)
            clock.issue(decoded.instruction, decoded.cost, latency, is_skipped)
            place = self._next(place, decoded, state, active, work)
        work.alone, work.waited = clock.cycles, clock.waited
        work.sectors_read = len(visited) - before
        return work

    # decoding ----------------------------------------------------------------------------------------------------------------

    def _decode(self, instruction: Instruction) -> _Decoded:
        meaning = meaning_of(instruction, self._constants)
        is_access = instruction.name in GLOBAL or instruction.name in SHARED
        is_branch = instruction.name == "BRA"
        return _Decoded(
            instruction,
            cost_of(instruction),
            None if instruction.guard is None else predicate(instruction.guard),
            meaning,
            _destinations(instruction),
            self._address(instruction) if is_access else None,
            self._place[int(instruction.operands[-1], 16)] if is_branch else None,
            predicate(instruction.operands[0]) if is_branch and len(instruction.operands) > 1 else None,
        )

    def _address(self, instruction: Instruction) -> Callable[[State], Known | None]:
        """A function that sums up what stands in the last brackets of an access; of a copy to shared memory, where from."""
        operands = [operand for operand in instruction.operands if "[" in operand]
        operand = operands[-1] if instruction.name == "LDGSTS" else operands[0]
        inner = re.findall(r"\[([^\[\]]*)\]", operand)[-1]
        is_global = instruction.name in GLOBAL
        displacement, terms = 0, []
        for part in re.findall(r"[+-]?[^+-]+", inner):
            text = part.lstrip("+")
            if re.fullmatch(r"-?0x[0-9a-f]+", text):
                displacement += int(text, 16)
                continue
            name, *suffixes = text.split(".")
            scale = next((int(suffix[1:]) for suffix in suffixes if re.fullmatch(r"X\d+", suffix)), 1)
            is_wide = is_global and "U32" not in suffixes and ("64" in suffixes or name.startswith("U"))
            terms.append((register(name, {}), register(name, {}, following=1) if is_wide else None, scale))

        def address(state: State) -> Known | None:
            total: Known = displacement & DOUBLE_WORD
            for low, high, scale in terms:
                value = low(state)
                upper = 0 if high is None else high(state)
                if value is None or upper is None:
                    return None
                total = total + scale * (value | upper << 32) & DOUBLE_WORD
            return total

        return address

    # carrying out ------------------------------------------------------------------------------------------------------------

    def _carry_out(self, decoded: _Decoded, state: State, active: Predicate, work: Work) -> None:
        work.matrix_flop += matrix_flop(decoded.instruction) if decoded.cost.pipe == "tensor" else 0
        if decoded.cost.pipe == "unknown":
            work.unknown_instructions[decoded.instruction.name] += 1
        if decoded.meaning is None:
            for place in decoded.destinations:
                state[place] = None
            return
        sources, function, destinations, is_partial = decoded.meaning
        values = [source(state) for source in sources]
        if not is_partial and any(value is None for value in values):
            results: Sequence[Any] = (None,) * len(destinations)
        else:
            results = function(*values)
        for place, result in zip(destinations, results, strict=True):
            state[place] = result if active is True else _merged(active, result, state[place])

    def _next(self, place: int, decoded: _Decoded, state: State, active: Predicate, work: Work) -> int | None:
        name = decoded.instruction.name
        if name not in BRANCHES or active is False:
            return place + 1
        if name == "EXIT":
            return None if active is None or active is True else place + 1
        if name != "BRA":
            return self._next_of_rare(place, decoded.instruction, state, work)
        taken = active if decoded.condition is None else both(active, decoded.condition(state))
        if taken is None:
            work.unknown_branches += 1
            is_taken = self._leads_past_a_call(place, decoded.target)
        else:
            # Where lanes part, the body of an `if` is run, and a loop goes on for as long as any lane wants.
            is_taken = is_true(taken) or (not is_false(taken) and decoded.target < place)
        return decoded.target if is_taken else place + 1

    def _next_of_rare(self, place: int, instruction: Instruction, state: State, work: Work) -> int | None:
        """After a branch of many ways; calls are passed over, others end the warp, and both are counted."""
        target = self._computed_target(instruction, state) if instruction.name == "BRX" else None
        if target is None:
            work.unknown_branches += 1
        return place + 1 if instruction.name == "CALL" else target

    def _computed_target(self, instruction: Instruction, state: State) -> int | None:
        """Where a branch of many ways leads: a register and a displacement after the instruction."""
        name, displacement = instruction.operands[0].split()
        offset = register(name, self._constants)(state)
        if not isinstance(offset, int):
            return None
        return self._place.get((offset + instruction.address + 16 + int(displacement, 16)) & WORD)

    def _leads_past_a_call(self, place: int, target: int) -> bool:
        """Calls are the slow ways of divisions, seldom taken."""
        return any(decoded.instruction.name == "CALL" for decoded in self._decoded[place:target])

    # memory ------------------------------------------------------------------------------------------------------------------

    def _access(self, decoded: _Decoded, state: State, active: Predicate, work: Work, visited: set[Any]) -> int:
        """Count an access; returns its latency. Integers are read from global memory, not from shared memory."""
        instruction, latency = decoded.instruction, decoded.cost.latency
        address = decoded.address(state)
        if instruction.name == "LDGSTS" and is_predicate(instruction.operands[-1]):
            active = both(active, predicate(instruction.operands[-1])(state))  # other lanes write zeros and read nothing
        mask = as_mask(True if active is None else active)
        words = None
        if instruction.name in SHARED:
            work.cycles["memory"] += _wavefronts(instruction, address, mask)
        elif instruction.name in STORES:
            work.written |= _sectors(instruction, address, mask, work)
        else:
            sectors = _sectors(instruction, address, mask, work)
            if instruction.name == "LDG":
                latency = LATENCY["L1 hit" if sectors <= visited else "L2 hit"]
                if address is not None and not _SIGNED_PARTS & set(instruction.modifiers):
                    words = self._memory.load(address, mask, access_bytes(instruction))
            visited |= sectors
        for number, place in enumerate(decoded.destinations):
            word = None if words is None else words[number]
            state[place] = word if active is True else _merged(active, word, state[place])
        return latency


def _sectors(instruction: Instruction, address: Known | None, mask: Lanes, work: Work) -> set[Any]:
    """The sectors of a request to global memory, which is counted."""
    width, lanes = access_bytes(instruction), int(mask.sum())
    if lanes == 0:
        return set()
    work.requests += 1
    sectors: set[Any]
    if address is None:
        work.unknown_requests += 1
        lines = max(1, lanes * width // LINE_BYTES)
        sectors = {(instruction.address, work.requests, part) for part in range(max(1, lanes * width // SECTOR_BYTES))}
    else:
        first = np.array([address]) if isinstance(address, int) else address[mask]
        sectors = set((first // SECTOR_BYTES).tolist())  # accesses are aligned: none lies in two
        lines = len({sector * SECTOR_BYTES // LINE_BYTES for sector in sectors})
    work.cycles["memory"] += max(1, lines, width * lanes / LINE_BYTES)
    return sectors


def _destinations(instruction: Instruction) -> tuple[int, ...]:
    """Where an instruction writes whose meaning is not known: its first operand and the predicates after it."""
    if instruction.name in WRITES_NO_REGISTER or not instruction.operands:
        return ()
    first, *others = instruction.operands
    places = [slot(first, following) for following in range(1 if is_predicate(first) else num_destinations(instruction))]
    for operand in others[:1]:
        if is_predicate(operand) and not operand.startswith("!"):
            places.append(slot(operand))
    return tuple(place for place in places if place != DISCARDED)


def _merged(active: Predicate, new: Any, old: Any) -> Any:
    """A register that only active lanes write. Where what it held is not known, what was written stands for all lanes."""
    if new is None:
        return None
    if active is None or old is None:
        return new
    if isinstance(new, (bool, np.bool_)) or (isinstance(new, np.ndarray) and new.dtype == bool):
        return np.where(as_mask(active), new, old)
    return choose(active, new, old)


def _wavefronts(instruction: Instruction, address: Known | None, mask: Lanes) -> int:
    """Cycles of an access to shared memory; of matrices row by row, each row from one lane, a matrix after the other."""
    if instruction.name in ("LDSM", "STSM"):
        matrices = int(instruction.modifiers[-1]) if instruction.modifiers[-1].isdigit() else 1
        if address is None:
            return matrices
        rows = as_lanes(address)[: matrices * _MATRIX_ROWS].reshape(matrices, _MATRIX_ROWS)
        return sum(_most_words_of_a_bank(of_matrix, _MATRIX_ROW_WORDS) for of_matrix in rows)
    words = max(1, access_bytes(instruction) // BANK_BYTES)
    return words if address is None else _most_words_of_a_bank(as_lanes(address)[mask], words)


def _most_words_of_a_bank(addresses: Lanes, words: int) -> int:
    """Different words in the same bank are read one after the other; ``words`` from each address on."""
    first = (addresses & WORD) // BANK_BYTES
    different = np.unique(first[:, None] + np.arange(words, dtype=np.uint64))
    return int(np.bincount((different % BANKS).astype(np.int64)).max(initial=1))
