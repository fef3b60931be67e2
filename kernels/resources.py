"""What every kernel uses on every GPU, found by compiling it with no GPU at hand: ``python -m se3_fast.kernels.resources``.

Each kernel module lists, in ``compile_cases()``, its kernels at the shapes they are launched with. Every case is compiled for the
compute capabilities of :data:`TARGETS`; registers and stack come from the cubin (the cuobjdump of Triton's package), shared memory
from Triton, matrix instructions from the PTX. The command writes ``RESOURCES.md`` beside this file and fails where a kernel

- does not compile (on sm_75 that is only noted: not all of Triton is there),
- keeps anything on the stack: registers were spilled,
- needs more shared memory than a block can have,
- has no matrix instructions although it multiplies matrices (``expects_matrix_instructions``; from sm_80 on).

AMD's gfx942 (MI300) is compiled too, as a check that nothing is tied to one vendor; its figures are shown, not judged.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton

from .precision import THREE_TERMS

TABLE = Path(__file__).with_name("RESOURCES.md")
GFX942 = "gfx942"
NOT_JUDGED = ("sm_75", GFX942)
WARP = 32
REGISTERS_PER_MULTIPROCESSOR = 65536
RESERVED_SHARED_BYTES = 1024  # per resident block, from sm_80 on

ArgumentType = str | tuple["ArgumentType", ...]
"""Triton type of an argument, such as ``"*fp16"``, ``"i64"``, ``"fp32"``; of a tuple those of what is in it."""


@dataclass(frozen=True)
class CompileCase:
    """A kernel at the shape of one launch.

    Attributes:
        name: unique within its module, such as ``"forward qm9 fp16"``.
        kernel: the function made by ``triton.jit``.
        signature: type of each argument that is not constexpr; :func:`signature` makes it.
        constants: the constexpr arguments.
        num_warps: warps of a block.
        num_stages: stages of software pipelining.
        targets: the compute capabilities it is for, such as ``(80, 90)``; empty: all.
        expects_matrix_instructions: whether there must be matrix instructions.
        multiples_of_16: names of integers that are, which the launch tells the compiler; pointers always are.
    """

    name: str
    kernel: Any
    signature: Mapping[str, ArgumentType]
    constants: Mapping[str, object]
    num_warps: int
    num_stages: int
    targets: tuple[int, ...] = ()
    expects_matrix_instructions: bool = False
    multiples_of_16: tuple[str, ...] = ()


def signature(
    kernel: Any, constants: Container[str], types: Mapping[str, ArgumentType], value_type: ArgumentType
) -> dict[str, ArgumentType]:
    """The types of a kernel's arguments.

    Args:
        kernel: the function made by ``triton.jit``.
        constants: names of the constexpr arguments, which have none.
        types: of arguments by name; it may name some that this kernel lacks.
        value_type: of all others.
    """
    return {name: types.get(name, value_type) for name in kernel.arg_names if name not in constants}


@dataclass(frozen=True)
class Multiprocessor:
    """What the resident blocks of one multiprocessor share (CUDA C++ Programming Guide, table of technical specifications)."""

    warps: int
    blocks: int
    shared_bytes: int


TARGETS = {
    "sm_75": Multiprocessor(32, 16, 64 << 10),
    "sm_80": Multiprocessor(64, 32, 164 << 10),
    "sm_86": Multiprocessor(48, 16, 100 << 10),
    "sm_90": Multiprocessor(64, 32, 228 << 10),
    "sm_100": Multiprocessor(64, 32, 228 << 10),
}
"""The NVIDIA GPUs that kernels are compiled for."""


@dataclass(frozen=True)
class Resources:
    """What one case uses on one target; only ``error`` where it does not compile.

    Attributes:
        warps_per_multiprocessor: how many fit at once; 0 where not even one block does. None on AMD.
    """

    module: str
    case: str
    target: str
    registers: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0
    warps_per_multiprocessor: int | None = None
    matrix_instructions: int = 0
    expects_matrix_instructions: bool = False
    error: str | None = None

    def problem(self) -> str | None:
        """What is wrong with it, in a few words; None where all is well or the target is not judged."""
        if self.target in NOT_JUDGED:
            return None
        if self.error is not None:
            return f"does not compile: {self.error}"
        if self.stack_bytes > 0:
            return f"{self.stack_bytes} bytes on the stack"
        if self.warps_per_multiprocessor == 0:
            return f"{self.shared_bytes} bytes of shared memory, more than a block can have"
        if self.expects_matrix_instructions and self.matrix_instructions == 0:
            return "no matrix instructions"
        return None


def all_cases() -> dict[str, list[CompileCase]]:
    """The cases of every kernel module that lists some, by the module's name."""
    package = importlib.import_module(__package__)
    cases = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{__package__}.{entry.name}")
        if hasattr(module, "compile_cases"):
            cases[entry.name] = module.compile_cases()
    return cases


def measure(module: str, case: CompileCase, target: str) -> Resources:
    """Compile one case for one target, and read what it uses."""
    try:
        compiled = _compile(case, target)
    except Exception as error:  # whatever the compiler raises is the finding
        return Resources(module, case.name, target, error=_one_line(error))
    shared = compiled.metadata.shared
    expects = case.expects_matrix_instructions
    if target == GFX942:
        listing = compiled.asm["amdgcn"]
        registers, stack = _listed(listing, "vgpr_count"), _listed(listing, "private_segment_fixed_size")
        return Resources(module, case.name, target, registers, stack, shared, None, listing.count("v_mfma"), expects)
    registers, stack = registers_and_stack(compiled.asm["cubin"])
    instructions = len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", compiled.asm["ptx"]))
    warps = resident_warps(TARGETS[target], case.num_warps, registers, shared)
    return Resources(module, case.name, target, registers, stack, shared, warps, instructions, expects)


def _compile(case: CompileCase, target: str) -> Any:
    # Imported here: the interpreter has no compiler.
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    types = {name: "constexpr" if name in case.constants else case.signature[name] for name in names}
    # Pointers as torch's allocator gives them, which is also what a launch specialises on.
    paths = [*_pointers(tuple(types.values())), *((list(types).index(name),) for name in case.multiples_of_16)]
    aligned = {path: [["tt.divisibility", 16]] for path in paths}
    gpu = GPUTarget("hip", target, 64) if target == GFX942 else GPUTarget("cuda", int(target.removeprefix("sm_")), WARP)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    constants = dict(case.constants)
    if target == GFX942 and constants.get("PRECISION") == THREE_TERMS:
        constants["PRECISION"] = "ieee"  # as it is launched there
    return triton.compile(ASTSource(case.kernel, types, constants, aligned), target=gpu, options=options)


def _pointers(types: ArgumentType, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Where pointers stand among arguments, which may be tuples of arguments."""
    if isinstance(types, tuple):
        for place, inner in enumerate(types):
            yield from _pointers(inner, (*path, place))
    elif types.startswith("*"):
        yield path


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:150] if lines else 'no message'}"


def disassembler() -> Path:
    """The disassembler of Triton's package.

    Raises:
        FileNotFoundError: if this Triton has none.
    """
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not path.exists():
        raise FileNotFoundError(f"cuobjdump: expected the disassembler in Triton's package, got none at {path}")
    return path


def disassemble(cubin: bytes, option: str) -> str:
    """What the disassembler says of a compiled kernel, asked by an option."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(disassembler()), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread of a compiled kernel, and its bytes on the stack."""
    usage = disassemble(cubin, "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected a line with REG, STACK and LOCAL, got {usage!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _listed(listing: str, name: str) -> int:
    """A figure of the metadata at the end of an AMD assembly listing."""
    return int(re.findall(rf"\.{name}:\s+(\d+)", listing)[-1])


def resident_warps(multiprocessor: Multiprocessor, warps: int, registers: int, shared: int) -> int:
    """Warps that fit on a multiprocessor, in blocks of ``warps`` with ``registers`` a thread and ``shared`` bytes a block."""
    registers_per_warp = WARP * (-(-registers // 8) * 8)  # handed out by 8 a thread
    blocks = min(
        multiprocessor.blocks,
        multiprocessor.warps // warps,
        REGISTERS_PER_MULTIPROCESSOR // (registers_per_warp * warps),
        multiprocessor.shared_bytes // (shared + RESERVED_SHARED_BYTES),
    )
    return blocks * warps


def _jobs(targets: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Module, number of the case and target of everything to compile."""
    all_of_them = all_cases()
    unknown = set(names) - {f"{module}: {case.name}" for module, cases in all_of_them.items() for case in cases}
    if unknown:
        raise ValueError(f"cases: expected 'module: case' of cases that there are, got {', '.join(map(repr, sorted(unknown)))}")
    for module, cases in all_of_them.items():
        for number, case in enumerate(cases):
            if names and f"{module}: {case.name}" not in names:
                continue
            for target in targets:
                if target == GFX942 or not case.targets or int(target.removeprefix("sm_")) in case.targets:
                    yield module, number, target


def _measure_job(job: tuple[str, int, str]) -> Resources:
    module, number, target = job
    case = importlib.import_module(f"{__package__}.{module}").compile_cases()[number]  # kernels cannot be pickled
    return measure(module, case, target)


def measure_all(targets: Sequence[str], names: Sequence[str] = (), processes: int = 2) -> list[Resources]:
    """Compile cases for targets.

    Args:
        targets: of :data:`TARGETS`, or ``gfx942``.
        names: ``"module: case"`` of the cases; empty: all.
        processes: how many compile at once.

    Raises:
        RuntimeError: under Triton's interpreter, which has no compiler.
        ValueError: if there is no case of a name.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET: expected it not to be set, as kernels are compiled here, got 1")
    jobs = list(_jobs(targets, names))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_measure_job, jobs))


def table(rows: Sequence[Resources]) -> str:
    """The Markdown page: one table per module, a line per case, a column per target."""
    lines = [
        "# What the kernels use",
        "",
        f"Written by `python -m se3_fast.kernels.resources` with Triton {triton.__version__}. In each cell: registers a thread /",
        "bytes of shared memory / warps that fit on one multiprocessor / matrix instructions in the code. Stack bytes are named",
        "where there are any (registers were spilled); gfx942 has no figure for warps.",
    ]
    targets = list(dict.fromkeys(row.target for row in rows))
    for module in dict.fromkeys(row.module for row in rows):
        lines += ["", f"## {module}", "", f"| case | {' | '.join(targets)} |", "|---" * (len(targets) + 1) + "|"]
        cells = {(row.case, row.target): _cell(row) for row in rows if row.module == module}
        for case in dict.fromkeys(case for case, _ in cells):
            lines.append(f"| {case} | {' | '.join(cells.get((case, target), 'not for it') for target in targets)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Resources) -> str:
    if row.error is not None:
        return f"does not compile ({row.error.replace('|', '/')})"
    warps = [] if row.warps_per_multiprocessor is None else [row.warps_per_multiprocessor]
    cell = " / ".join(map(str, [row.registers, row.shared_bytes, *warps, row.matrix_instructions]))
    return f"{cell}, **stack {row.stack_bytes}**" if row.stack_bytes else cell


def _write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 where a kernel has a problem."""
    every_target = [*TARGETS, GFX942]
    parser = argparse.ArgumentParser(prog="python -m se3_fast.kernels.resources", description="What the kernels use on every GPU.")
    parser.add_argument("--targets", nargs="+", choices=every_target, default=every_target, help="compile for these (default: all)")
    parser.add_argument("--cases", nargs="+", default=[], metavar="'MODULE: CASE'", help="compile these (default: all)")
    parser.add_argument("--processes", type=int, default=2, help="how many compile at once (default: 2)")
    parser.add_argument(
        "--output", type=Path, help="the table to write (default: RESOURCES.md beside the kernels, where all is compiled)"
    )
    parser.add_argument("--json", type=Path, help="write the figures there too, as JSON")
    options = parser.parse_args(arguments)
    is_whole = options.targets == every_target and not options.cases
    output = options.output or (TABLE if is_whole else None)
    if output is None and options.json is None:
        parser.error("--output: expected a file, as a table of some cases or targets does not replace RESOURCES.md")
    rows = measure_all(options.targets, options.cases, options.processes)
    if output is not None:
        _write_whole(output, table(rows))
    if options.json is not None:
        _write_whole(options.json, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    problems = [f"{row.module}: {row.case} on {row.target}: {problem}" for row in rows if (problem := row.problem()) is not None]
    print(f"{len(rows)} compiled, {len(problems)} with a problem")
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
