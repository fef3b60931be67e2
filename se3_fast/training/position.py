"""How far a run has got within an epoch, so that a checkpoint can be written after any step and the epoch goes on there."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from se3_fast.data.data_module import RepeatableLoader

from .distributed import World
from .errors import CheckpointError
from .loss_record import LossRecord
from .random_state import restore_random_state

_MESSAGES = logging.getLogger(__name__)
_KEYS = {"batches": int, "of_batches": int, "learning_rate": float, "losses": list, "rng": list}


@dataclass
class EpochPosition:
    """How far an epoch has got.

    Attributes:
        of_batches: Batches of the epoch.
        learning_rate: At its start.
        random_state: Of this process at its start, from which a loader may draw the order; None: not known.
        batches: That are done: those of whole optimizer steps.
        losses: Theirs.
    """

    of_batches: int
    learning_rate: float
    random_state: dict[str, Any] | None
    batches: int = 0
    losses: LossRecord = field(default_factory=LossRecord)

    def of_all(self, world: World) -> dict[str, Any]:
        """What a checkpoint keeps of it, plain values; all processes must call it.

        Raises:
            TrainingError: A loss is not finite.
        """
        self.losses.read()
        of_ranks = world.gather(((self.losses.total, self.losses.count), self.random_state))
        losses, random_states = zip(*of_ranks, strict=True)
        return {
            "batches": self.batches,
            "of_batches": self.of_batches,
            "learning_rate": self.learning_rate,
            "losses": list(losses),
            "rng": [state for state in random_states if state is not None],
        }

    @classmethod
    def from_checkpoint(cls, saved: Any, world: World, path: Path) -> EpochPosition:
        """The position that a checkpoint has kept, for this process.

        Raises:
            CheckpointError: It is none; names `path`.
        """
        if not _is_position(saved):
            raise CheckpointError(f"{path}: expected a position within an epoch ({', '.join(_KEYS)}), got {str(saved)[:200]}")
        rank, size = world.rank, len(saved["losses"])
        if size == world.size:
            total, count = saved["losses"][rank]
        else:  # every process goes on with the mean of those that there were
            total, count = math.fsum(total for total, _ in saved["losses"]) / size, saved["losses"][0][1]
        random_state = saved["rng"][rank] if rank < len(saved["rng"]) else None
        losses = LossRecord(float(total), count)
        return cls(saved["of_batches"], saved["learning_rate"], random_state, saved["batches"], losses)

    def fit_to(self, batches: int, group: int) -> None:
        """Go on in an epoch of another number of batches, of which `group` make a step: at the same share of it."""
        if batches == self.of_batches:
            return
        share = self.batches / self.of_batches
        done = min(batches, int(share * batches) // group * group)
        _MESSAGES.warning(
            "the checkpoint was written after batch %s of %s; of %s batches the epoch goes on after number %s: "
            "a few samples may be missed or seen twice",
            *(self.batches, self.of_batches, batches, done),
        )
        self.batches, self.of_batches = done, batches

    def batches_left(self, batches: Iterable[Any], random_state: dict[str, Any] | None) -> Iterator[Any]:
        """The batches of the epoch after those that are done.

        The others are drawn once more and dropped, from the random state that they were drawn from; unless `batches` can do without
        (:class:`~se3_fast.data.data_module.RepeatableLoader`).

        Args:
            batches: All batches.
            random_state: Of this process after the last batch that is done; None: it stays as it is.
        """
        if self.random_state is not None:
            restore_random_state(self.random_state)
        if isinstance(batches, RepeatableLoader):
            all_batches = batches.after(self.batches)
        else:
            all_batches = iter(batches)
            for _ in islice(all_batches, self.batches):
                pass
        if self.batches > 0 and random_state is not None:
            restore_random_state(random_state)
        return all_batches


def _is_position(saved: Any) -> bool:
    if not isinstance(saved, dict) or any(not isinstance(saved.get(key), kind) for key, kind in _KEYS.items()):
        return False
    if not 0 <= saved["batches"] <= saved["of_batches"] or saved["of_batches"] == 0:
        return False
    return len(saved["losses"]) > 0 and all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], float) and isinstance(pair[1], int)
        for pair in saved["losses"]
    )
