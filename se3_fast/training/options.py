"""What a training run can be told, apart from its model and its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OPTIMIZERS = ("adam", "sgd", "lamb", "soap")
AMP_DTYPES = ("auto", "fp16", "bf16")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training run; the defaults are those of the published script.

    Attributes:
        epochs: Passes over the training set.
        max_steps: Stop after this many optimizer steps; the learning rate then falls over the steps, not the epochs.
        accumulate_grad_batches: Batches whose gradients are averaged into one optimizer step.
        gradient_clip: Largest norm of the whole gradient; None leaves it alone.
        optimizer: 'adam' (decoupled weight decay), 'sgd', 'lamb' or 'soap' (:mod:`se3_fast.training.soap`).
        learning_rate: Learning rate of the first epoch.
        min_learning_rate: Learning rate that the cosine falls to; None means a tenth of `learning_rate`.
        momentum: Momentum of SGD, first beta of the others.
        weight_decay: Weight decay coefficient.
        amp: Automatic mixed precision.
        amp_dtype: 'fp16', 'bf16', or 'auto': fp16 with loss scaling on CUDA, bf16 elsewhere.
        ckpt_interval: Epochs between checkpoints; the last epoch always writes one. Not positive: only the last.
        eval_interval: Epochs between evaluations on the validation set; the last epoch always has one.
        save_ckpt_path: Checkpoint file to write; None writes none.
        log_dir: Folder of logs and plots.
        dllogger_name: Name of the JSON-lines log in `log_dir`.
        silent: No progress bar and no line for every epoch.
        wandb: Log to Weights & Biases as well.
        benchmark: Measure the throughput only: no evaluation and no checkpoint.
        cuda_graphs: Record the steps on the GPU and replay them; None: with `benchmark`, where it is possible.
    """

    epochs: int = 100
    max_steps: int | None = None
    accumulate_grad_batches: int = 1
    gradient_clip: float | None = None
    optimizer: str = "adam"
    learning_rate: float = 0.002
    min_learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.1
    amp: bool = False
    amp_dtype: str = "auto"
    ckpt_interval: int = -1
    eval_interval: int = 20
    save_ckpt_path: Path | None = None
    log_dir: Path = Path("./results")
    dllogger_name: str = "dllogger_results.json"
    silent: bool = False
    wandb: bool = False
    benchmark: bool = False
    cuda_graphs: bool | None = None
