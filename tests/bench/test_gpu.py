"""``python -m bench.gpu``: its rows, its file, and what is done where time runs out or a row fails."""

from __future__ import annotations

import ast
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import gpu, gpu_tests
from bench.children import CallFailed
from bench.registry import BENCHMARKS
from bench.sections import Files, memory, models, operations, rivals, rows, throughput
from bench.workloads import BACKENDS, SIZES

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the command changes of its process."""
    monkeypatch.chdir(ROOT)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


class Answers:
    """In place of the child: what it is asked, and what it says."""

    def __init__(self, measure: Callable[..., Row]) -> None:
        self.measure = measure

    def call(self, function: str, arguments: Row, seconds: float) -> Any:
        assert seconds > 0
        match function:
            case "bench.sections:rows":
                return rows(arguments["section"])
            case "bench.sections:measure":
                return self.measure(**arguments["row"])
            case "bench.sections:start":
                return {"name": "NVIDIA_H200", "environment": {"commit": "this"}}
        return {"text": ""}

    def stop(self) -> None:
        """There is no process."""

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def make_run(out: Path, measure: Callable[..., Row], seconds: float = 60.0) -> gpu.Run:
    run = gpu.Run(gpu.Plan(), seconds, out, None, out)
    run.child = Answers(measure)
    run.open_device()
    return run


def written(run: gpu.Run) -> Row:
    return json.loads((run.out / "NVIDIA_H200.json").read_text())


def test_ours_come_first() -> None:
    for module in (throughput, operations, models, memory):
        backends = [row["backend"] for row in module.rows() if "backend" in row]
        assert backends[0] == BACKENDS[-1] and set(backends) >= {BACKENDS[0], BACKENDS[-1]}
    assert {row["operation"] for row in operations.rows()} == {*BENCHMARKS, "rates"}
    assert not any(
        row["operation"] in ("edge_frames", "basis") and row["precision"] == "float16" for row in operations.rows() if "pass" in row
    )
    assert len(list(models.rows())) == len(SIZES) * 2 * (2 * len(BACKENDS) + 1)
    assert {row["name"] for row in rivals.rows()} >= {*BACKENDS, "e3nn"}


def test_no_time_left(tmp_path: Path) -> None:
    run = make_run(tmp_path, lambda **row: pytest.fail("there is no time"), seconds=0.0)
    gpu.run_section(run, "models")
    missing = written(run)["not measured"]
    assert len(missing) == len(list(models.rows())) and {row["reason"] for row in missing} == {"out of time"}
    assert {row["section"] for row in missing} == {"models"} and written(run)["models"] == []


def test_a_section_has_its_time_and_what_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path, lambda **row: {}, seconds=300.0)
    for section, seconds in (("tests", 180.0), ("operations", 120.0), ("models", 300.0)):
        run.begin(section)
        assert run.seconds_left() == pytest.approx(seconds, abs=1.0)


def test_a_capture_that_fails_is_measured_otherwise(tmp_path: Path) -> None:
    def measure(is_captured: bool = True, **row: Any) -> Row:
        if is_captured:
            raise CallFailed("CaptureFailed", "CaptureFailed: no")
        return {"is_captured": is_captured}

    run = make_run(tmp_path, measure)
    run.begin("operations")
    assert run.measure("operations", {"operation": "pooling"}) == {"operation": "pooling", "is_captured": False}
    assert written(run)["operations"] == [{"operation": "pooling", "is_captured": False}] and not written(run)["not measured"]


def test_sweeps_end_where_a_size_fails_or_takes_long(tmp_path: Path) -> None:
    def measure(sweep: str, backend: str, edges: int = 0, max_degree: int = 0) -> Row:
        if (sweep, backend, edges >= 200) == ("edges", BACKENDS[0], True):
            raise CallFailed("crashed", "the process ended by signal 11 (SIGSEGV)")
        return {"edges": 0} if sweep == "largest graph" else {"step_ms": 2e3 if max_degree == 4 else 1.0}

    run = make_run(tmp_path, measure)
    gpu.run_section(run, "memory")
    found = [row for row in written(run)["memory"] if row["backend"] == BACKENDS[0]]
    assert [row["edges"] for row in found if row["sweep"] == "edges"] == [100]
    assert [row["max_degree"] for row in found if row["sweep"] == "degrees"] == [1, 2, 3, 4]
    reasons = [row["reason"] for row in written(run)["not measured"] if row["backend"] == BACKENDS[0]]
    assert reasons[0].endswith("(SIGSEGV)") and set(reasons[1:]) == {"the size before failed, or took too long"}


def test_a_second_run_keeps_the_other_sections(tmp_path: Path) -> None:
    for section in ("models", "rivals", "models"):
        run = make_run(tmp_path, lambda **row: {"found": 1} if row.get("name") != "e3nn" else fail())
        gpu.run_section(run, section)
    names = [row["name"] for row in written(run)["rivals"]]
    assert names and "e3nn" not in names and len(written(run)["models"]) == len(list(models.rows()))
    assert [row["name"] for row in written(run)["not measured"]] == ["e3nn"]
    assert written(run)["environment"] == {"commit": "this"}


def fail() -> None:
    raise CallFailed("ValueError", "ValueError: no")


def test_rows_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, lambda **row: {})
    monkeypatch.setattr(run.child, "call", lambda *_: fail())
    gpu.run_section(run, "rivals")
    assert written(run)["not measured"] == [{"section": "rivals", "reason": "ValueError: no"}]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    run = make_run(tmp_path, lambda **row: {})
    run.begin("rivals")
    run.write()
    run.results["rivals"] = [object()]
    with pytest.raises(TypeError):
        run.write()
    assert written(run)["rivals"] == []


def test_a_section_that_fails_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the disk is full; the tests have not passed."""

    def fail_to_run(*_: Any) -> Row:
        raise OSError("no space left")

    monkeypatch.setattr(gpu_tests, "run", fail_to_run)
    monkeypatch.setattr(gpu, "Child", lambda preload: Answers(lambda **row: {"found": 1}))
    assert gpu.main(["--out", str(tmp_path), "--only", "tests", "rivals"]) == 1
    written = json.loads((tmp_path / "NVIDIA_H200.json").read_text())
    assert written["not measured"] == [{"section": "tests", "reason": "OSError: no space left"}]
    assert len(written["rivals"]) == len(list(rivals.rows()))


def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "error: expected a CUDA device, got cpu" in capsys.readouterr().err


def test_a_reproduction_needs_time_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, lambda **row: {}, seconds=300.0)
    gpu.run_section(run, "reproduce")
    run.data_dir = tmp_path
    (tmp_path / "qm9_edge.npz").touch()
    commands: list[list[str]] = []
    monkeypatch.setattr(gpu, "run_command", lambda command, seconds: commands.append(command) or 0)
    gpu.run_section(run, "reproduce")
    assert commands[0][1:3] == ["-m", "bench.reproduce"] and commands[0][commands[0].index("--minutes") + 1] == "4.50"
    assert written(run)["reproduce"] == [{"minutes": pytest.approx(4.5, abs=0.1), "exit_code": 0}]
    run.end = 0.0
    gpu.run_section(run, "reproduce")
    assert written(run)["not measured"] == [{"section": "reproduce", "reason": "out of time"}]


@pytest.mark.parametrize("name", ["gpu", "gpu_tests", "children", "rehearsal"])
def test_the_process_that_looks_after_the_others_needs_no_package(name: str) -> None:
    """Nor does it open the device, which only PyTorch could."""
    tree = ast.parse((ROOT / "bench" / f"{name}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {module for module in imported if module.partition(".")[0] not in sys.stdlib_module_names}
    assert ours <= {"bench", "bench.children"}


def test_figures_of_a_row(tmp_path: Path) -> None:
    """Ratios and shares of the roofline are added when a section ends."""
    rates = {"operation": "rates", "flop_per_second": {"float32": 1e12}, "bytes_per_second": 1e12}
    row = {"operation": "pooling", "workload": "qm9", "precision": "float32", "pass": "forward"}
    slow, fast = row | {"backend": BACKENDS[0], "ms": 8.0}, row | {"backend": BACKENDS[-1], "ms": 2.0}
    fast["cost"] = {"matrix_flop": 0, "vector_flop": 0, "bytes": 10**9}
    found = operations.summarise(Files(None, tmp_path, tmp_path), [rates, fast, slow])
    assert found["rows"][1]["speed_up"] == 4.0 and found["rows"][1]["roofline_fraction"] == pytest.approx(0.5)
    assert "4.00 speed_up  0.50 roofline_fraction" in found["text"]
