"""Work in child processes: whatever a call does, the next one is answered."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from bench.children import CallFailed, Child, run_command


def test_a_child_answers_until_a_call_fails() -> None:
    with Child(preload=()) as child:
        first, again = (child.call("os:getpid", {}, 30.0) for _ in range(2))
        assert first == again != os.getpid()
        for function, arguments, kind, reason in (
            ("json:loads", {"s": "no"}, "JSONDecodeError", "JSONDecodeError: Expecting value: line 1"),
            ("os:abort", {}, "crashed", r"the process ended by signal 6 \(SIGABRT\)"),
            ("os:_exit", {"status": 3}, "crashed", "the process ended by exit code 3"),
            ("signal:pause", {}, "hung", "stopped after 0 s"),
            ("no_such_package:f", {}, "ModuleNotFoundError", "ModuleNotFoundError: No module named 'no_such_package'"),
        ):
            before = child.call("os:getpid", {}, 30.0)
            with pytest.raises(CallFailed, match=reason) as failure:
                child.call(function, arguments, 0.3 if kind == "hung" else 30.0)
            assert failure.value.kind == kind
            assert child.call("os:getpid", {}, 30.0) != before
            with pytest.raises(ProcessLookupError):
                os.kill(before, 0)


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    """Here a process that would write a file later on."""
    late = tmp_path / "late"
    with Child(preload=()) as child, pytest.raises(CallFailed):
        child.call("os:system", {"command": f"(sleep 1; touch {late}) & echo $! > {tmp_path}/pid; sleep 60"}, 0.5)
    time.sleep(1.2)
    assert not late.exists()


def test_a_command_that_takes_too_long_may_say_what_it_has(tmp_path: Path) -> None:
    code = (
        "import pathlib, time, sys\n"
        "try:\n    pathlib.Path(sys.argv[1]).write_text('begun')\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pathlib.Path(sys.argv[1]).write_text('interrupted')\n"
    )
    assert run_command([sys.executable, "-c", code, str(tmp_path / "said")], 1.5) is None
    assert (tmp_path / "said").read_text() == "interrupted"
    assert run_command([sys.executable, "-c", "import os; raise SystemExit(int(os.environ['CODE']))"], 30.0, {"CODE": "7"}) == 7
