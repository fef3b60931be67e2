"""The time of one launch: sampled programs are followed, all are placed on the multiprocessors, and the slowest pipe decides.

Bounds of a launch, in microseconds:

- ``latency``: programs in their order onto the slots of all multiprocessors, each for as long as its slowest warp takes alone
- ``issue``: warp instructions over the schedulers
- ``alu``, ``fp32``, ``special``, ``tensor``: the arithmetic pipes; products of integers are in ``fp32``, doubles in ``special``
- ``memory``: wavefronts of shared memory, lines of global memory, shuffles
- ``L1``: bytes that programs read for the first time, into their multiprocessor; ``L2``: all that they read and write
- ``HBM`` is added where the whole step is known
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.modelled import gpu
from bench.modelled.listing import instructions_of, table_words
from bench.modelled.memory import Memory
from bench.modelled.recording import Argument, KernelLaunch, Pointer
from bench.modelled.registers import Constants
from bench.modelled.values import WORD
from bench.modelled.warp import Code, Work
from se3_fast.kernels.resources import registers_and_stack, resident_warps

FIRST_PARAMETER = 0x210
"""Where parameters start among the constants of a launch, on sm_90."""

_FIXED_CONSTANTS = {(0, 0x04): 1, (0, 0x08): 1, (0, 0x28): 0xFFF000}
"""Threads along the second and third axis of a block; the stack."""

PLACED_PIPES = ("issue", "alu", "fp32", "special", "tensor", "memory", "L1")
BOUNDS = ("latency", *PLACED_PIPES, "L2", "HBM")

MOST_PLACES, SAMPLED_PLACES = 16, 10
"""Programs that differ in their second or third number are all followed up to so many; of more, so many."""

MOST_SAMPLES, FEW_SAMPLES, ALIKE = 32, 4, 0.02
"""Along the first axis of a grid so many programs are followed; where they take alike, up to this share, a few."""

FOLLOWED_INSTRUCTIONS = 200_000
"""After so many, in all programs of a launch together, no further one is followed, but for one at each place."""

MOST_WAITS = 3
"""Of what a warp waits for, so many are named."""

_GOLDEN = 0.6180339887498949
"""Its multiples, modulo 1, are spread evenly however many are taken."""

LONG_WARP = 40_000
"""Instructions of a warp from which on it stands for all warps of its program; else the first and the last do."""


@dataclass(frozen=True)
class Program:
    """What one program costs.

    Attributes:
        alone: cycles from its start to its end on an empty multiprocessor.
        cycles: of each of :data:`PLACED_PIPES` of its multiprocessor.
        l2_bytes: read for the first time, and written.
        matrix_flop: on the tensor cores.
    """

    alone: float
    cycles: dict[str, float]
    l2_bytes: float
    matrix_flop: float


@dataclass
class LaunchTime:
    """What is known of a launch without the step around it.

    Attributes:
        registers, stack_bytes: of a thread.
        resident: programs that a multiprocessor holds at once.
        bounds: microseconds, of :data:`BOUNDS` all but ``HBM``.
        matrix_flop: of all programs.
        instructions: of one warp of the longest program that was followed, by pipe.
        waited: share of that warp's time spent waiting, by what for.
        requests, unknown_requests, unknown_branches: of all warps followed.
        unknown_instructions: the same, by name.
    """

    registers: int
    stack_bytes: int
    resident: int
    bounds: dict[str, float] = field(default_factory=dict)
    matrix_flop: float = 0.0
    instructions: dict[str, int] = field(default_factory=dict)
    waited: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    unknown_requests: int = 0
    unknown_branches: int = 0
    unknown_instructions: dict[str, int] = field(default_factory=dict)


def time_of(launch: KernelLaunch) -> LaunchTime:
    """Follow sampled programs of a launch, and bound its time.

    Raises:
        FileNotFoundError: without a disassembler.
    """
    registers, stack = registers_and_stack(launch.cubin)
    resident = max(resident_warps(gpu.MULTIPROCESSOR, launch.num_warps, registers, launch.shared_bytes) // launch.num_warps, 1)
    memory = Memory(list({pointer.storage.key: pointer.storage for pointer in launch.pointers()}.values()))
    code = Code(instructions_of(launch.cubin), _constants(launch, memory), memory)
    places = _sampled_places(launch.grid)
    followed = {place: _follow_programs(code, launch, place, FOLLOWED_INSTRUCTIONS // len(places)) for place in places}
    programs = _all_programs(
        launch.grid, {place: [_program(warps, launch.num_warps) for warps in samples] for place, samples in followed.items()}
    )
    works = [work for samples in followed.values() for warps in samples for work in warps]
    longest = max(works, key=lambda work: work.alone)
    return LaunchTime(
        registers,
        stack,
        resident,
        bounds=bounds(programs, resident),
        matrix_flop=sum(program.matrix_flop for program in programs),
        instructions=dict(longest.instructions),
        waited={name: cycles / longest.alone for name, cycles in longest.waited.most_common(MOST_WAITS)},
        requests=sum(work.requests for work in works),
        unknown_requests=sum(work.unknown_requests for work in works),
        unknown_branches=sum(work.unknown_branches for work in works),
        unknown_instructions=dict(sum((work.unknown_instructions for work in works), Counter())),
    )


def bounds(programs: Sequence[Program], resident: int) -> dict[str, float]:
    """The bounds of a launch of programs in their order, in microseconds."""
    slots = gpu.MULTIPROCESSORS * resident
    found = {"latency": makespan([program.alone for program in programs], slots) / gpu.CYCLES_PER_US}
    for pipe in PLACED_PIPES:
        cycles = [program.cycles[pipe] for program in programs]
        found[pipe] = makespan(cycles, gpu.MULTIPROCESSORS) / gpu.CYCLES_PER_US
    found["L2"] = sum(program.l2_bytes for program in programs) / gpu.L2_BYTES_PER_US
    return found


def makespan(times: Sequence[float], machines: int) -> float:
    """When all are done: each in its order goes to the machine that is free first."""
    if len(times) <= machines:
        return max(times, default=0.0)
    free = [0.0] * machines
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    return max(free)


def _constants(launch: KernelLaunch, memory: Memory) -> Constants:
    """The constant banks of a launch."""
    words: Constants = {(0, 0x00): gpu.LANES * launch.num_warps, **_FIXED_CONSTANTS}
    words |= {(0, 0x0C + 4 * axis): programs for axis, programs in enumerate(launch.grid)}
    words |= {(2, 4 * place): word for place, word in enumerate(table_words(launch.cubin))}
    offset = FIRST_PARAMETER
    for kind, value in launch.arguments:
        size = _size(kind)
        offset = -(-offset // size) * size
        number = _bits(value, memory)
        if size < 4:
            word = offset & ~3
            words[0, word] = (words.get((0, word)) or 0) | (number or 0) << 8 * (offset - word)
        for place in range(0, size // 4 * 4, 4):
            words[0, offset + place] = None if number is None else number >> 8 * place & WORD
        offset += size
    return words


def _size(kind: str) -> int:
    if kind.startswith("*"):
        return 8
    return max(1, int(kind.lstrip("fpiub")) // 8)


def _bits(value: Argument, memory: Memory) -> int | None:
    if isinstance(value, Pointer):
        return memory.address(value.storage, value.offset)
    return None if isinstance(value, float) else int(value)


def _sampled_places(grid: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Second and third numbers of the programs that are followed."""
    places = _places(grid)
    if len(places) <= MOST_PLACES:
        return places
    step = (len(places) - 1) / (SAMPLED_PLACES - 1)
    return [places[round(number * step)] for number in range(SAMPLED_PLACES)]


def _places(grid: tuple[int, int, int]) -> list[tuple[int, int]]:
    return [(y, z) for z in range(grid[2]) for y in range(grid[1])]


def _sampled_numbers(count: int) -> list[int]:
    """First numbers of the programs that are followed, spread evenly however many of them are."""
    return list(dict.fromkeys(int(count * ((0.5 + number * _GOLDEN) % 1)) for number in range(MOST_SAMPLES)))


def _follow_programs(code: Code, launch: KernelLaunch, place: tuple[int, int], most_instructions: int) -> list[list[Work]]:
    """The warps of sampled programs with the same second and third number."""
    samples: list[list[Work]] = []
    instructions = 0
    for number in _sampled_numbers(launch.grid[0]):
        if samples and (instructions > most_instructions or _are_alike(samples)):
            break
        samples.append(_follow(code, (number, *place), launch.num_warps))
        instructions += sum(work.instructions.total() for work in samples[-1])
    return samples


def _are_alike(samples: Sequence[Sequence[Work]]) -> bool:
    times = [max(work.alone for work in warps) for warps in samples]
    return len(times) >= FEW_SAMPLES and max(times) < (1 + ALIKE) * min(times)


def _follow(code: Code, program: tuple[int, int, int], num_warps: int) -> list[Work]:
    """The first and the last warp, or the first for all."""
    visited: set[Any] = set()
    warps = [code.follow(program, 0, visited)]
    if num_warps > 1 and warps[0].instructions.total() < LONG_WARP:
        warps.append(code.follow(program, num_warps - 1, visited))
    return warps


def _program(warps: Sequence[Work], num_warps: int) -> Program:
    """All warps of a program, of which some were followed: the others do as they on average."""

    def mean(*pipes: str) -> float:
        return sum(work.cycles[pipe] for work in warps for pipe in pipes) / len(warps)

    of_scheduler = num_warps / gpu.SCHEDULERS
    # What the last warp read beyond the first stands for what each of the others adds.
    sectors = warps[0].sectors_read + (num_warps - 1) * (warps[-1].sectors_read if len(warps) > 1 else warps[0].sectors_read)
    read = gpu.SECTOR_BYTES * sectors
    written = gpu.SECTOR_BYTES * num_warps * sum(len(work.written) for work in warps) / len(warps)
    cycles = {
        "issue": of_scheduler * sum(work.instructions.total() for work in warps) / len(warps) / gpu.ISSUE_EFFICIENCY,
        "alu": of_scheduler * mean("alu"),
        # Additions and products have two halves of the pipe, products of integers one.
        "fp32": of_scheduler * max(mean("fp32") + mean("integer multiply") / 2, mean("integer multiply")),
        "special": of_scheduler * mean("special", "double"),
        "tensor": of_scheduler * mean("tensor"),
        "memory": num_warps * mean("memory"),
        "L1": read / gpu.L1_BYTES_PER_CYCLE,
    }
    flop = num_warps * sum(work.matrix_flop for work in warps) / len(warps)
    return Program(gpu.START_CYCLES + max(work.alone for work in warps), cycles, read + written, flop)


def _all_programs(grid: tuple[int, int, int], followed: dict[tuple[int, int], list[Program]]) -> list[Program]:
    """Every program of a launch in its order, as the followed one that is nearest."""
    places = _places(grid)
    number_of = {place: number for number, place in enumerate(places)}
    numbers = {place: number_of[place] for place in followed}
    programs = []
    for number in range(len(places)):
        samples = followed[min(numbers, key=lambda place: abs(numbers[place] - number))]
        programs += [samples[x % len(samples)] for x in range(grid[0])]
    return programs
