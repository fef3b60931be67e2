"""How long every campaign of tests/fuzz runs, where its random numbers start, and the count of its cases.

Two ways to run, chosen by the environment variable SE3_FAST_FUZZ_SECONDS:

- absent: the short run, part of `make test`. Every campaign tries the same few cases each time (fixed seed, a fixed number of
  cases; no clock decides) and takes some seconds.
- a number of seconds: the long run (`make fuzz`). Every campaign gets its share of them and tries new cases until they are over.
  SE3_FAST_FUZZ_SEED, a whole number, decides which; `make fuzz` runs two processes with two seeds.

A campaign of several tests splits its share by `part`:

    def test_mutated_checkpoints():
        end = deadline("readers", part=1 / 4)
        for number in itertools.count():
            if (time.monotonic() >= end) if is_long() else (number >= 50):
                break
            count("readers")
            check(random.Random(f"{seed()}-{number}"))

A test that fails says how to run that case again. tests/fuzz/conftest.py prints the cases and the failed tests of each campaign.
"""

from __future__ import annotations

import os
import time
from collections import Counter

SHARES = {"differential": 0.6, "readers": 0.2, "runs": 0.2}
"""Part of the long run that each campaign gets: backends against dense; files; kills, signals and concurrent runs."""

_cases: Counter[str] = Counter()


def is_long() -> bool:
    """Whether this is the long run."""
    return "SE3_FAST_FUZZ_SECONDS" in os.environ


def seconds(campaign: str, part: float = 1.0) -> float:
    """What the long run gives to a part of a campaign; without an end in the short run, which counts cases instead."""
    share = SHARES[campaign] * part
    return float(os.environ["SE3_FAST_FUZZ_SECONDS"]) * share if is_long() else float("inf")


def deadline(campaign: str, part: float = 1.0) -> float:
    """The moment, on the clock of `time.monotonic`, at which a part of a campaign that begins now is over."""
    return time.monotonic() + seconds(campaign, part)


def seed() -> int:
    """Where random numbers start: always 0 in the short run."""
    return int(os.environ.get("SE3_FAST_FUZZ_SEED", "0")) if is_long() else 0


def count(campaign: str, cases: int = 1) -> None:
    """Add cases to what the summary says of a campaign."""
    if campaign not in SHARES:
        raise KeyError(f"campaign: expected one of {sorted(SHARES)}, got {campaign!r}")
    _cases[campaign] += cases


def counted() -> dict[str, int]:
    """Cases of every campaign so far."""
    return dict(_cases)
