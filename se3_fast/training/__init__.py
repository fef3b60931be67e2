"""Training: the loop and what it needs. `python -m se3_fast.train` is its command line."""

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
