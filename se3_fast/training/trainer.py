"""The training loop."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from tqdm import tqdm

from se3_fast.error_text import one_line
from se3_fast.files import check_writable

from .checkpoint import check_same, load_weights, read_checkpoint, write_checkpoint
from .distributed import World
from .errors import Stopped, TrainingError
from .evaluation import DirectPredictions, Evaluation, TargetScale, evaluate, matching_prediction
from .health import check_finite, check_loss_scale
from .loggers import open_loggers
from .optimizers import build_optimizer, build_schedule, bytes_of_state, load_optimizer_state, plain_state
from .options import TrainingOptions
from .position import EpochPosition
from .precision import Precision
from .progress import Pace, duration
from .random_state import capture_random_state, restore_random_state
from .recorded import choose_recorder
from .signals import StopAgreement, StopSignal, dead_workers_are_known, is_of_dead_worker
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
        model: Called as `model(*inputs)`; returns a tensor of the target's shape. It is moved to the device of `world`.
        data_module: Has `train_dataloader()`, `val_dataloader()`, `test_dataloader()`, whose batches are
            `(*inputs, target)`; and, where targets are standardised, `targets_mean`, `targets_std` (one number each)
            and `unit`. The target's shape says what is learned: [B] a number for each graph, [B, P] several,
            [N, C, 2d+1] features of degree d of each node (as an `SE3Transformer` with `return_type=d` returns them).
        options: What the run was told.
        world: The processes of the run; None: this one alone, on the CPU.
        metadata: Entries `model_config`, `data` and `seed` that checkpoints carry so that the model can be
            rebuilt and the run resumed; plain values only.
        resume_from: Checkpoint of an earlier run, which this one goes on from; after the step that it was written at.

    Attributes:
        lost_checkpoint: Why the last checkpoint could not be written; None: it was, or none was to be.

    Raises:
        CheckpointError: The checkpoint is damaged or belongs to another model, data set or optimizer.
        ValueError: An option has a value that does not exist.
        ImportError: An option needs a package that is not installed.
        OSError: The log folder, or a checkpoint, cannot be written.
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
        self.lost_checkpoint: str | None = None
        self._pace = Pace(0)
        self.stop_on(StopSignal())
        self._saved_random_state: dict[str, Any] | None = None
        self._position: EpochPosition | None = None
        self._is_updating = False
        if resume_from is not None:
            self._resume(resume_from)
        if options.save_ckpt_path is not None and self.world.is_main and not options.benchmark:
            check_writable(options.save_ckpt_path, self._bytes_of_checkpoint())
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

    def stop_on(self, stop: StopSignal) -> None:
        """End `fit` in order, with a checkpoint, after the step in which this signal comes."""
        self._stop_signal = stop
        self._agreement = StopAgreement(stop, self.world)

    def fit(self) -> TrainingResult:
        """Train for the epochs that are left, then evaluate on the validation and the test set.

        Where a checkpoint cannot be written, the run goes on, and tries again where the next one is due; see `lost_checkpoint`.

        Raises:
            TrainingError: The loss, a parameter or the optimizer's state is not finite, loss scaling has collapsed, a process
                that loads data has died, or there is nothing to train on.
            ValueError: A prediction has not the shape of its target.
            Stopped: The signal of `stop_on` has come; a checkpoint is written.
        """
        try:
            with self._stop_signal.deferred():
                return self._fit()
        except (RuntimeError, ConnectionError, EOFError) as error:
            with dead_workers_are_known():  # the look at the error, too: torch may raise once more out of it
                if not is_of_dead_worker(error):
                    raise
                self._end_without_worker(error)

    def _fit(self) -> TrainingResult:
        loader = self.data_module.train_dataloader()
        self._pace = Pace(self.steps_done)
        if self._saved_random_state is not None and self._position is None:
            restore_random_state(self._saved_random_state)
        validation = None
        while not self.finished or self._position is not None:
            validation = self._run_epoch(loader)
            if self.finished or _is_due(self.epochs_done, self.options.ckpt_interval):
                self._save()
        result = TrainingResult(
            test=self._evaluate_unless_stopped(self.data_module.test_dataloader()),
            validation=validation or self._evaluate_unless_stopped(self.data_module.val_dataloader()),
        )
        if any(self.world.gather(self.lost_checkpoint)):
            self._save()  # the disk may have room by now
        return result

    def _run_epoch(self, loader: Any) -> Evaluation | None:
        """Train for what is left of an epoch; evaluate if it is due; report."""
        start = time.perf_counter()
        train_loss, position = self._train(loader)
        record = {"epoch": self.epochs_done + 1, "learning_rate": position.learning_rate, "train_loss": train_loss}
        is_last = self.finished or self.epochs_done + 1 >= self.options.epochs
        validation = None
        if is_last or _is_due(self.epochs_done + 1, self.options.eval_interval):
            validation = self._validate()
            record |= {f"validation_{name}": value for name, value in validation.figures().items()}
        self._end_epoch()
        self.history.append(record)
        self._report_epoch(record, validation, time.perf_counter() - start, position.of_batches)
        return validation

    def train_epoch(self, loader: Any) -> float:
        """Train on the batches of one epoch, or as many as `max_steps` leaves; return the mean loss.

        Args:
            loader: The training batches; `set_epoch` of what orders them is called, if there is one.

        Raises:
            TrainingError: The loss is not finite, loss scaling has collapsed, or the loader is empty.
            ValueError: A prediction has not the shape of its target.
            Stopped: The signal of `stop_on` has come.
        """
        loss, _ = self._train(loader)
        self._end_epoch()
        return loss

    def _train(self, loader: Any) -> tuple[float, EpochPosition]:
        """Do the steps that are left of an epoch; its mean loss, and the position at its end."""
        _set_epoch(loader, self.epochs_done)
        batches = len(loader)  # which may depend on the epoch
        if batches == 0:
            raise TrainingError("the training set has no whole batch: choose a smaller --batch_size")
        self.model.train()
        size = self.options.accumulate_grad_batches
        steps = self._steps_of(loader)
        with steps.running():
            position, batches_left = self._begin_epoch(steps, batches)
            with self._progress_bar(position) as bar:
                for index, batch in enumerate(batches_left, start=position.batches):
                    ends_group = (index + 1) % size == 0 or index + 1 == batches
                    in_group = min(size, batches - index // size * size)
                    batch_loss, samples = steps.accumulate(batch, in_group, ends_group)
                    position.losses.add(batch_loss, self.steps_done + 1)
                    self.molecules_seen += samples
                    if ends_group:
                        self._update(steps, position, index + 1)
                    bar.update()
                    if (index + 1) % _BATCHES_BETWEEN_READINGS == 0 and not steps.waits_for_nothing:
                        bar.set_postfix(loss=f"{position.losses.read():.4f}", refresh=False)
                        check_loss_scale(self.scaler, self.steps_done)
                    if self.finished:
                        break
        loss = position.losses.read()
        check_loss_scale(self.scaler, self.steps_done)
        return self.world.mean(loss), position

    def _begin_epoch(self, steps: Steps, batches: int) -> tuple[EpochPosition, Iterable[Any]]:
        """Where the epoch begins or goes on, and the batches from there."""
        if self._position is None:
            rate = float(self.optimizer.param_groups[0]["lr"])
            self._position = EpochPosition(batches, rate, capture_random_state())
            return self._position, steps.batches()
        self._position.fit_to(batches, self.options.accumulate_grad_batches)
        if self.finished:
            return self._position, ()
        return self._position, self._position.batches_left(steps.batches(), self._saved_random_state)

    def _update(self, steps: Steps, position: EpochPosition, batches_done: int) -> None:
        """The optimizer's step; after it the run may stop."""
        self._is_updating = True
        steps.update()
        self.steps_done += 1
        if self.options.max_steps is not None:
            self.scheduler.step()
        position.batches = batches_done
        self._is_updating = False
        number = self._agreement.after_step()
        if number is not None:
            self._stop(number)

    def _end_epoch(self) -> None:
        self._position = None
        self.epochs_done += 1
        if self.options.max_steps is None:
            self.scheduler.step()

    def close(self) -> None:
        """Write what the loggers hold back, and let go of the other processes; a closed trainer trains no more."""
        self.loggers.close()
        self._steps = None

    def add_metadata(self, metadata: dict[str, Any]) -> None:
        """Put further plain values into the checkpoint, and write it again; all processes must call it.

        Raises:
            TrainingError: What would be written is not finite; the last checkpoint stays.
        """
        self.metadata = {**self.metadata, **metadata}
        self._save()

    def batch_loss(self, model: nn.Module, batch: Any, num_padding_graphs: int = 0) -> Tensor:
        """The loss [] of a batch on the device; a subclass may define another.

        Args:
            model: The model to call.
            batch: `(*inputs, target)`.
            num_padding_graphs: Graphs at the end of the batch that have no target.

        Raises:
            ValueError: The prediction has not the shape of the target.
        """
        *inputs, target = batch
        with self.precision.autocast():
            prediction = model(*inputs)
        return l1_loss(matching_prediction(prediction, target, num_padding_graphs), target)

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

    def evaluate(self, loader: Any) -> Evaluation:
        """The errors over a loader; a subclass may have others."""
        predictions = DirectPredictions(self.model, loader, self.precision, self.world.device)
        return evaluate(self.model, predictions, self.scale, self.world)

    def _validate(self) -> Evaluation:
        """The errors on the validation set; an evaluation that is cut short is done again when the run goes on."""
        random_state = capture_random_state()
        try:
            return self._evaluate_unless_stopped(self.data_module.val_dataloader())
        except Stopped as stopped:
            restore_random_state(random_state)
            self._stop(stopped.number)

    def _evaluate_unless_stopped(self, loader: Any) -> Evaluation:
        # Of several processes each has its share, and none can end alone: they stop after the next step.
        return self.evaluate(self._stop_signal.watch(loader) if self.world.size == 1 else loader)

    def _progress_bar(self, position: EpochPosition) -> tqdm:
        return tqdm(
            total=position.of_batches,
            initial=position.batches,
            desc=f"epoch {self.epochs_done + 1}/{self.options.epochs}",
            unit="batch",
            leave=False,
            disable=True if self.options.silent or not self.world.is_main else None,  # None: unless in a terminal
        )

    def _report_epoch(self, record: dict[str, Any], validation: Evaluation | None, seconds: float, batches: int) -> None:
        figures = {name: value for name, value in record.items() if name != "epoch"}
        self.loggers.log_metrics(figures, record["epoch"])
        if self.options.silent or not self.world.is_main:
            return
        line = f"epoch {record['epoch']}/{self.options.epochs}: loss {record['train_loss']:.4f}"
        if validation is not None:
            line += f", validation {validation.summary(self.scale.unit)}"
        line += f", {seconds:.1f} s"
        if not self.finished:
            steps = self.options.epochs * -(-batches // self.options.accumulate_grad_batches)
            left = self._pace.seconds_left(self.steps_done, min(steps, self.options.max_steps or steps))
            line += f"; {duration(left)} left"
        print(line, flush=True)

    def _stop(self, number: int) -> NoReturn:
        """Write a checkpoint and end the run in order, all processes after the same step."""
        path = self.options.save_ckpt_path
        if self.options.benchmark or path is None:
            outcome = "nothing is saved: " + ("this is a benchmark" if self.options.benchmark else "no --save_ckpt_path was given")
        else:
            self._save()
            outcome = f"{self.steps_done} optimizer steps are done; --load_ckpt_path {path} goes on from there"
            if self.lost_checkpoint is not None:
                outcome = f"the checkpoint could not be written ({self.lost_checkpoint})"
        self.world.gather(None)  # no process ends, and has the others ended, before the checkpoint is written
        raise Stopped(number, outcome if self.world.is_main else None)

    def _end_without_worker(self, error: Exception) -> NoReturn:
        """A process that loads data has died: save what the whole steps have reached, and say how to go on."""
        path, advice = self.options.save_ckpt_path, "--save_ckpt_path keeps what was reached"
        if path is not None and not self.options.benchmark:
            if self.world.size == 1 and not self._is_updating:
                if self._position is not None:
                    self._position.losses.forget_after(self.steps_done)
                if self._stop_signal.number is not None:
                    self._stop(self._stop_signal.number)
                self._save()
            advice = f"--load_ckpt_path {path} goes on from the last checkpoint"
        raise TrainingError(
            f"a process that loads data has died ({one_line(error)}), often for want of memory: --num_workers 0 loads in this "
            f"process; {advice}"
        ) from error

    def _bytes_of_checkpoint(self) -> int:
        """The bytes of all parameters and what the optimizer keeps of them."""
        kept = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        return kept + bytes_of_state(self.optimizer)

    def _save(self) -> None:
        """Write a checkpoint, if one is wanted; all processes must call it.

        Raises:
            TrainingError: What would be written is not finite; the last checkpoint stays.
        """
        check_finite(self.model, self.optimizer, self.steps_done)
        random_states = self.world.gather(capture_random_state())
        position = None if self._position is None else self._position.of_all(self.world)
        if self.options.save_ckpt_path is not None and self.world.is_main:
            self._write(self.options.save_ckpt_path, random_states, position)

    def _write(self, path: Path, random_states: list[dict[str, Any]], position: dict[str, Any] | None) -> None:
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
            **({} if position is None else {"position": position}),
            **self.metadata,
        }
        self.lost_checkpoint = None
        try:
            write_checkpoint(path, checkpoint)
        except OSError as error:
            self.lost_checkpoint = one_line(error)
            print(
                f"warning: the checkpoint after optimizer step {self.steps_done} could not be written ({self.lost_checkpoint}); "
                "what was there before stays",
                file=sys.stderr,
            )

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
        if "position" in checkpoint:
            self._position = EpochPosition.from_checkpoint(checkpoint["position"], self.world, path)
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
    for name in ("sampler", "batch_sampler"):
        set_epoch = getattr(getattr(loader, name, None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
