"""Training: the loop and what it needs. `python -m se3_fast.train` is its command line."""

from typing import TYPE_CHECKING

from se3_fast.lazy import lazy_names

if TYPE_CHECKING:
    from .checkpoint import read_checkpoint, write_checkpoint
    from .distributed import World, open_world
    from .errors import CheckpointError, TrainingError
    from .evaluation import DirectPredictions, Evaluation, TargetScale, evaluate
    from .options import TrainingOptions
    from .trainer import Trainer, TrainingResult

__all__ = [
    "CheckpointError",
    "DirectPredictions",
    "Evaluation",
    "TargetScale",
    "Trainer",
    "TrainingError",
    "TrainingOptions",
    "TrainingResult",
    "World",
    "evaluate",
    "open_world",
    "read_checkpoint",
    "write_checkpoint",
]

_HOMES = {
    "CheckpointError": "se3_fast.training.errors",
    "DirectPredictions": "se3_fast.training.evaluation",
    "Evaluation": "se3_fast.training.evaluation",
    "TargetScale": "se3_fast.training.evaluation",
    "Trainer": "se3_fast.training.trainer",
    "TrainingError": "se3_fast.training.errors",
    "TrainingOptions": "se3_fast.training.options",
    "TrainingResult": "se3_fast.training.trainer",
    "World": "se3_fast.training.distributed",
    "evaluate": "se3_fast.training.evaluation",
    "open_world": "se3_fast.training.distributed",
    "read_checkpoint": "se3_fast.training.checkpoint",
    "write_checkpoint": "se3_fast.training.checkpoint",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, "se3_fast.training.trainer")
