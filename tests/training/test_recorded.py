"""Recorded steps without a GPU: a recorder that runs the function again takes the place of CUDA graphs.

What it runs reads and writes the tensors that a recording would, so all but the capture itself is tested here; that is in
tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import se3_fast
from se3_fast.data import QM9DataModule
from se3_fast.training import Trainer, TrainingOptions
from se3_fast.training.evaluation import DirectPredictions, RecordedPredictions, evaluate
from se3_fast.training.model_config import build_model
from se3_fast.training.recorded import CudaRecorder, RecordedByShape, choose_recorder
from tests.models import SMALL_CONFIG
from tests.training.run_again import RunAgain


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> RunAgain:
    """Takes the place of CUDA graphs in trainers with `cuda_graphs`."""
    recorder = RunAgain()

    def choose(cuda_graphs: bool | None, *_: Any) -> RunAgain | None:
        return recorder if cuda_graphs else None

    monkeypatch.setattr("se3_fast.training.trainer.choose_recorder", choose)
    return recorder


@pytest.fixture
def make(few_molecules: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """Trainers on 48 molecules."""

    def make_trainer(precompute_bases: bool = False, batch_size: int = 7, **options: Any) -> Trainer:
        torch.manual_seed(0)
        data = QM9DataModule(few_molecules, batch_size=batch_size, num_degrees=2, seed=1, precompute_bases=precompute_bases)
        chosen = {"epochs": 3, "silent": True, "log_dir": tmp_path / "log", "optimizer": "sgd", "learning_rate": 0.05, **options}
        return Trainer(build_model(SMALL_CONFIG), data, TrainingOptions(**chosen))

    return make_trainer


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 4},
        {"gradient_clip": 0.1},
        {"max_steps": 9},
        {"optimizer": "adam", "learning_rate": 0.002},
        {"amp": True, "amp_dtype": "bf16"},
        {"precompute_bases": True},
    ],
    ids=str,
)
def test_recorded_training_is_the_same(make: Callable[..., Trainer], recorder: RunAgain, options: dict[str, Any]) -> None:
    """Losses, weights and errors; padding and the place of the gradients only change the order of sums."""
    direct, recorded = (make(cuda_graphs=choice, **options) for choice in (False, True))
    results = [trainer.fit() for trainer in (direct, recorded)]
    assert recorder.recordings > 1
    assert recorded.steps_done == direct.steps_done
    assert recorded.molecules_seen == direct.molecules_seen
    tolerance = 0.02 if "amp" in options else 1e-4
    for one, other in zip(direct.history, recorded.history, strict=True):
        assert other == pytest.approx(one, rel=tolerance)
    assert torch.allclose(weights(direct), weights(recorded), rtol=tolerance, atol=tolerance)
    assert results[1].test.mae == pytest.approx(results[0].test.mae, rel=tolerance)


def test_few_recordings(make: Callable[..., Trainer], recorder: RunAgain) -> None:
    """One for each shape that came twice, and one for the optimizer's step."""
    trainer = make(cuda_graphs=True, epochs=8)
    loader = trainer.data_module.train_dataloader()
    shapes: list[tuple[int, ...]] = []
    for epoch in range(8):
        loader.sampler.set_epoch(epoch)
        shapes += [(len(batch.numbers), *loader.padded_size(batch)) for batch in loader.numbered_batches()]
    trainer.fit()
    assert recorder.recordings == 1 + sum(shapes.count(shape) > 1 for shape in set(shapes))


@pytest.mark.usefixtures("recorder")
def test_the_learning_rate_is_where_a_recording_reads_it(make: Callable[..., Trainer]) -> None:
    trainer = make(cuda_graphs=True, max_steps=50)
    loader, group = trainer.data_module.train_dataloader(), trainer.optimizer.param_groups[0]
    trainer._steps_of(loader)
    rate, first = group["lr"], float(group["lr"])
    trainer.train_epoch(loader)
    assert group["lr"] is rate
    assert float(rate) < first


def test_checkpoints_of_recorded_training_are_plain(make: Callable[..., Trainer], recorder: RunAgain, tmp_path: Path) -> None:
    """Training goes on from them either way, as if it had never stopped."""
    path = tmp_path / "model.pth"
    options = {"optimizer": "adam", "learning_rate": 0.002}
    whole = make(cuda_graphs=True, epochs=4, **options)
    whole.fit()
    first = make(cuda_graphs=True, epochs=4, save_ckpt_path=path, ckpt_interval=2, **options)
    while first.epochs_done < 2:
        first.train_epoch(first.data_module.train_dataloader())
    first._save()
    assert isinstance(torch.load(path, weights_only=True)["optimizer_state_dict"]["param_groups"][0]["lr"], float)
    for choice in (True, False):
        resumed = make(cuda_graphs=choice, epochs=4, **options)
        resumed._resume(path)
        resumed.fit()
        assert torch.allclose(weights(resumed), weights(whole), rtol=1e-3, atol=1e-4)


def test_the_output_stays_where_it_is(make: Callable[..., Trainer]) -> None:
    loader = make().data_module.train_dataloader()
    function = RecordedByShape(lambda batch: batch.numbers.double().sum(), loader, RunAgain())
    batch, *others = [
        batch for batch in loader.numbered_batches() if loader.padded_size(batch) == loader.padded_size(_first(loader))
    ]
    places = {function(each).data_ptr() for each in (batch, *others)}
    assert len(others) > 1
    assert len(places) == 1
    assert function(batch) == batch.numbers.sum()


def _first(loader: Any) -> Any:
    return next(iter(loader.numbered_batches()))


WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.lift_fresh.default,
}
"""What makes the host wait for a GPU, or copies from memory of the host, which cannot be recorded."""


class NothingWaits(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert function not in WAITING, f"{function} waits for the device"
        if function is torch.ops.aten.repeat_interleave.Tensor:
            assert kwargs.get("output_size") is not None, "its size is only known on the device"
        if function is torch.ops.aten.index.Tensor:
            assert all(index is None or index.dtype == torch.int64 for index in args[1]), "a mask is counted on the device"
        return function(*args, **kwargs)


@pytest.mark.parametrize("is_by_source", [False, True])
@pytest.mark.usefixtures("recorder")
def test_nothing_waits_in_a_recorded_step(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, is_by_source: bool
) -> None:
    """Batch assembly, forward pass, backward pass and optimizer, with the operations that a GPU runs."""
    monkeypatch.setattr(se3_fast.ConvSE3, "contraction_order", "source" if is_by_source else "edge")
    trainer = make(batch_size=2, cuda_graphs=True, optimizer="adam", gradient_clip=1.0, amp=True, amp_dtype="bf16")
    loader = trainer.data_module.train_dataloader()
    steps = trainer._steps_of(loader)
    with se3_fast.backend("triton"):
        for number, batch in enumerate(steps.batches()):
            with NothingWaits() if number else nullcontext():
                steps.accumulate(batch, 1, True)
                steps.update()
            if number == 1:
                break


def test_recorded_predictions_are_the_same(make: Callable[..., Trainer]) -> None:
    """A second pass runs what was recorded in the first, with the parameters as they are then."""
    trainer, recorder = make(), RunAgain()
    loader = trainer.data_module.train_dataloader()
    direct = DirectPredictions(trainer.model, loader, trainer.precision, trainer.world.device)
    recorded = RecordedPredictions(direct, loader, recorder)
    for _ in range(2):
        expected, found = (evaluate(trainer.model, each, trainer.scale, trainer.world) for each in (direct, recorded))
        assert found.predictions == pytest.approx(expected.predictions, rel=1e-6)
        assert (found.targets == expected.targets).all()
        assert found.mae == pytest.approx(expected.mae, rel=1e-5)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(1.1)
    assert recorder.recordings > 0


def test_who_may_record(make: Callable[..., Trainer]) -> None:
    loader = make().data_module.train_dataloader()
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for wanted, is_benchmark in ((None, False), (None, True), (False, True)):
        assert choose_recorder(wanted, is_benchmark, cpu, loader) is None
    with pytest.raises(ValueError, match="--cuda_graphs: expected a CUDA device, got cpu"):
        choose_recorder(True, False, cpu, loader)
    with pytest.raises(ValueError, match="expected batches that are made on the device, got those of a list"):
        choose_recorder(True, False, cuda, [])
    with pytest.raises(ValueError, match="expected a data set that fits into the free memory of the device"):
        choose_recorder(True, False, cuda, loader)
    assert choose_recorder(None, True, cuda, loader) is None


def test_an_optimizer_that_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("se3_fast.training.recorded.recording_obstacle", lambda *_: None)
    monkeypatch.setattr(CudaRecorder, "__init__", lambda *_: None)
    cuda = torch.device("cuda")
    assert isinstance(choose_recorder(True, False, cuda, [], "adam"), CudaRecorder)
    with pytest.raises(ValueError, match="--cuda_graphs: expected --optimizer adam or sgd, got lamb"):
        choose_recorder(True, False, cuda, [], "lamb")
    assert choose_recorder(None, True, cuda, [], "lamb") is None
