"""A plugin of pytest for tests that may hang or lose the device: every outcome is written when it is known.

A line of JSON for each test that begins and for each that ends goes to the file ``SE3_FAST_TEST_LOG``; tests that the file
``SE3_FAST_TESTS_BEGUN`` lists are left out, so that pytest can be started again after a crash. A test that takes longer than
``SE3_FAST_TEST_SECONDS`` ends its process by a timer of the C library, which needs no lock of Python's; where it stood is written
beside the log. After a test that failed, a device that no longer answers ends the process too: everything after it would fail.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_tests import BEGUN, LOG, SECONDS

DEVICE_IS_LOST = 70
"""Exit code."""

_outcomes: dict[str, dict[str, str]] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has begun before."""
    begun = set(Path(os.environ[BEGUN]).read_text().splitlines())
    left_out = [item for item in items if item.nodeid in begun]
    items[:] = [item for item in items if item.nodeid not in begun]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test from its beginning to its end."""
    _write({"begun": item.nodeid})
    with Path(os.environ[LOG]).with_suffix(".stacks").open("a") as stacks:
        faulthandler.dump_traceback_later(float(os.environ[SECONDS]), exit=True, file=stacks)
        try:
            result = yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    outcome = _outcomes.pop(item.nodeid, {"outcome": "passed"})
    _write({"ended": item.nodeid, **outcome})
    if outcome["outcome"] == "failed" and device_is_lost():
        os._exit(DEVICE_IS_LOST)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Of a test that does not pass, how it ended."""
    report: Any = yield
    if report.outcome != "passed":
        _outcomes[item.nodeid] = {"outcome": report.outcome, "text": report.longreprtext}
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Not in the processes that run a part of the tests each."""
    if not hasattr(session.config, "workerinput"):
        _write({"finished": True})


def device_is_lost() -> bool:
    """Whether this process has a device that answers no more, as after an illegal access."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _write(entry: dict[str, Any]) -> None:
    with Path(os.environ[LOG]).open("a") as log:
        log.write(json.dumps(entry) + "\n")
