"""Damaged and crafted files: a reader refuses them in one line or reads what was written, and never dies or takes much memory.

`SE3_FAST_FUZZ_SECONDS` says how long this is tried; without it a few fixed cases are. A case is run again by

    echo "READER SEED NUMBER" | python -m tests.fuzz.files.worker
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Iterator

import pytest

from tests.fuzz import budget
from tests.fuzz.files.driver import Driver, Tally

SHORT = {
    **{"molecules": 160, "force_frames": 110, "frame_folders": 160, "build_qm9": 120},
    **{"hdf5_collections": 160, "lmdb_shards": 160},
    **{"checkpoints": 160, "old_checkpoints": 110, "safetensors": 110, "force_fields": 60},
}
"""Cases of each reader in the short run."""


NEEDS = {"build_qm9": "rdkit", "hdf5_collections": "h5py", "lmdb_shards": "ase_db_backends"}
"""Packages that not every installation has."""


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as running:
        yield running


@pytest.mark.parametrize("reader", SHORT)
def test_readers_hold(reader: str, driver: Driver) -> None:
    if reader in NEEDS and importlib.util.find_spec(NEEDS[reader]) is None:
        pytest.skip(f"needs {NEEDS[reader]}")
    end = budget.deadline("readers", part=1 / len(SHORT))
    tally = Tally()
    for number in itertools.count():
        if (time.monotonic() >= end) if budget.is_long() else (number >= SHORT[reader]):
            break
        driver.attempt(reader, budget.seed(), number, tally)
        budget.count("readers")
    print(f"fuzz: {reader}: {tally.cases} cases, {dict(tally.outcomes)}")
    assert not tally.failures, "\n".join(tally.failures[:40])
