"""What surrounds the published models: metrics, loggers, callbacks, affinity, data sets, the loop, the command lines."""

from __future__ import annotations

import argparse
import enum
import json
import os
import runpy
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import se3_fast
from se3_fast import Fiber, get_basis, update_basis_with_fused
from se3_fast.data.npz_file import write_npz
from tests.data.conftest import random_arrays
from tests.support import random_features, random_graph, relative_error

pytestmark = pytest.mark.usefixtures("installed")

PUBLISHED_OPTIONS = (
    "--data_dir . --log_dir . --dllogger_name log.json --save_ckpt_path a.pth --load_ckpt_path b.pth --optimizer lamb "
    "--learning_rate 0.1 --min_learning_rate 0.01 --momentum 0.5 --weight_decay 0.2 --epochs 3 --batch_size 7 --seed 1 "
    "--num_workers 0 --amp true --gradient_clip 10 --accumulate_grad_batches 2 --ckpt_interval 5 --eval_interval 4 --silent "
    "--wandb false --benchmark --task gap --precompute_bases --num_layers 2 --num_heads 4 --channels_div 1 --pooling avg --norm "
    "--use_layer_norm true --low_memory --num_degrees 3 --num_channels 16"
)
TINY = ["--num_layers", "1", "--num_degrees", "2", "--num_channels", "4", "--num_heads", "2", "--norm", "--use_layer_norm"]


def test_metrics() -> None:
    from se3_transformer.runtime.metrics import MeanAbsoluteError, Metric

    error = MeanAbsoluteError()
    error(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0]))
    error.update(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 3.0]]))
    assert error.compute() == pytest.approx((0.5 + 2.0 + 3.0) / 3)
    error(torch.tensor([1.0]), torch.tensor([0.0]))
    assert error.compute() == 1.0  # it began anew
    with pytest.raises(ValueError, match="targets: expected 4 values as in preds, got 1"):
        error(torch.zeros(4), torch.zeros(1))

    class Largest(Metric):
        largest: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.add_state("largest", torch.zeros(()))

        def update(self, preds: Tensor, targets: Tensor) -> None:
            self.largest = torch.maximum(self.largest, (preds - targets).abs().max())

        def _compute(self) -> Tensor:
            return self.largest

    largest = Largest()
    largest(torch.tensor([3.0, -1.0]), torch.zeros(2))
    assert largest.compute() == 3.0 and largest.compute() == 0.0
    with pytest.raises(ValueError, match="name: expected a state that is not there yet, got 'largest'"):
        largest.add_state("largest", torch.zeros(()))
    assert isinstance(error, Metric)


class Level(enum.Enum):
    HIGH = 1


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("DLLL ")) for line in path.read_text().splitlines()]


def test_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from se3_transformer.runtime import loggers

    lines = loggers.DLLogger(save_dir=tmp_path / "logs", filename="log.json")
    written: list[Any] = []
    run = SimpleNamespace(
        log=written.append, config=SimpleNamespace(update=lambda params, allow_val_change: written.append(params))
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: written.append(options) or run))
    remote = loggers.WandbLogger(name="QM9(homo)", save_dir=tmp_path / "wandb", id="7", project="p")
    both = loggers.LoggerCollection([lines, remote])
    assert both[0] is lines and isinstance(both, loggers.Logger)
    both.log_hyperparams({"path": Path("a"), "level": Level.HIGH, "function": max, "rate": 0.1})
    both.log_metrics({"loss": 1.5}, 3)
    both.log_metrics({"loss": 2.5})
    lines.log_metrics({"loss": 3.5}, step=())
    parameters, *figures = records(tmp_path / "logs" / "log.json")
    assert parameters["step"] == "PARAMETER"
    assert parameters["data"] == {"path": "a", "level": "Level.HIGH", "function": "max", "rate": 0.1}
    assert [(figure["step"], figure["data"]["loss"]) for figure in figures] == [([3], 1.5), ([], 2.5), ([], 3.5)]
    assert written[0]["project"] == "p" and written[2:] == [{"loss": 1.5, "epoch": 3}, {"loss": 2.5}]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="WandbLogger needs the package wandb"):
        loggers.WandbLogger("name", tmp_path)


class Recorded:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.figures: list[tuple[dict[str, Any], int | None]] = []

    def log_hyperparams(self, params: Any) -> None:
        raise AssertionError

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.figures.append((metrics, step))


def test_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from se3_transformer.runtime import callbacks

    logger = Recorded()
    metric = callbacks.QM9MetricCallback(logger, targets_std=torch.tensor(2.0), prefix="validation")
    metric.on_fit_end()
    assert logger.figures == []
    for epoch, offset in enumerate((1.0, 3.0)):
        metric.on_validation_step(None, torch.zeros(4), torch.full((4,), offset))
        metric.on_validation_end(epoch)
    metric.on_fit_end()
    assert logger.figures == [({"validation MAE": 2.0}, 0), ({"validation MAE": 6.0}, 1), ({"validation best MAE": 2.0}, None)]

    args = argparse.Namespace(learning_rate=0.1, min_learning_rate=None)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = callbacks.QM9LRSchedulerCallback(Recorded(), epochs=4)
    schedule.on_fit_start(optimizer, args)
    rates = []
    for _ in range(2):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.on_epoch_end()
    assert rates == pytest.approx([0.1, 0.01 + 0.09 * (1 + 2**-0.5) / 2])
    assert [figure["learning rate"] for figure, _ in schedule.logger.figures] == pytest.approx(rates)
    checkpoint: dict[str, Any] = {}
    schedule.on_checkpoint_save(checkpoint)
    for is_early in (True, False):  # a checkpoint is read before or after the start
        other = callbacks.QM9LRSchedulerCallback(None, epochs=4)
        moments = [lambda: other.on_checkpoint_load(checkpoint), lambda: other.on_fit_start(optimizer, args)]  # noqa: B023
        for moment in moments if is_early else reversed(moments):
            moment()
        assert other.scheduler.last_epoch == 2

    times = iter((1.0, 1.020, 1.060))
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(times))
    logger = Recorded()
    performance = callbacks.PerformanceCallback(logger, batch_size=40, warmup_epochs=1, mode="inference")
    performance.on_batch_start()
    performance.on_epoch_end()
    performance.on_fit_end()
    assert logger.figures == []
    for _ in range(3):
        performance.on_batch_start()
    performance.on_epoch_end()
    performance.on_fit_end()
    ((figures, _),) = logger.figures
    assert figures["throughput_inference"] == pytest.approx((40 / 20 + 40 / 40) / 2)
    assert figures["latency_inference_mean"] == pytest.approx(30) and figures["total_time_inference"] == pytest.approx(60)
    assert set(figures) > {"latency_inference_90", "latency_inference_95", "latency_inference_99"}
    assert isinstance(performance, callbacks.BaseCallback) and issubclass(type(schedule), callbacks.LRSchedulerCallback)


AFFINITY = {  # two sockets of four physical cores with two threads each, two GPUs on each
    "socket": [[0, 1, 2, 3, 8, 9, 10, 11]] * 2 + [[4, 5, 6, 7, 12, 13, 14, 15]] * 2,
    "single": [[0], [0], [4], [4]],
    "single_unique": [[0], [1], [4], [5]],
    "socket_unique_continuous": [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]],
    "socket_unique_interleaved": [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]],
}


@pytest.mark.parametrize("mode", AFFINITY)
def test_affinity(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from se3_transformer.runtime import gpu_affinity

    for core in range(16):
        folder = tmp_path / "cpus" / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core % 8},{core % 8 + 8}\n")
    for gpu in range(4):
        folder = tmp_path / "pci" / f"0000:{gpu:02x}:00.0"
        folder.mkdir(parents=True)
        (folder / "local_cpulist").write_text("0-3,8-11\n" if gpu < 2 else "4-7,12-15\n")
    place = {"pci_domain_id": 0, "pci_device_id": 0, "name": "a GPU", "uuid": "x"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(**place, pci_bus_id=number))
    monkeypatch.setattr(gpu_affinity, "_CORES", tmp_path / "cpus")
    monkeypatch.setattr(gpu_affinity, "_PCI", tmp_path / "pci")
    cores = set(range(16))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    chosen: list[list[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, own: chosen.append(sorted(own)))
    for gpu in range(4):
        gpu_affinity.set_affinity(gpu, 4, mode)
    assert chosen == AFFINITY[mode]
    assert gpu_affinity.Device(1).get_name() == "a GPU" and gpu_affinity.Device(1).get_uuid() == "x"
    if mode.startswith("socket_unique"):
        cores = set(range(16)) - {0, 1}  # not for this process
        chosen.clear()
        for balanced in (True, False):
            gpu_affinity.set_affinity(2, 4, mode, balanced=balanced)
        assert [len(own) for own in chosen] == [2, 4]
        cores = {0, 8}
        with pytest.raises(RuntimeError, match="expected as many physical cores near the GPUs as there are processes"):
            gpu_affinity.set_affinity(1, 2, mode)
    with pytest.raises(ValueError, match=r"mode: expected one of socket, single, .*, got 'all'"):
        gpu_affinity.set_affinity(0, 1, "all")
    with pytest.raises(RuntimeError, match="near the same cores or near none in common"):
        gpu_affinity.check_socket_affinities([[0, 1], [1, 2]])


def test_affinity_without_a_gpu() -> None:
    from se3_transformer.runtime import gpu_affinity

    before = os.sched_getaffinity(0)
    try:
        assert gpu_affinity.set_affinity(0, 1, "single") <= before
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def qm9(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `qm9_edge.npz` of 40 molecules of random numbers."""
    folder = tmp_path_factory.mktemp("qm9")
    write_npz(folder / "qm9_edge.npz", random_arrays(40))
    return folder


def test_molecules_with_their_bases(qm9: Path) -> None:
    from se3_transformer.data_loading import qm9 as module

    plain = module.QM9EdgeDataset(label_keys=["mu", "gap"], raw_dir=qm9)
    cached = module.CachedBasesQM9EdgeDataset({"max_degree": 1}, batch_size=7, num_workers=0, label_keys=["gap"], raw_dir=str(qm9))
    arrays = random_arrays(40)
    assert (
        len(plain) == len(cached) == 40 and plain.num_labels == 2 and torch.equal(plain.n_node, torch.from_numpy(arrays["n_node"]))
    )
    for number in (0, 1, 13, 39, -1):
        graph, label = plain[number]
        start, stop = plain.ne_cumsum[number % 40], plain.ne_cumsum[number % 40 + 1]
        assert graph.edges()[0].tolist() == arrays["src"][start:stop].tolist()
        assert graph.ndata["attr"].shape[1] == 11 and graph.ndata["attr"].dtype == graph.edata["edge_attr"].dtype == torch.float32
        assert label.tolist() == arrays["targets"][number][[0, 4]].tolist()
        same, gap, bases = cached[number]
        assert gap.tolist() == label[1:].tolist() and torch.equal(same.ndata["pos"], graph.ndata["pos"])
        truth = get_basis(module._get_relative_pos(graph), 1)
        assert set(bases) == set(truth)
        for key, basis in bases.items():
            assert relative_error(basis, truth[key].double()) < 1e-6
    assert module._get_split_sizes(cached) == (30, 6, 4) == tuple(map(len, module.data.qm9.split_indices(40)))
    with pytest.raises(IndexError):
        plain[40]
    with pytest.raises(ValueError, match=r"label_keys: expected some of mu, .*, got 'mass'"):
        module.QM9EdgeDataset(label_keys=["mass"], raw_dir=qm9)
    twice = module.QM9EdgeDataset(["mu"], qm9, transform=lambda graph: graph.add_self_loop())
    assert twice[3][0].num_edges() == plain[3][0].num_edges() + plain[3][0].num_nodes()


def test_the_data_module_and_the_model_take_all_options(qm9: Path) -> None:
    """As the published script makes them: with everything that the parser knows."""
    from se3_transformer.data_loading import QM9DataModule
    from se3_transformer.data_loading.data_module import _get_dataloader
    from se3_transformer.model import SE3Transformer, SE3TransformerPooled
    from se3_transformer.runtime.arguments import PARSER

    args = PARSER.parse_args([*TINY, "--batch_size", "8", "--device", "cpu", "--data_dir", str(qm9)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = QM9DataModule(**vars(args))
        fibers = {"fiber_in": Fiber({0: 6}), "fiber_out": Fiber({0: 8}), "fiber_edge": Fiber({0: 4})}
        model = SE3TransformerPooled(**fibers, output_dim=1, tensor_cores=True, **vars(args))
        SE3Transformer(**fibers, fiber_hidden=Fiber.create(2, 4), **vars(args))
    assert (data.task, data.batch_size, data.num_degrees, data.amp) == ("homo", 8, 2, False) and data.data_dir == qm9
    *inputs, target = next(iter(data.train_dataloader()))
    assert model(*inputs).shape == target.shape
    with pytest.warns(UserWarning, match="SE3Transformer ignores the arguments temperature"):
        SE3Transformer(**fibers, fiber_hidden=Fiber.create(2, 4), temperature=1.0, **vars(args))
    assert len(_get_dataloader(TensorDataset(torch.zeros(5)), shuffle=False, batch_size=2)) == 3


def test_each_class_adds_its_published_options() -> None:
    from se3_transformer.data_loading import QM9DataModule
    from se3_transformer.model import SE3Transformer, SE3TransformerPooled

    layers = {"num_layers", "num_heads", "channels_div", "pooling", "norm", "use_layer_norm", "low_memory"}
    for owner, expected in (
        (SE3Transformer, layers),
        (SE3TransformerPooled, layers | {"num_degrees", "num_channels"}),
        (QM9DataModule, {"task", "precompute_bases"}),
    ):
        parser = argparse.ArgumentParser()
        parser.add_argument("--dataset")  # a client's own
        assert owner.add_argparse_args(parser) is parser
        assert set(vars(parser.parse_args([]))) == expected | {"dataset"}
    group = argparse.ArgumentParser().add_argument_group("network")
    assert SE3Transformer.add_argparse_args(group) is group
    assert SE3Transformer.add_argparse_args(argparse.ArgumentParser()).parse_args(["--pooling"]).pooling is None


def test_the_parsers_take_the_published_options() -> None:
    from se3_transformer.runtime.arguments import PARSER, build_parser

    for parser in (PARSER, build_parser("inference")):
        parsed = parser.parse_args(PUBLISHED_OPTIONS.split())
        assert parsed.task == "gap" and parsed.amp is True and parsed.wandb is False and parsed.low_memory and parsed.silent
        short = parser.parse_args(["--lr", "0.5", "--min_lr", "0.25", "--pooling", "--task"])
        assert (short.learning_rate, short.min_learning_rate, short.pooling, short.task) == (0.5, 0.25, None, "homo")


def loop_arguments(folder: Path, **options: Any) -> argparse.Namespace:
    from se3_transformer.runtime.arguments import PARSER

    given = {
        "epochs": 3,
        "lr": 0.05,
        "optimizer": "sgd",
        "eval_interval": 2,
        "ckpt_interval": 1,
        "save_ckpt_path": folder / "m.pth",
    }
    words = [word for name, value in {**given, **options}.items() for word in (f"--{name}", str(value))]
    return PARSER.parse_args([*words, "--silent", "--weight_decay", "0"])


class Line(nn.Module):
    """A linear function of three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight


def test_a_loop_of_the_published_parts(tmp_path: Path) -> None:
    from se3_transformer.runtime import callbacks, training

    features = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    batches: DataLoader[Any] = DataLoader(TensorDataset(features, features.sum(1)), batch_size=4)

    def run(**options: Any) -> tuple[Line, Recorded]:
        args = loop_arguments(tmp_path, **options)
        logger, model = Recorded(), Line()
        parts = [callbacks.QM9MetricCallback(logger, 1.0, "validation"), callbacks.QM9LRSchedulerCallback(logger, args.epochs)]
        training.train(model, nn.MSELoss(), batches, batches, parts, logger, args)
        return model, logger

    model, logger = run()
    losses = [figures["train loss"] for figures, _ in logger.figures if "train loss" in figures]
    assert len(losses) == 3 and losses[2] < losses[0]
    assert sum("validation MAE" in figures for figures, _ in logger.figures) == 2
    assert "validation best MAE" in logger.figures[-1][0]
    saved = torch.load(tmp_path / "m.pth", weights_only=True)
    assert saved["epoch"] == 3 and "scheduler_state_dict" in saved
    assert torch.equal(saved["state_dict"]["weight"], model.weight)
    continued, logger = run(epochs=5, load_ckpt_path=tmp_path / "m.pth", save_ckpt_path=tmp_path / "n.pth")
    assert [step for figures, step in logger.figures if "train loss" in figures] == [3, 4]
    assert not torch.equal(continued.weight, model.weight)
    with pytest.raises(ValueError, match=r"other.pth: no such checkpoint file"):
        run(load_ckpt_path=tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match="the loss became"):
        run(lr=1e30, save_ckpt_path=tmp_path / "o.pth")
    training.print_parameters_count(model)


def test_accumulated_gradients_are_those_of_the_whole(tmp_path: Path) -> None:
    from se3_transformer.runtime import training

    features = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(features, features.sum(1))
    weights = []
    for size, batches in ((2, 4), (8, 1)):
        args = loop_arguments(tmp_path, accumulate_grad_batches=batches, gradient_clip=0.5)
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        loader: DataLoader[Any] = DataLoader(data, batch_size=size)
        loss = training.train_epoch(model, loader, nn.MSELoss(), 0, scaler, optimizer, 0, [], args)
        assert loss == pytest.approx(float(features.sum(1).square().mean()))
        weights.append(model.weight.detach())
    assert weights[0].norm() == pytest.approx(0.05) and relative_error(weights[0], weights[1].double()) < 1e-6


def module_main(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """As ``python -m name``."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    return int(ended.value.code or 0)


def test_the_commands(qm9: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    folders = ["--data_dir", str(qm9), "--log_dir", str(tmp_path / "results"), "--device", "cpu", "--num_workers", "0"]
    common = [*TINY, *folders, "--batch_size", "8", "--silent", "--seed", "42"]
    train, infer = "se3_transformer.runtime.training", "se3_transformer.runtime.inference"
    assert module_main(train, [*common, "--epochs", "1", "--amp", "--pooling", "--save_ckpt_path", "m.pth"], monkeypatch) == 0
    saved = torch.load(tmp_path / "m.pth", weights_only=True)
    assert saved["epoch"] == 1 and saved["model_config"]["pooling"] == "max"
    given = ["--load_ckpt_path", "m.pth", "--lr", "0.1", "--gradient_clip", "2"]
    assert module_main(infer, [*common, *given], monkeypatch) == 0
    assert "test MAE of homo" in capsys.readouterr().out and not (tmp_path / "predictions.csv").exists()
    assert (tmp_path / "results" / "predictions.csv").is_file()
    for checkpoint in ([], ["--load_ckpt_path", "m.pth"]):
        measure = [*common, *checkpoint, "--benchmark", "--epochs", "2", "--dllogger_name", "speed.json"]
        assert module_main(infer, measure, monkeypatch) == 0
    figures = [record["data"] for record in records(tmp_path / "results" / "speed.json")]
    assert len(figures) == 2 and all(figure["throughput_inference"] > 0 for figure in figures)
    assert module_main(infer, common, monkeypatch) == 2
    assert capsys.readouterr().err.strip().startswith("error: --load_ckpt_path: expected the checkpoint of a trained model")


def test_names_of_variants() -> None:
    """A variant keeps its modules at the top; another marks its layers for a profiler."""
    import se3_transformer
    from se3_transformer import Fiber as TopFiber
    from se3_transformer import InteractionModule, LinearModule
    from se3_transformer.layers import LinearSE3, NormSE3
    from se3_transformer.layers.convolution import ConvSE3FuseLevel
    from se3_transformer.model.layers import norm
    from se3_transformer.model.monitoring import nvtx_range
    from se3_transformer.transformer import SE3Transformer
    from se3_transformer.utils import degree_to_dim

    assert TopFiber is Fiber and LinearSE3 is se3_fast.LinearSE3 and NormSE3 is norm.NormSE3 is se3_fast.NormSE3
    assert issubclass(se3_transformer.SE3Transformer, SE3Transformer) and ConvSE3FuseLevel is se3_fast.ConvSE3FuseLevel
    assert degree_to_dim(2) == 5
    with nvtx_range("layer"):
        x = random_features(Fiber({1: 2}), 3)["1"]
    length = norm.clamped_norm(x, 1.5)
    assert relative_error(length, x.square().sum(-1, keepdim=True).sqrt().clamp(min=1.5)) < 1e-15
    assert relative_error(norm.rescale(x, length, 2 * length), 2 * x) < 1e-15

    hidden = {0: 4, 1: 4}
    linear = LinearModule([(0, 3), (1, 2)], hidden, Fiber({0: 2}), n_layer=3).double()
    nodes = random_features(Fiber({0: 3, 1: 2}), 5)
    assert [type(module) for module in linear.linear_module] == [NormSE3, LinearSE3] * 3
    assert {degree: value.shape for degree, value in linear(nodes).items()} == {"0": (5, 2, 1)}
    assert len(LinearModule(hidden, hidden, hidden, n_layer=1, use_norm=False).linear_module) == 1
    network = InteractionModule(Fiber({0: 3, 1: 2}), hidden, Fiber({0: 2, 1: 1}), low_memory=False).double()
    result = network(random_graph(5, 9), node_feats=nodes, edge_feats={})
    assert result["1"].shape == (5, 1, 3) and "graph_module.graph_modules.0.project.weights.0" in network.state_dict()


def test_arguments_of_variants_are_served_or_named() -> None:
    fiber = Fiber.create(2, 4)
    with pytest.warns(UserWarning, match="AttentionBlockSE3 ignores the arguments dropout, use_batch_norm"):
        se3_fast.AttentionBlockSE3(fiber, fiber, num_heads=2, max_degree=1, dropout=0.1, use_batch_norm=True)


@pytest.mark.parametrize("backend", ["dense", "torch", "auto"])
def test_a_nonlinearity_of_ones_own(backend: str) -> None:
    """In the norms and in the radial profiles, as a variant has it; the radial profiles evaluated by hand."""
    fiber = Fiber.create(2, 3)
    given: dict[str, Any] = {"fiber_in": fiber, "fiber_hidden": fiber, "fiber_out": fiber, "num_heads": 1, "channels_div": 1}
    torch.manual_seed(0)
    whole = se3_fast.SE3Transformer(num_layers=1, nonlinearity=nn.ELU(), **given)
    activations = [module for module in whole.modules() if isinstance(module, nn.ReLU | nn.ELU)]
    assert {type(module) for module in activations} == {nn.ELU} and whole.graph_modules[1].nonlinearity is activations[0]
    last = se3_fast.SE3Transformer(num_layers=0, tensor_cores=True, nonlinearity=nn.ELU(), **given).double()
    graph, nodes = random_graph(5, 11), random_features(fiber, 5)
    with se3_fast.backend(backend), torch.no_grad():
        result = last(graph, nodes)
    convolution = last.graph_modules[0]
    basis = update_basis_with_fused(get_basis(graph.edata["rel_pos"], 1), 1, use_pad_trick=False, fully_fused=True)["fully_fused"]
    x = torch.cat([nodes[degree] for degree in "01"], -1)
    weights = convolution.conv.radial_func.net(graph.edata["rel_pos"].norm(dim=-1, keepdim=True)).view(11, 3, 3, -1)
    messages = torch.einsum("eoif,eil,elfk->eok", weights, x[graph.src], basis)
    sums = torch.zeros(5, 3, 4, dtype=torch.float64).index_add(0, graph.dst, messages)
    for degree, part in zip("01", sums.split([1, 3], -1), strict=True):
        own = graph.in_degrees()[:, None, None] * (convolution.to_kernel_self[degree] @ nodes[degree])
        assert relative_error(result[degree], part + own) < 1e-12


def test_moving_things() -> None:
    from se3_transformer.runtime import utils

    graph = random_graph(4, 5)
    device = utils.current_device()
    tensor, (inner, mapping), other = utils.to_cuda([torch.ones(2), (torch.ones(1), {"x": torch.ones(3)}), graph])
    assert tensor.device.type == inner.device.type == mapping["x"].device.type == other.device.type == device.type
    utils.seed_everything(3)
    first = torch.rand(2)
    utils.seed_everything(3)
    assert torch.equal(first, torch.rand(2)) and utils.using_tensor_cores(True) in (True, False)
    utils.increase_l2_fetch_granularity()
