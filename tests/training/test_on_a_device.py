"""Everything that runs on a GPU, on one that is not there (tests/fake_cuda.py): nothing of the host reaches it, nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import se3_fast
from bench import launches
from bench.workloads import Workload, build
from se3_fast import ConvSE3, EdgeGeometry
from se3_fast.data import QM9DataModule
from se3_fast.forces import ForceField, energy_and_forces, molecule_graph
from se3_fast.kernels.pooling import forward as pooling_forward
from se3_fast.simulation.recorded import RecordedSinglePoint, Structure
from se3_fast.simulation.single_point import SinglePoint
from se3_fast.simulation.skin import NeighboursWithSkin
from se3_fast.training import Trainer, TrainingError, TrainingOptions, World
from se3_fast.training.evaluation import DirectPredictions, RecordedPredictions
from se3_fast.training.model_config import build_model
from se3_fast.training.recorded import CANNOT_BE_RECORDED, CudaRecorder
from tests.fake_cuda import FakeCuda, fake_cuda
from tests.models import SMALL_CONFIG

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real device")

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture(scope="module")
def devices() -> Iterator[FakeCuda]:
    with fake_cuda() as cuda:
        yield cuda


@pytest.fixture
def cuda(devices: FakeCuda) -> FakeCuda:
    devices.begin()
    return devices


def workload_on(device: torch.device, name: str, size: int) -> Workload:
    """A workload whose graph has its edge orders."""
    workload = build(name, size)
    workload.graph.incoming(), workload.graph.outgoing()
    return workload.to(device)


def training_step(workload: Workload, monkeypatch: pytest.MonkeyPatch, is_amp: bool) -> None:
    monkeypatch.setattr(launches, "DEVICE", FIRST)
    launches.training_step(workload, torch.optim.AdamW(workload.model.parameters(), fused=True), is_amp)


@pytest.mark.parametrize("is_amp", [False, True])
@pytest.mark.parametrize(("name", "size"), [("qm9", 2), ("protein_full", 12)])
def test_training_step(name: str, size: int, is_amp: bool, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first makes tables, which are copied; the second copies nothing."""
    workload = workload_on(FIRST, name, size)
    for is_first in (True, False):
        cuda.begin()
        training_step(workload, monkeypatch, is_amp)
        assert not cuda.findings and not cuda.waits
        assert len(cuda.launches) > 30
        assert is_first or not cuda.copies


def test_two_devices(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which device is current is nothing to a model on another one."""
    workload = workload_on(SECOND, "protein_full", 8)
    training_step(workload, monkeypatch, False)
    assert not cuda.findings
    assert {launch.current for launch in cuda.launches} == {SECOND} and cuda.current == 0
    assert all(parameter.grad.device == SECOND for parameter in workload.model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference(mode: Callable[[], Any], cuda: FakeCuda) -> None:
    workload = workload_on(FIRST, "qm9", 2)
    graph, nodes, edges = workload.inputs
    geometry = EdgeGeometry(graph.edata["rel_pos"], 3, zero_length_edges=graph.src.new_empty(0))
    with mode():
        for _ in range(2):
            cuda.begin()
            workload.model(graph, nodes, edges, geometry)
    assert not cuda.findings and not cuda.waits and not cuda.copies and cuda.launches


def test_gradients_of_positions(cuda: FakeCuda) -> None:
    """Forces, and what training on them asks for: their gradient, by formula."""
    workload = workload_on(FIRST, "protein_full", 6)
    edata = workload.graph.edata
    rel_pos = edata["rel_pos"] = edata["rel_pos"].clone().requires_grad_()
    for is_second in (False, True):
        cuda.begin()
        fresh = launches.as_if_new(workload)
        outputs = fresh.model(*fresh.inputs)
        energy = torch.stack([output.sum() for output in outputs.values()]).sum()
        (forces,) = torch.autograd.grad(energy, rel_pos, create_graph=is_second)
        if is_second:
            forces.square().sum().backward()
        assert forces.device == FIRST and not cuda.findings


@pytest.mark.parametrize("options", [{}, {"precompute_bases": True}], ids=["positions", "bases"])
def test_recorded_training_step(options: dict[str, Any], cuda: FakeCuda, few_on_the_device: Callable[..., Trainer]) -> None:
    """Batches are assembled on the device, and the step is captured: then nothing waits, and nothing comes from the host."""
    trainer = few_on_the_device(cuda_graphs=True, optimizer="adam", gradient_clip=1.0, amp=True, **options)
    loader = trainer.data_module.train_dataloader()
    steps = trainer._steps_of(loader)
    batch = next(iter(steps.batches()))
    for number in range(3):  # as it is, captured, replayed
        cuda.begin()
        with steps.running():
            steps.accumulate(batch, 1, True)
            steps.update()
        assert not cuda.findings and not cuda.waits
        assert number == 0 or not cuda.copies
        assert (len(cuda.launches) > 0) == (number < 2)


def test_recorded_predictions(cuda: FakeCuda, few_on_the_device: Callable[..., Trainer]) -> None:
    trainer = few_on_the_device()
    loader = trainer.data_module.train_dataloader()
    direct = DirectPredictions(trainer.model, loader, trainer.precision, FIRST)
    recorded = RecordedPredictions(direct, loader, CudaRecorder(FIRST))
    trainer.model.eval()
    cuda.begin()
    batch = next(iter(loader.numbered_batches()))
    cuda.copies.clear()
    with torch.no_grad():
        for _ in range(3):
            recorded(batch)
    assert not cuda.findings and not cuda.waits and not cuda.copies


@pytest.mark.parametrize("is_padded", [False, True])
def test_assembly_of_a_batch(is_padded: bool, cuda: FakeCuda, few_on_the_device: Callable[..., Trainer]) -> None:
    loader = few_on_the_device().data_module.train_dataloader()
    batch = next(iter(loader.numbered_batches()))
    cuda.begin()
    graph, *_ = loader.assemble(batch if not is_padded else batch._replace(num_nodes=batch.num_nodes + 3), is_padded)
    assert graph.device == FIRST and not cuda.findings and not cuda.waits and not cuda.copies


def test_batches_of_the_host(cuda: FakeCuda, few_molecules: Path, tmp_path: Path) -> None:
    """Where the data set does not fit into the device, batches come from page-locked memory, and no copy waits."""
    data = QM9DataModule(few_molecules, batch_size=7, num_degrees=2, seed=1)
    options = TrainingOptions(epochs=1, silent=True, log_dir=tmp_path / "log", optimizer="adam", amp=True)
    steps = Trainer(build_model(SMALL_CONFIG), data, options, World(FIRST))._steps_of(data.train_dataloader())
    batches = iter(steps.batches())
    steps.accumulate(next(batches), 1, True)  # the first step of a process makes constant tables
    for batch in islice(batches, 2):
        cuda.begin()
        steps.accumulate(batch, 1, True)
        assert not cuda.findings
        assert cuda.copies and not any(copy.waits for copy in cuda.copies)
    assert [wait.rpartition(":")[0] for wait in cuda.waits] == ["aten.nonzero.default (ops/edge_frames.py"]  # edges without length


@pytest.mark.parametrize("backend", ["torch", "dense", "triton"])
@pytest.mark.parametrize("order", ["edge", "source"])
def test_every_backend(backend: str, order: str, cuda: FakeCuda) -> None:
    """Whole models with every layer, also where kernels are not to run."""
    workload = workload_on(FIRST, "protein_refine", 6)
    for layer in workload.model.modules():
        if isinstance(layer, ConvSE3):
            layer.contraction_order = order
    with se3_fast.backend(backend):
        workload.forward().backward()
    assert not cuda.findings
    assert bool(cuda.launches) == (backend == "triton")


@pytest.mark.parametrize("with_gradients", [False, True])
def test_published_bases(with_gradients: bool, cuda: FakeCuda) -> None:
    rel_pos = torch.randn(20, 3, device=FIRST, requires_grad=with_gradients)
    for is_first in (True, False):
        cuda.begin()
        bases = se3_fast.get_basis(rel_pos, max_degree=2, compute_gradients=with_gradients)
        fused = se3_fast.update_basis_with_fused(bases, max_degree=2, use_pad_trick=False, fully_fused=True)
        if with_gradients:
            torch.stack([basis.sum() for basis in fused.values()]).sum().backward()
        assert {basis.device for basis in fused.values()} == {FIRST}
        assert not cuda.findings and not cuda.waits and cuda.launches
        assert is_first or not cuda.copies


def test_a_force_field(cuda: FakeCuda) -> None:
    """Energies and forces; then the gradient of a loss of the forces, as training takes it."""
    field = ForceField([8, 6, 1], num_layers=1, num_degrees=2, num_channels=4, num_radial=5).to(FIRST)
    graph = molecule_graph(torch.randn(10, 3), torch.tensor([8, 1, 1, 6, 1] * 2), [5, 5]).to(FIRST)
    energies, forces = energy_and_forces(field, graph)
    assert (energies.device, forces.device) == (FIRST, FIRST)
    assert not cuda.findings
    cuda.begin()
    energies, forces = energy_and_forces(field, graph, create_graph=True)
    (energies.sum() + forces.square().sum()).backward()
    # On a device with values there is one wait, for elements that are not known; what is traced has none to ask for.
    assert not cuda.findings and not cuda.waits


def recorded_steps(is_periodic: bool) -> tuple[RecordedSinglePoint, Structure]:
    """Steps of eight atoms, in a cell or without."""
    numbers = torch.tensor([6, 8] * 4)
    pos = 1.3 * torch.cartesian_prod(*[torch.arange(2.0)] * 3).double()
    cell, pbc = 2.9 * torch.eye(3, dtype=torch.float64), torch.full((3,), is_periodic)
    neighbours = NeighboursWithSkin(3.0, 0.5)
    neighbours.graph(pos, cell, pbc)
    field = ForceField([8, 6], num_layers=2, num_degrees=3, num_channels=4, num_radial=5, cutoff=3.0)
    recorded = RecordedSinglePoint(SinglePoint(field, FIRST), CudaRecorder(FIRST))
    return recorded, Structure(numbers, pos, cell, is_periodic, neighbours.searched)


@pytest.mark.parametrize("is_periodic", [False, True])
def test_recorded_steps_of_a_force_field(is_periodic: bool, cuda: FakeCuda) -> None:
    """The second step is captured, where whatever waits is refused, and what comes from the host; then only geometry is copied."""
    recorded, structure = recorded_steps(is_periodic)
    for _ in range(3):
        cuda.begin()
        found = recorded.evaluate(structure)
        assert found.forces.device == FIRST and (found.stress is not None) == is_periodic
        assert not cuda.findings and not cuda.waits
    assert [copy.num_bytes for copy in cuda.copies] == [8 * 8 * 3, 8 * 9, *([8] if is_periodic else [])]


def test_what_a_step_waits_for_is_found(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, structure = recorded_steps(is_periodic=True)
    evaluate = SinglePoint.evaluate_unchecked

    def looks_at_volumes(self: SinglePoint, graph: Any, volumes: Tensor) -> Any:
        volumes.cpu()
        return evaluate(self, graph, volumes)

    monkeypatch.setattr(SinglePoint, "evaluate_unchecked", looks_at_volumes)
    recorded.evaluate(structure)
    with pytest.raises(TrainingError, match="cannot be recorded"):
        recorded.evaluate(structure)


@pytest.mark.parametrize(
    "work",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: tensor.cpu(),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: tensor.long().repeat_interleave(tensor.long()),
        lambda tensor: torch.tensor([1.0, 2.0], device=FIRST),
        lambda tensor: torch.zeros(3).pin_memory(),
        lambda tensor: torch.cuda.synchronize(),
    ],
)
def test_what_waits_cannot_be_recorded(work: Callable[[Tensor], Any], cuda: FakeCuda) -> None:
    """And recording goes on to work afterwards."""
    tensor = torch.ones(3, device=FIRST)
    with pytest.raises(TrainingError, match=f"{CANNOT_BE_RECORDED} \\(CUDA error: operation not permitted when stream"):
        CudaRecorder(FIRST)(lambda: work(tensor))
    CudaRecorder(FIRST)(lambda: tensor.add_(1.0))()
    assert not cuda.findings


def test_what_would_fail_is_found(cuda: FakeCuda) -> None:
    """A table or an index of the host, a kernel on tensors of the host or of another device."""
    values, index = torch.zeros(4, device=FIRST), torch.tensor([0, 1])
    assert len(values[index]) == 2 and len(cuda.findings) == 1
    assert "a tensor of the host among those of a device" in cuda.findings[0]
    cuda.begin()
    assert (values * torch.tensor(2.0)).device == FIRST and not cuda.findings  # a number
    sizes = torch.tensor([4], device=FIRST)
    for given in (torch.tensor([4]), sizes.to(SECOND)):
        cuda.begin()
        pooling_forward(values[:, None], sizes, given, is_max=True)
        assert len(cuda.findings) == 1 and "tensors on [" in cuda.findings[0]
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cuda:1"):
        values + values.to(SECOND)


@pytest.fixture
def few_on_the_device(devices: FakeCuda, few_molecules: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """Trainers on the first device, with 48 molecules that were read on the host and now lie there."""

    def make(precompute_bases: bool = False, **options: Any) -> Trainer:
        data = QM9DataModule(few_molecules, batch_size=7, num_degrees=2, seed=1, precompute_bases=precompute_bases)
        resident = data._resident
        for name, value in vars(resident).items():
            if name not in ("n_node", "n_edge"):
                setattr(resident, name, devices.put(value))
        if data._geometry is not None:
            for name, value in vars(data._geometry).items():
                setattr(data._geometry, name, devices.put(value))
        chosen = {"epochs": 3, "silent": True, "log_dir": tmp_path / "log", **options}
        return Trainer(build_model(SMALL_CONFIG), data, TrainingOptions(**chosen), World(FIRST))

    return make
