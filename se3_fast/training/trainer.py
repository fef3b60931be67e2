"""The training loop."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from tqdm import tqdm

from .checkpoint import check_same, load_weights, read_checkpoint, write_checkpoint
from .distributed import World
from .errors import TrainingError
from .evaluation import DirectPredictions, Evaluation, TargetScale, evaluate
from .loggers import open_loggers
from .loss_record import LossRecord
from .optimizers import build_optimizer, build_schedule, load_optimizer_state, plain_state
from .options import TrainingOptions
from .precision import Precision
from .random_state import capture_random_state, restore_random_state
from .recorded import choose_recorder
from .steps import DirectSteps, RecordedSteps, StepParts, Steps

_MESSAGES = logging.getLogger(__name__)
_BATCHES_BETWEEN_READINGS = 20


@dataclass(frozen=True)
class TrainingResult:
    """Errors at the end of a run.

    Attributes:
        test: On the test set.
        validation: On the validation set.
    """

    test: Evaluation
    validation: Evaluation


class Trainer:
    """Trains a model on the data of a data module with L1 loss on standardised targets.

    Args:
        model: Called as `model(*inputs)`; returns [B]. It is moved to the device of `world`.
        data_module: Has `train_dataloader()`, `val_dataloader()`, `test_dataloader()`, whose batches are
            `(*inputs, target)` with target [B]; and, where targets are standardised, `targets_mean`,
            `targets_std` and `unit`.
        options: What the run was told.
        world: The processes of the run; None: this one alone, on the CPU.
        metadata: Entries `model_config`, `data` and `seed` that checkpoints carry so that the model can be
            rebuilt and the run resumed; plain values only.
        resume_from: Checkpoint of an earlier run, which this one goes on from.

    Raises:
        CheckpointError: The checkpoint is damaged or belongs to another model, data set or optimizer.
        ValueError: An option has a value that does not exist.
        ImportError: An option needs a package that is not installed.
        OSError: The log folder or that of the checkpoint cannot be made.
    """

    def __init__(
        self,
        model: nn.Module,
        data_module: Any,
        options: TrainingOptions,
        world: World | None = None,
        metadata: dict[str, Any] | None = None,
        resume_from: Path | None = None,
    ) -> None:
        self.options = options
        self.world = world or World(torch.device("cpu"))
        self.model = model.to(self.world.device)
        self.data_module = data_module
        self.metadata = metadata or {}
        self.scale = TargetScale.of(data_module)
        self.precision = Precision.choose(options.amp, options.amp_dtype, self.world.device)
        self.optimizer = build_optimizer(self.model.parameters(), options)
        self.scheduler = build_schedule(self.optimizer, options)
        self.scaler = self.precision.gradient_scaler()
        self.epochs_done = 0
        self.steps_done = 0
        self.molecules_seen = 0
        self.history: list[dict[str, Any]] = []
        self._steps: tuple[Any, Steps] | None = None
        self._saved_random_state: dict[str, Any] | None = None
        if resume_from is not None:
            self._resume(resume_from)
        if options.save_ckpt_path is not None and self.world.is_main:
            options.save_ckpt_path.parent.mkdir(parents=True, exist_ok=True)
        self.loggers = open_loggers(options, self.world, self.epochs_done + 1)
        self.loggers.log_parameters({**asdict(options), **self.metadata})

    @property
    def finished(self) -> bool:
        """Whether all epochs, or all steps of a limited run, are done."""
        limit = self.options.max_steps
        return self.epochs_done >= self.options.epochs or (limit is not None and self.steps_done >= limit)

    @property
    def is_recorded(self) -> bool:
        """Whether steps are recorded on the GPU; known once there was one."""
        return self._steps is not None and self._steps[1].waits_for_nothing

    def fit(self) -> TrainingResult:
        """Train for the epochs that are left, then evaluate on the validation and the test set.

        Raises:
            TrainingError: The loss is not finite, or there is nothing to train on.
        """
        loader = self.data_module.train_dataloader()
        if self._saved_random_state is not None:
            restore_random_state(self._saved_random_state)
        validation = None
        while not self.finished:
            start = time.perf_counter()
            record = {"epoch": self.epochs_done + 1, "learning_rate": float(self.optimizer.param_groups[0]["lr"])}
            record["train_loss"] = self.train_epoch(loader)
            validation = None
            if self.finished or _is_due(self.epochs_done, self.options.eval_interval):
                validation = self.evaluate(self.data_module.val_dataloader())
                record["validation_mae"] = validation.mae
            self.history.append(record)
            self._report_epoch(record, time.perf_counter() - start)
            if self.finished or _is_due(self.epochs_done, self.options.ckpt_interval):
                self._save()
        return TrainingResult(
            test=self.evaluate(self.data_module.test_dataloader()),
            validation=validation or self.evaluate(self.data_module.val_dataloader()),
        )

    def train_epoch(self, loader: Any) -> float:
        """Train on the batches of one epoch, or as many as `max_steps` leaves; return the mean loss.

        Args:
            loader: The training batches; its sampler's `set_epoch` is called, if it has one.

        Raises:
            TrainingError: The loss is not finite, or the loader is empty.
        """
        batches = len(loader)
        if batches == 0:
            raise TrainingError("the training set has no whole batch: choose a smaller --batch_size")
        _set_epoch(loader, self.epochs_done)
        self.model.train()
        losses = LossRecord()
        size = self.options.accumulate_grad_batches
        steps = self._steps_of(loader)
        with steps.running(), self._progress_bar(batches) as bar:
            for index, batch in enumerate(steps.batches()):
                ends_group = (index + 1) % size == 0 or index + 1 == batches
                in_group = min(size, batches - index // size * size)
                batch_loss, samples = steps.accumulate(batch, in_group, ends_group)
                losses.add(batch_loss, self.steps_done + 1)
                self.molecules_seen += samples
                if ends_group:
                    steps.update()
                    self._count_step()
                bar.update()
                if (index + 1) % _BATCHES_BETWEEN_READINGS == 0 and not steps.waits_for_nothing:
                    bar.set_postfix(loss=f"{losses.read():.4f}", refresh=False)
                if self.finished:
                    break
        loss = losses.read()
        self.epochs_done += 1
        if self.options.max_steps is None:
            self.scheduler.step()
        return self.world.mean(loss)

    def close(self) -> None:
        """Write what the loggers hold back, and let go of the other processes; a closed trainer trains no more."""
        self.loggers.close()
        self._steps = None

    def batch_loss(self, model: nn.Module, batch: Any, num_padding_graphs: int = 0) -> Tensor:
        """The loss [] of a batch on the device; a subclass may define another.

        Args:
            model: The model to call.
            batch: `(*inputs, target)`.
            num_padding_graphs: Graphs at the end of the batch that have no target.
        """
        *inputs, target = batch
        with self.precision.autocast():
            prediction = model(*inputs)
        return l1_loss(prediction.float()[: prediction.shape[0] - num_padding_graphs], target)

    def _steps_of(self, loader: Any) -> Steps:
        """The steps over the batches of a loader: kept, as recordings are, until another loader comes."""
        if self._steps is None or self._steps[0] is not loader:
            self._steps = loader, self._make_steps(loader)
        return self._steps[1]

    def _make_steps(self, loader: Any) -> Steps:
        options = self.options
        parts = StepParts(self.model, self.batch_loss, self.optimizer, self.scaler, options.gradient_clip, self.world)
        recorder = choose_recorder(options.cuda_graphs, options.benchmark, self.world.device, loader, options.optimizer)
        return DirectSteps(parts, loader) if recorder is None else RecordedSteps(parts, loader, recorder)

    def _count_step(self) -> None:
        self.steps_done += 1
        if self.options.max_steps is not None:
            self.scheduler.step()

    def evaluate(self, loader: Any) -> Evaluation:
        """The errors over a loader; a subclass may have others."""
        predictions = DirectPredictions(self.model, loader, self.precision, self.world.device)
        return evaluate(self.model, predictions, self.scale, self.world)

    def _progress_bar(self, batches: int) -> tqdm:
        return tqdm(
            total=batches,
            desc=f"epoch {self.epochs_done + 1}/{self.options.epochs}",
            unit="batch",
            leave=False,
            disable=self.options.silent or not self.world.is_main,
        )

    def _report_epoch(self, record: dict[str, Any], seconds: float) -> None:
        figures = {name: value for name, value in record.items() if name != "epoch"}
        self.loggers.log_metrics(figures, record["epoch"])
        if self.options.silent or not self.world.is_main:
            return
        line = f"epoch {record['epoch']}/{self.options.epochs}: loss {record['train_loss']:.4f}"
        if "validation_mae" in record:
            line += f", validation MAE {record['validation_mae']:.4g} {self.scale.unit}"
        print(f"{line}, {seconds:.1f} s", flush=True)

    def _save(self) -> None:
        random_states = self.world.gather(capture_random_state())
        path = self.options.save_ckpt_path
        if path is None or not self.world.is_main:
            return
        checkpoint = {
            "state_dict": self.model.state_dict(),
            "optimizer_state_dict": plain_state(self.optimizer),
            "scheduler_state_dict": self.scheduler.state_dict(),
            "scaler_state_dict": self.scaler.state_dict(),
            "epoch": self.epochs_done,
            "step": self.steps_done,
            "optimizer": self.options.optimizer,
            "rng": random_states,
            "history": self.history,
            **self.metadata,
        }
        write_checkpoint(path, checkpoint)

    def _resume(self, path: Path) -> None:
        checkpoint = read_checkpoint(path)
        check_same(path, "model", checkpoint.get("model_config"), self.metadata.get("model_config", {}))
        check_same(path, "data set", checkpoint.get("data"), self.metadata.get("data", {}))
        if "optimizer" in checkpoint:
            check_same(path, "optimizer", checkpoint, {"optimizer": self.options.optimizer})
        load_weights(self.model, checkpoint["state_dict"], path)
        load_optimizer_state(self.optimizer, checkpoint["optimizer_state_dict"], path)
        if checkpoint.get("scaler_state_dict"):
            self.scaler.load_state_dict(checkpoint["scaler_state_dict"])
        self.epochs_done = checkpoint["epoch"]
        self.steps_done = checkpoint.get("step", 0)
        self.history = list(checkpoint.get("history", []))
        random_states = checkpoint.get("rng", [])
        if self.world.rank < len(random_states):
            self._saved_random_state = random_states[self.world.rank]
        self._resume_schedule(checkpoint.get("scheduler_state_dict", {}))

    def _resume_schedule(self, saved: dict[str, Any]) -> None:
        # The rates are a function of the position alone, so the command line may stretch the schedule.
        for name, option in (("T_0", "length"), ("base_lrs", "learning rate"), ("eta_min", "smallest learning rate")):
            wanted = self.scheduler.state_dict()[name]
            if saved.get(name, wanted) != wanted:
                _MESSAGES.info("schedule: %s was %s, goes on with %s", option, saved[name], wanted)
        self.scheduler.step(self.epochs_done if self.options.max_steps is None else self.steps_done)


def _is_due(epochs_done: int, interval: int) -> bool:
    return interval > 0 and epochs_done % interval == 0


def _set_epoch(loader: Any, epoch: int) -> None:
    set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)
