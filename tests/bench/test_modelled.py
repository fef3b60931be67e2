"""The static model of a step on a GPU: reading machine code, following warps, placing programs; launches whose speed is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from bench.modelled import __main__ as command
from bench.modelled import gpu, known, launch_time, recording, step, tables
from bench.modelled.launch_time import LaunchTime, Program, bounds, makespan, time_of
from bench.modelled.listing import NO_SCOREBOARD, Instruction, instructions_of, read_listing
from bench.modelled.memory import Memory, Storage
from bench.modelled.recording import KernelLaunch, OperationLaunch, Pointer
from bench.modelled.step import Row, rows_of
from bench.modelled.warp import Code, Work
from se3_fast.kernels import resources

ROOT = Path(__file__).parents[2]
ONE_WAVE = gpu.MULTIPROCESSORS


def line(address: int, text: str, stall: int = 1, write: int = NO_SCOREBOARD, read: int = NO_SCOREBOARD, wait: int = 0) -> str:
    """An instruction in the two lines of a listing."""
    control = stall | write << 5 | read << 8 | wait << 11
    return f"        /*{address:04x}*/   {text} ;   /* 0x{0:016x} */\n{'':30}/* 0x{control << 41:016x} */\n"


def program(*texts: str) -> list[Instruction]:
    """Instructions one after another, that wait for nothing."""
    return read_listing("".join(line(16 * number, text) for number, text in enumerate(texts)))


def follow(instructions: list[Instruction], constants: dict | None = None, storages: tuple[Storage, ...] = ()) -> Work:
    return Code(instructions, constants or {}, Memory(storages)).follow((0, 0, 0), 0, set())


# reading ---------------------------------------------------------------------------------------------------------------------


def test_fields_of_a_listing() -> None:
    load = line(0x140, "@!P1 LDG.E.128 R5, desc[UR6][R22.64+0x10]", stall=4, write=2, read=3, wait=0b100001)
    add = line(0x150, "IADD3 R7, P0, P1, R7.reuse, -R8, c[0x0][0x210]", stall=15)
    first, second = read_listing(f"\tFunction : _kernel\n{load}{add}")
    assert (first.address, first.guard, first.name, first.modifiers) == (0x140, "!P1", "LDG", ("E", "128"))
    assert first.operands == ("R5", "desc[UR6][R22.64+0x10]")
    assert (first.stall, first.write_scoreboard, first.read_scoreboard, first.wait_mask) == (4, 2, 3, 0b100001)
    assert second.operands == ("R7", "P0", "P1", "R7", "-R8", "c[0x0][0x210]")
    assert (second.guard, second.stall, second.write_scoreboard, second.wait_mask) == (None, 15, NO_SCOREBOARD, 0)


def test_a_listing_without_instructions() -> None:
    with pytest.raises(ValueError, match="listing: expected instructions of two lines each, got 'nothing'"):
        read_listing("nothing")


def test_no_disassembler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(resources.triton, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(sys, "argv", ["bench.modelled"])
    assert command.main() == 1
    assert capsys.readouterr().err.startswith("cuobjdump: expected the disassembler in Triton's package, got none at")


# following -------------------------------------------------------------------------------------------------------------------


def values_of(*texts: str, constants: dict | None = None) -> set[int]:
    """What stands in R0 of all lanes at the end: the sectors stored to, as it is multiplied by their size. Empty: not known."""
    code = Code(
        program(*texts, "IMAD.WIDE.U32 R10, R0, 0x20, RZ", "STG.E desc[UR4][R10.64], R9", "EXIT"), constants or {}, Memory(())
    )
    work = code.follow((3, 2, 1), 1, set())
    assert not work.unknown_instructions
    return set() if work.unknown_requests else work.written


MINUS_5 = 0xFFFFFFFB
CONSTANTS = {(0, 0x210): 77, (0, 0x214): MINUS_5, (0, 0x218): 0x12345678, (0, 0x21C): 0x9ABCDEF0}
A, B, C, D = (f"c[0x0][0x{0x210 + 4 * place:x}]" for place in range(4))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((f"IADD3 R0, {A}, -0x2, 0x10",), 91),
        ((f"IADD3 RZ, P0, {B}, {A}, RZ", "IADD3.X R0, RZ, 0x20, RZ, P0, !PT"), 33),  # -5 + 77 carries
        ((f"MOV R1, {A}", f"IADD3 R0, {C}, -R1, RZ"), 0x12345678 - 77),
        ((f"IMAD R0, {A}, 0x3, {B}",), 226),
        ((f"IMAD.WIDE R0, {A}, {B}, RZ",), -385 & 0xFFFFFFFF),
        ((f"IMAD.WIDE R2, {A}, {B}, RZ", "MOV R0, R3"), 0xFFFFFFFF),
        ((f"IMAD.WIDE.U32 R2, {A}, {B}, RZ", "MOV R0, R3"), 76),
        ((f"IMAD.HI.U32 R0, {C}, {D}, RZ",), 0x12345678 * 0x9ABCDEF0 >> 32),
        ((f"LEA R0, {A}, 0x100, 0x2",), 77 * 4 + 256),
        ((f"LEA.HI R0, {C}, 0x7, RZ, 0x8",), (0x12345678 << 8 >> 32) + 7),
        ((f"LOP3.LUT R0, {C}, {D}, 0xff, 0xe8, !PT",), 0x12345678 & 0x9ABCDEF0 | (0x12345678 | 0x9ABCDEF0) & 0xFF),
        ((f"SHF.R.S32.HI R0, RZ, 0x1, {B}",), -3 & 0xFFFFFFFF),
        ((f"SHF.R.U32.HI R0, RZ, 0x4, {C}",), 0x1234567),
        ((f"SHF.L.U64.HI R0, {D}, 0x4, {C}",), 0x23456789),
        ((f"SHF.R.U64 R0, {D}, 0x8, {C}",), 0x789ABCDE),
        ((f"PRMT R0, {C}, 0x5410, {D}",), 0xDEF05678),
        ((f"PRMT R0, {D}, 0x8880, RZ",), 0xFFFFFFF0),
        ((f"SGXT R0, {D}, 0x8",), 0xFFFFFFF0),
        ((f"ISETP.LT.AND P0, PT, {B}, {A}, PT", "SEL R0, 0x40, 0x80, P0"), 0x40),
        ((f"ISETP.LT.U32.AND P0, P1, {B}, {A}, PT", "SEL R0, 0x40, 0x80, P1"), 0x40),
        # 64 bits: (1, 77) > (1, 5) as the lower halves say so.
        ((f"ISETP.GT.U32.AND P0, PT, {A}, 0x5, PT", "ISETP.GT.AND.EX P1, PT, 0x1, 0x1, PT, P0", "SEL R0, 0x40, 0x80, P1"), 0x40),
        ((f"ISETP.GT.U32.AND P0, PT, {A}, 0x5, PT", "ISETP.GT.AND.EX P1, PT, 0x0, 0x1, PT, P0", "SEL R0, 0x40, 0x80, P1"), 0x80),
        (("PLOP3.LUT P0, PT, PT, PT, PT, 0x8, 0x0", "SEL R0, 0x40, 0x80, P0"), 0x80),
        ((f"VIMNMX R0, {A}, {B}, !PT",), 77),
        ((f"IABS R0, {B}",), 5),
        (("HFMA2.MMA R0, -RZ, RZ, 0, 2.384185791015625e-07",), 4),
        ((f"I2F.RP R1, {A}", "MUFU.RCP R2, R1", "IADD3 R2, R2, 0xffffffe, RZ", "F2I.FTZ.U32.TRUNC.NTZ R0, R2"), (1 << 32) // 77),
        (
            ("S2R R1, SR_CTAID.X", "S2R R2, SR_CTAID.Y", "S2R R3, SR_CTAID.Z", "IMAD R4, R1, 0x100, R2", "IMAD R0, R4, 0x100, R3"),
            0x30201,
        ),
        (("S2R R1, SR_TID.X", "R2UR UR4, R1", "UIADD3 UR5, UR4, 0x1, URZ", "IMAD.U32 R0, RZ, RZ, UR5"), 33),  # the second warp
    ],
    ids=lambda given: given[-1].partition(",")[0] if isinstance(given, tuple) else "",
)
def test_integers(texts: tuple[str, ...], expected: int) -> None:
    (found,) = values_of(*texts, constants=CONSTANTS)
    assert abs(found - expected) <= (8 if "MUFU.RCP R2, R1" in texts else 0)  # a reciprocal in float32


def test_what_is_not_known_stays_so() -> None:
    assert values_of("FADD R1, R2, R3", "IADD3 R0, R1, 0x20, RZ") == set()
    assert values_of("LDS R1, [RZ]", "SEL R0, 0x20, R1, PT") == {0x20}
    assert values_of("LDS R1, [RZ]", "PRMT R0, R1, 0x7654, 0x40") == {0x40}
    assert values_of("LDS R1, [RZ]", "ISETP.LT.AND P0, PT, R1, 0x2, !PT", "SEL R0, 0x20, 0x40, P0") == {0x40}


def test_lanes() -> None:
    shuffled = values_of("S2R R1, SR_LANEID", "SHFL.DOWN PT, R0, R1, 0x1e, 0x1f")
    assert shuffled == {30, 31}
    assert values_of("S2R R1, SR_LANEID", "MOV R0, 0x50", "ISETP.EQ.AND P0, PT, R1, 0x4, PT", "@P0 MOV R0, 0x60") == {0x50, 0x60}


def test_a_loop_and_the_lanes_that_leave_it() -> None:
    body = ("S2R R3, SR_TID.X", "MOV R1, RZ", "IADD3 R1, R1, 0x1, RZ", "ISETP.LT.AND P0, PT, R1, R3, PT", "@P0 BRA 0x20", "EXIT")
    work = follow(program(*body))
    assert work.instructions["control"] == 1 + 31 + 1  # lane 31 goes round 31 times
    assert work.instructions["alu"] == 1 + 2 * 31
    assert work.unknown_branches == 0


def test_a_branch_of_many_ways() -> None:
    texts = ("LDC R2, c[0x2][R4+0x4]", "BRX R2 -0x20", "EXIT", "NOP", "EXIT")
    with_table = follow(program("MOV R4, RZ", *texts), {(2, 4): 0x30})
    assert (with_table.instructions["control"], with_table.unknown_branches) == (4, 0)
    assert follow(program("MOV R4, RZ", *texts)).unknown_branches == 1


def test_an_unknown_instruction_is_counted() -> None:
    work = follow(program("WHATEVER.X R1, R2", "@!PT WHATEVER R1", "EXIT"))
    assert work.unknown_instructions == {"WHATEVER": 1}
    time = LaunchTime(8, 0, 1, dict.fromkeys(launch_time.BOUNDS, 1.0), unknown_instructions={"WHATEVER": 1})
    row = Row("kernel", "model", 1, 3.0, time.bounds, (1, 1, 1), 4, time)
    assert "WHATEVER x 1" in tables.instructions_table([row])


def test_integers_are_read_from_memory() -> None:
    numbers = np.arange(100, 164, dtype=np.int32)
    storage = Storage(7, numbers.nbytes, numbers.view(np.uint8))
    memory = Memory((storage,))
    address = memory.address(storage, 8)
    constants = {(0, 0x210): address & 0xFFFFFFFF, (0, 0x214): address >> 32}
    texts = ("S2R R1, SR_LANEID", "IMAD.WIDE R2, R1, 0x4, c[0x0][0x210]", "LDG.E R4, desc[UR4][R2.64]")
    code = Code(program(*texts, "STG.E desc[UR4][R4.U32], R9", "EXIT"), constants, memory)
    work = code.follow((0, 0, 0), 0, set())
    assert work.written == {number // 32 for number in range(102, 134)}
    assert work.sectors_read == 5  # 128 bytes that start 8 bytes after a sector
    assert work.unknown_requests == 0


def test_lanes_that_do_not_read() -> None:
    constants = {(0, 0x210): 0, (0, 0x214): 0x7F00}
    texts = ("S2R R1, SR_LANEID", "IMAD.WIDE R2, R1, 0x20, c[0x0][0x210]", "ISETP.LT.AND P0, PT, R1, 0x4, PT")
    for access, sectors in (
        ("@P0 LDG.E R4, desc[UR4][R2.64]", 4),
        ("LDGSTS.E [R8], desc[UR4][R2.64], P0", 4),
        ("LDG.E R4, [R2.64]", 32),
    ):
        assert follow(program(*texts, access, "EXIT"), constants).sectors_read == sectors


@pytest.mark.parametrize(
    ("scale", "access", "wavefronts"),
    [
        (4, "LDS R4, [R2]", 1),
        (128, "LDS R4, [R2]", 32),
        (8, "LDS R4, [R2]", 2),
        (0, "LDS R4, [R2]", 1),
        (16, "LDS.128 R4, [R2]", 4),
    ],
)
def test_bank_conflicts(scale: int, access: str, wavefronts: int) -> None:
    work = follow(program("S2R R1, SR_LANEID", f"IMAD R2, R1, 0x{scale:x}, RZ", access, "EXIT"))
    assert work.cycles["memory"] == wavefronts


# time of a warp --------------------------------------------------------------------------------------------------------------


def test_waiting_for_memory() -> None:
    """A load that misses, and one of the same sector; what needs them waits for either."""
    load, use = "LDG.E R4, desc[UR4][R2.64]", "FADD R5, R4, R4"
    pointer = line(0, "CS2R R2, SRZ") + line(16, load, write=0) + line(32, use, wait=1) + line(48, load, write=0)
    work = follow(read_listing(pointer + line(64, use, wait=1) + line(80, "EXIT")))
    assert work.waited["LDG"] == gpu.LATENCY["L2 hit"] - 1 + gpu.LATENCY["L1 hit"] - 1
    assert work.alone == work.waited["LDG"] + 6


def test_matrix_instructions() -> None:
    group = "HGMMA.64x128x16.F32 R24, gdesc[UR4], R24, gsb0"
    work = follow(program(group, group, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT"))
    assert work.cycles["tensor"] == 2 * 64
    assert work.matrix_flop == 2 * 2 * 64 * 128 * 16 / 4
    assert work.alone == 2 * 64 + gpu.LATENCY["matrix group drains"] + 2
    assert follow(program("HMMA.16816.F32 R4, R8, R10, R4", "EXIT")).matrix_flop == 2 * 16 * 8 * 16


# time of a launch ------------------------------------------------------------------------------------------------------------


def test_placement() -> None:
    assert makespan([], 4) == 0
    assert makespan([3.0] * ONE_WAVE, ONE_WAVE) == 3
    assert makespan([3.0] * (ONE_WAVE + 1), ONE_WAVE) == 6
    assert makespan([4.0, 1.0, 1.0, 1.0, 1.0, 4.0], 2) == 8  # in their order: the last starts when the others are done


def test_bounds_of_programs() -> None:
    one = Program(1980.0, dict.fromkeys(launch_time.PLACED_PIPES, 198.0) | {"alu": 990.0}, 7500.0, 0.0)
    found = bounds([one] * (2 * ONE_WAVE), resident=2)
    assert found["latency"] == pytest.approx(1.0)
    assert found["alu"] == pytest.approx(1.0)  # two programs share a multiprocessor
    assert found["issue"] == pytest.approx(0.2)
    assert found["L2"] == pytest.approx(2 * ONE_WAVE * 1e-3)
    assert bounds([one] * (2 * ONE_WAVE), resident=1)["latency"] == pytest.approx(2.0)


@pytest.mark.parametrize(("rounds", "mean", "longest"), [("0x1ff", 250, range(480, 512)), ("0x40", 64, range(64, 65))])
def test_sampled_programs(rounds: str, mean: int, longest: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of as many rounds as the last bits of the program's number say, and one of 64 rounds in all programs."""
    loop = ("MOV R1, RZ", "IADD3 R1, R1, 0x1, RZ", "ISETP.LT.AND P0, PT, R1, R3, PT", "@P0 BRA 0x30", "EXIT")
    code = program("S2R R4, SR_CTAID.X", f"LOP3.LUT R3, R4, {rounds}, RZ, 0x{'c0' if mean > 64 else 'cc'}, !PT", *loop)
    monkeypatch.setattr(launch_time, "registers_and_stack", lambda cubin: (32, 0))
    monkeypatch.setattr(launch_time, "table_words", lambda cubin: [])
    monkeypatch.setattr(launch_time, "instructions_of", lambda cubin: code)
    found = time_of(KernelLaunch("kernel", "model", (1000, 1, 1), b"", 0, 1, ()))
    issued = 1000 * 3 * mean / gpu.SCHEDULERS / gpu.ISSUE_EFFICIENCY / gpu.MULTIPROCESSORS
    assert found.bounds["issue"] * gpu.CYCLES_PER_US == pytest.approx(issued, rel=0.25)
    assert found.instructions["control"] - 2 in longest


# a step ----------------------------------------------------------------------------------------------------------------------


def kernel_launch(key: int, num_bytes: int, offset: int = 0) -> KernelLaunch:
    pointer = Pointer(Storage(key, num_bytes), offset, num_bytes)
    return KernelLaunch("kernel", "model", (1, 1, 1), b"", 0, 4, (("*fp32", pointer),))


def test_which_launches_cost_the_same() -> None:
    """Whatever tensors of numbers they are given, but for how those are aligned; content and place of integers counts."""
    one = step._identity(kernel_launch(1, 1000))
    assert step._identity(kernel_launch(2, 1000)) == step._identity(kernel_launch(1, 1000, offset=256)) == one
    assert step._identity(kernel_launch(1, 1000, offset=4)) != one
    contents = [np.arange(4), np.arange(4), np.ones(4)]
    pointers = [
        Pointer(Storage(1, 32, content.view(np.uint8)), offset, 8) for content, offset in zip(contents, (0, 8, 0), strict=True)
    ]
    launches = [KernelLaunch("kernel", "model", (1, 1, 1), b"", 0, 4, (("*i64", pointer),)) for pointer in pointers]
    assert len({step._identity(launch) for launch in launches}) == 3


@pytest.fixture
def flat_time(monkeypatch: pytest.MonkeyPatch) -> None:
    without_memory = dict.fromkeys(launch_time.BOUNDS[:-1], 1.0)
    monkeypatch.setattr(step, "_kept_time", lambda launch, key: LaunchTime(32, 0, 4, without_memory))


@pytest.mark.usefixtures("flat_time")
def test_what_comes_from_memory() -> None:
    size = 30_000_000
    row, *others = rows_of([kernel_launch(1, size), kernel_launch(1, size), kernel_launch(2, size), kernel_launch(1, size)])
    assert not others and row.count == 4
    missed = size / gpu.MEMORY_BYTES_PER_US
    assert row.us == pytest.approx(3 * missed + 1.0 + 4 * gpu.LAUNCH_US)  # the second finds it in the cache
    assert row.bounds["HBM"] == pytest.approx(0.75 * missed)
    operation = OperationLaunch("torch.add", "model", 4_000_000)
    assert rows_of([operation])[0].us == pytest.approx(1.0 + gpu.LAUNCH_US)


@pytest.mark.usefixtures("flat_time")
def test_printed_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    what = {"workload": "qm9", "size": 2, "kind": "training step, float32", "molecules": 2}
    before = rows_of([kernel_launch(1, 100), OperationLaunch("torch.add", "model", 8)])
    after = rows_of([kernel_launch(1, 100), kernel_launch(1, 100)])
    first, _, head, _, _, kernel, *_ = tables.whole(what, before).splitlines()
    assert first.startswith("Modelled, not measured") and "Uncalibrated" in first
    assert head.startswith("qm9, size 2, training step, float32: 2 launches, 0.005 ms, 400.0 molecules/ms, 0.0 %")
    assert kernel.split()[:6] == ["kernel", "(model)", "1", "3.0", "3.0", "latency"]
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, rows in zip(files, (before, after), strict=True):
        path.write_text(json.dumps(tables.as_json(what, rows)))
    monkeypatch.setattr(sys, "argv", ["bench.modelled", "--compare", *map(str, files)])
    assert command.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == tables.FIRST_LINE
    assert [row.split() for row in printed[-3:]] == [
        ["kernel", "(model)", "1", "3.0", "latency", "2", "6.0", "latency", "+3.0"],
        ["torch.add", "(model)", "1", "2.0", "HBM", "0", "0.0", "-2.0"],
        ["all", "2", "5.0", "2", "6.0", "+1.0"],
    ]


def test_operations_in_place_count_what_they_overwrite() -> None:
    with recording.Recorder() as recorder:
        numbers = torch.ones(100)
        numbers.add_(1.0)
    assert [launch.num_bytes for launch in recorder.launched] == [400, 800]


def test_known_launches(tmp_path: Path) -> None:
    """Shares of the memory's 4.8e6 bytes per microsecond, and of the tensor cores' rate, within wide bounds."""
    code = "import sys; from bench.modelled.__main__ import main\nfor sys.argv[1:] in eval(sys.argv[1]): main()"
    files = {name: tmp_path / f"{name}.json" for name in known.KNOWN}
    calls = repr([[name, "--json", str(path)] for name, path in files.items()])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", code, calls], cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert run.stdout.startswith(tables.FIRST_LINE)
    size, side = known.SIZES["vector_addition"], known.SIZES["matrix_product"]
    ideal = {"vector_addition": 12 * size / 4.8e6, "matrix_product": 2 * side**3 / gpu.TENSOR_FLOP_PER_US}
    tiles = (side / 128) * (side / 256) * (128 + 256) * side  # numbers that programs read
    moved = {"vector_addition": 12 * size, "matrix_product": 2 * (tiles + side**2)}
    expected = {"vector_addition": ("HBM", 0.6, 1.0), "matrix_product": ("L2", 0.4, 0.9)}
    for name, (bound, least, most) in expected.items():
        (row,) = json.loads(files[name].read_text())["rows"]
        assert row["bound"] == bound
        assert least < ideal[name] / row["us"] < most
        assert row["bounds"]["L2"] * gpu.L2_BYTES_PER_US == pytest.approx(moved[name], rel=0.01)
        time = row["time"]
        assert (time["unknown_requests"], time["unknown_branches"], time["unknown_instructions"]) == (0, 0, {})


def test_under_the_interpreter() -> None:
    with (
        pytest.raises(RuntimeError, match="TRITON_INTERPRET: expected it not to be set, as kernels are compiled here, got 1"),
        recording.compiling_for_gpu(),
    ):
        pass


def test_disassembling_what_is_no_kernel() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        instructions_of(b"no kernel")
