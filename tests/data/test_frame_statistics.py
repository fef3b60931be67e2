"""What is found chunk by chunk is what all frames at once would give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from se3_fast.data import force_frames, frames
from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, read_force_frames, reference_energies
from se3_fast.data.frame_statistics import EnergyFit, FrameStatistics
from se3_fast.data.frames import ForceFrames


def random_frames(seed: int, elements: list[int], count: int = 60) -> ForceFrames:
    """Frames of one to six atoms, with energies of thousands of eV, of which every seventh is not known."""
    generator = np.random.default_rng(seed)
    n_atoms = generator.integers(1, 7, count)
    atoms = int(n_atoms.sum())
    numbers = torch.from_numpy(generator.choice(elements, atoms))
    of_element = torch.from_numpy(generator.normal(scale=3000, size=119))
    energies = torch.from_numpy(generator.normal(size=count))
    energies.index_add_(0, torch.arange(count).repeat_interleave(torch.from_numpy(n_atoms)), of_element[numbers])
    energies[::7] = torch.nan
    forces = torch.from_numpy(generator.normal(size=(atoms, 3))).float()
    forces[: int(n_atoms[0])] = torch.nan
    return ForceFrames(torch.from_numpy(n_atoms), numbers, torch.zeros(atoms, 3), energies, forces)


def with_hydrogens(given: ForceFrames) -> ForceFrames:
    """With two hydrogens beside every oxygen, so that no composition tells the two from each other."""
    sizes = torch.where(given.atomic_numbers == 8, 3, 1)
    numbers = torch.cat([torch.tensor([8, 1, 1] if number == 8 else [number]) for number in given.atomic_numbers.tolist()])
    n_atoms = torch.zeros(len(given), dtype=torch.int64).index_add(0, given.frame_of_atoms(), sizes)
    return replace(
        given, n_atoms=n_atoms, atomic_numbers=numbers, pos=torch.zeros(len(numbers), 3), forces=torch.zeros(len(numbers), 3)
    )


def of_all_at_once(frames: ForceFrames) -> tuple[dict[int, float], float]:
    """Energies of the elements, and the spread of what they leave, by the equations of all frames."""
    frames = frames.select(frames.energies.isfinite().nonzero().squeeze(1))
    elements = frames.elements
    counts = np.array(
        [[int((part == element).sum()) for element in elements] for part in frames.atomic_numbers.split(frames.n_atoms.tolist())]
    )
    solution, *_ = np.linalg.lstsq(counts.astype(float), frames.energies.numpy(), rcond=None)
    return dict(zip(elements, solution.tolist(), strict=True)), float(np.std(frames.energies.numpy() - counts @ solution, ddof=1))


@pytest.mark.parametrize("chunk", [1, 7, 60])
@pytest.mark.parametrize(
    "given",
    [
        random_frames(0, [1, 6, 7, 8]),
        random_frames(1, [26]),
        random_frames(2, list(range(1, 90)), count=40),
        with_hydrogens(random_frames(3, [6, 7, 8, 9, 17])),
    ],
    ids=["four elements", "one", "more elements than frames", "two that are always together"],
)
def test_energies_of_elements(given: ForceFrames, chunk: int) -> None:
    fit = EnergyFit()
    for numbers in torch.arange(len(given)).split(chunk):
        fit.add(given.select(numbers))
    expected, spread = of_all_at_once(given)
    assert fit.of_elements() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert fit.spread_of_rest() == pytest.approx(spread, rel=1e-6, abs=1e-6)
    assert fit.frames == int(given.energies.isfinite().sum())
    assert reference_energies(given) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_compositions_that_do_not_settle_it() -> None:
    """Water and its dimer, in chunks: the smallest solution; an element comes in the last chunk."""
    numbers = torch.tensor([8, 1, 1, 8, 1, 1, 8, 1, 1, 8, 1, 1, 1])
    n_atoms = torch.tensor([3, 6, 3, 1])
    energies = torch.tensor([-20.0, -40.0, -20.0, -0.5], dtype=torch.float64)
    given = ForceFrames(n_atoms, numbers, torch.zeros(13, 3), energies, torch.zeros(13, 3))
    fit = EnergyFit()
    for number in range(3):
        fit.add(given.select([number]))
    assert fit.of_elements() == pytest.approx({1: -8.0, 8: -4.0}, rel=1e-12)  # -20 (2, 1) / 5
    fit.add(given.select([3]))
    assert fit.of_elements() == pytest.approx({1: -0.5, 8: -19.0}, rel=1e-12)
    assert EnergyFit().of_elements() == {}


def test_sums_of_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (force_frames, frames):
        monkeypatch.setattr(module, "CHUNK", 11)
    given, numbers = random_frames(3, [1, 6, 8]), torch.tensor([50, 3, 4, 17, 5, 0, 8, 9, 30, 31, 32, 33, 34, 2])
    found, chosen = FrameStatistics.of(given, numbers), given.select(numbers)
    assert (found.atoms, found.elements, found.has_forces) == (len(chosen.pos), chosen.elements, True)
    assert found.mean_absolute_force == pytest.approx(float(chosen.forces.double().abs().nanmean()), rel=1e-12)
    assert found.energies.of_elements() == pytest.approx(of_all_at_once(chosen)[0], rel=1e-9)
    none = FrameStatistics.of(given, torch.tensor([0]))
    assert not none.has_forces and none.mean_absolute_force == 0 and none.spread_of_energies() == float("inf")


def test_the_sample_is_not_suspicious() -> None:
    sample, _ = read_force_frames(FORCE_SAMPLE_PATH)
    assert 1 < FrameStatistics.of(sample, torch.arange(600)).spread_of_energies() < 4
