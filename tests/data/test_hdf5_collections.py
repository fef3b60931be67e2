"""HDF5 collections: molecules in groups, units, gradients, labels that are missing, and files that cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from se3_fast.__main__ import main
from se3_fast.data import DataError, force_frames, hdf5_collections
from se3_fast.data.force_frames import (
    FORCE_SAMPLE_PATH,
    ForceDataModule,
    FrameFiles,
    frame_chunks,
    read_force_frames,
    read_frame_file,
)
from se3_fast.data.frame_folder import FrameFolder
from se3_fast.data.frames import ForceFrames
from se3_fast.data.hdf5_heaps import HeapError, Heaps
from se3_fast.data.label_units import LabelNames, LabelUnits
from se3_fast.data.pack_frames import pack_frames

h5py = pytest.importorskip("h5py")

HARTREE, BOHR = 27.211386245988, 0.529177210903
SPICE = LabelNames("dft_total_energy", "dft_total_gradient")


@pytest.fixture(scope="module")
def sample() -> ForceFrames:
    """The sample of the package: fifty frames of each of twelve molecules, of which four have three to nine atoms."""
    return read_force_frames(FORCE_SAMPLE_PATH)[0]


def arrays(sample: ForceFrames, molecule: int) -> tuple[np.ndarray, ...]:
    """Atomic numbers [A], positions [50, A, 3], energies [50] and forces [50, A, 3] of a molecule."""
    part = sample.select(range(50 * molecule, 50 * molecule + 50))
    atoms = int(part.n_atoms[0])
    assert (part.n_atoms == atoms).all()
    pos, forces = (values.double().numpy().reshape(50, atoms, 3) for values in (part.pos, part.forces))
    return part.atomic_numbers[:atoms].numpy(), pos, part.energies.numpy(), forces


def write_spice(path: Path, sample: ForceFrames) -> None:
    """Bohr and hartree, as attributes say; negative forces."""
    with h5py.File(path, "w") as file:
        for molecule in range(12):
            numbers, pos, energies, forces = arrays(sample, molecule)
            group = file.create_group(f"molecule {molecule:02d}")
            group["atomic_numbers"] = numbers.astype(np.int16)
            group["smiles"] = [b"C"]
            for name, values, unit in (
                ("conformations", pos / BOHR, "bohr"),
                ("dft_total_energy", energies / HARTREE, "hartree"),
                ("dft_total_gradient", -forces / HARTREE * BOHR, "hartree/bohr"),
            ):
                group.create_dataset(name, data=values, compression="gzip").attrs["units"] = unit


def write_nested(path: Path, sample: ForceFrames) -> None:
    """Groups within groups, Angstrom and hartree; no units; energies [M, 1]."""
    with h5py.File(path, "w") as file:
        for molecule in range(12):
            numbers, pos, energies, forces = arrays(sample, molecule)
            group = file.create_group(f"data/{'train' if molecule < 6 else 'val'}/molecule {molecule:02d}")
            group["atomic_numbers"] = numbers.astype(np.uint8)
            group["coordinates"], group["energies"], group["forces"] = pos, energies[:, None] / HARTREE, forces / HARTREE
        file["data/again"] = file["data/train"]
        file["data/loop"] = file["data"]


def assert_close(found: ForceFrames, expected: ForceFrames) -> None:
    assert torch.equal(found.n_atoms, expected.n_atoms) and torch.equal(found.atomic_numbers, expected.atomic_numbers)
    assert found.cells is None and found.stresses is None
    for name in ("pos", "energies", "forces"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-9 if name == "energies" else 1e-5, atol=1e-6
        )


def test_units_of_attributes_and_gradients(tmp_path: Path, sample: ForceFrames, caplog: pytest.LogCaptureFixture) -> None:
    write_spice(tmp_path / "spice.h5", sample)
    with caplog.at_level(logging.WARNING):
        file = read_frame_file(tmp_path / "spice.h5", names=SPICE)
    assert_close(file.frames, sample)
    assert list(file.numbers) == list(range(600)) and caplog.text == ""
    # Attributes go before options.
    other = LabelNames(SPICE.energy, SPICE.forces, units=LabelUnits("kJ/mol", "nm"))
    assert_close(read_frame_file(tmp_path / "spice.h5", names=other).frames, sample)


def test_units_of_options_in_nested_groups(tmp_path: Path, sample: ForceFrames, caplog: pytest.LogCaptureFixture) -> None:
    """Groups with two names are read once; without the unit there is a warning."""
    write_nested(tmp_path / "nested.hdf5", sample)
    names = LabelNames("energies", units=LabelUnits("hartree"))
    assert_close(read_frame_file(tmp_path / "nested.hdf5", names=names).frames, sample)
    per_bohr = LabelNames("energies", units=LabelUnits("hartree", forces="hartree/bohr"))
    forces = read_frame_file(tmp_path / "nested.hdf5", names=per_bohr).frames.forces
    torch.testing.assert_close(forces, sample.forces / BOHR, rtol=1e-5, atol=1e-6)
    with h5py.File(tmp_path / "nested.hdf5", "r+") as file:
        for molecule in range(12):
            group = file[f"data/{'train' if molecule < 6 else 'val'}/molecule {molecule:02d}"]
            group["forces"][...] *= HARTREE
    with caplog.at_level(logging.WARNING):
        read_frame_file(tmp_path / "nested.hdf5", names=LabelNames("energies"))
    assert "nested.hdf5: energies that differ" in caplog.text and "are they in hartree?" in caplog.text


@pytest.mark.parametrize("chunk", [7, 50, 1024])
@pytest.mark.parametrize("index", [":", "7", ":5", "45:160:7", "-3:", "590:", "120:1000:50"])
def test_chunks_and_indices(tmp_path: Path, sample: ForceFrames, index: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_collections, "CHUNK", chunk)
    write_spice(tmp_path / "spice.h5", sample)
    parts = list(frame_chunks(tmp_path / "spice.h5", index, SPICE))
    expected = (
        list(range(600))[int(index)]
        if ":" not in index
        else list(range(600))[slice(*(int(x) if x else None for x in index.split(":")))]
    )
    numbers = [number for part in parts for number in part.numbers]
    assert numbers == ([expected] if isinstance(expected, int) else expected)
    assert all(len(part.frames) == len(part.numbers) < 2 * chunk for part in parts)
    assert_close(ForceFrames.joined([part.frames for part in parts]), sample.select(numbers))


def test_labels_that_are_missing(tmp_path: Path, sample: ForceFrames) -> None:
    """Not in some groups, or NaN; they are left out of what is trained on."""
    write_spice(tmp_path / "spice.h5", sample)
    with h5py.File(tmp_path / "spice.h5", "r+") as file:
        file["molecule 01/dft_total_energy"][3] = np.nan
        file["molecule 01/dft_total_gradient"][4, 2] = np.nan
        del file["molecule 02/dft_total_gradient"], file["molecule 03/dft_total_energy"]
    frames = read_frame_file(tmp_path / "spice.h5", names=SPICE).frames
    assert frames.energies.isnan().nonzero().flatten().tolist() == [53, *range(150, 200)]
    unknown = frames.forces.isnan().any(1)
    assert (
        frames.frame_of_atoms()[unknown].unique().tolist() == [54, *range(100, 150)]
        and int(unknown[frames.frame_of_atoms() == 54].sum()) == 1
    )
    data = ForceDataModule(FrameFiles([tmp_path / "spice.h5"], names=SPICE), 10)
    assert data.num_train == 480 and data.statistics.energies.frames < 480
    with h5py.File(tmp_path / "spice.h5", "r+") as file:
        for group in file.values():
            for name in ("dft_total_energy", "dft_total_gradient"):
                if name in group:
                    del group[name]
    with pytest.raises(
        DataError, match=r"spice\.h5: expected 'dft_total_energy' or 'dft_total_gradient' in some group, got conformations, smiles"
    ):
        read_frame_file(tmp_path / "spice.h5", names=SPICE)


def test_the_commands(tmp_path: Path, sample: ForceFrames, capsys: pytest.CaptureFixture[str]) -> None:
    """Packed without all in memory; the folder is what the file is."""
    write_nested(tmp_path / "nested.h5", sample)
    labels = ["--energy_name", "energies", "--energy_unit", "hartree"]
    assert main(["pack-frames", str(tmp_path / "nested.h5"), "--output", str(tmp_path / "packed"), *labels, "--index", "::2"]) == 0
    assert capsys.readouterr().out.endswith("packed: 300 frames, 1,950 atoms\n")
    assert_close(read_frame_file(tmp_path / "packed").frames, sample.select(range(0, 600, 2)))
    assert main(["pack-frames", str(tmp_path / "nested.h5"), "--output", str(tmp_path / "other")]) == 0
    assert FrameFolder(tmp_path / "other").select(range(600)).energies.isnan().all()
    with pytest.raises(SystemExit):
        main(["pack-frames", str(tmp_path / "nested.h5"), "--output", str(tmp_path / "none"), "--energy_unit", "furlong"])
    assert (
        "argument --energy_unit: expected one of the units eV, meV, hartree, kcal/mol, kJ/mol, got 'furlong'"
        in capsys.readouterr().err
    )


def test_files_that_fix_their_units(tmp_path: Path) -> None:
    pack_frames([FORCE_SAMPLE_PATH], tmp_path / "packed")
    names = LabelNames(units=LabelUnits("hartree"))
    for path in (FORCE_SAMPLE_PATH, tmp_path / "packed"):
        for reads in (read_frame_file, force_frames.open_frame_file, lambda *given: list(frame_chunks(*given))):
            with pytest.raises(DataError, match=rf"{path.name}: expected no units by option for a file in eV and Angstrom, got"):
                reads(path, ":", names)


def _no_group(file: h5py.File) -> None:
    for name in list(file):
        del file[name]["conformations"]


def _external(file: h5py.File) -> None:
    del file["molecule 03/conformations"]
    file["molecule 03"].create_dataset("conformations", (50, 7, 3), "f8", external=[("/etc/hostname", 0, 50 * 7 * 24)])


def _linked(file: h5py.File) -> None:
    del file["molecule 03/dft_total_energy"]
    file["molecule 03/dft_total_energy"] = h5py.ExternalLink("other.h5", "energy")


def _claims(file: h5py.File) -> None:
    del file["molecule 03/conformations"]
    file["molecule 03"].create_dataset("conformations", (10**7, 10**7, 3), "f8", chunks=(1, 10, 3))


def _set(name: str, values: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["molecule 03"][name]
        file["molecule 03"][name] = values

    return change


def _large_chunk(file: h5py.File) -> None:
    """A few kilobytes that unpack to two gigabytes."""
    del file["molecule 03/dft_total_energy"]
    file["molecule 03"].create_dataset("dft_total_energy", (50,), "f8", chunks=(1 << 28,), maxshape=(None,), compression="gzip")


def _no_conformations(file: h5py.File) -> None:
    shape = file["molecule 03/conformations"].shape
    del file["molecule 03/conformations"]
    file["molecule 03"].create_dataset("conformations", (0, *shape[1:]), "f8")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_no_group, "expected groups with atomic_numbers and conformations or coordinates or positions, got none"),
        (_external, "'/molecule 03': expected 'conformations' to be a dataset with its values in the file, got something else"),
        (_linked, "'/molecule 03': expected 'dft_total_energy' to be a dataset with its values in the file, got something else"),
        (_claims, r"'/molecule 03': expected values of all of \[10000000, 10000000, 3\] in 'conformations', got fewer"),
        (lambda file: file["molecule 03"].create_group("positions"), "'/molecule 03': expected one of conformations, positions"),
        (lambda file: file["molecule 03"].create_dataset("cell", data=np.eye(3)), "expected a molecule without a cell, got cell"),
        (_set("atomic_numbers", [1, 2]), r"expected 'atomic_numbers' of shape \[\d\] or \[50, \d\], integers, got \[2\], int64"),
        (_set("atomic_numbers", np.ones(7)), r"expected 'atomic_numbers' of shape .* integers, got \[7\], float64"),
        (_set("conformations", np.zeros((50, 3))), r"expected 'conformations' of shape \[conformations, atoms, 3\], got \[50, 3\]"),
        (_no_conformations, r"expected 'dft_total_energy' of shape \[0\] or \[0, 1\], got \[50\]"),
        (_large_chunk, r"expected chunks within \[50\] in 'dft_total_energy', got \(268435456,\)"),
        (_set("dft_total_energy", h5py.Empty("f8")), "'/molecule 03': expected numbers as 'dft_total_energy', got none"),
        (
            lambda file: file["molecule 03/dft_total_energy"].attrs.create("units", 3),
            "expected text as 'units' of '/molecule 03/dft",
        ),
        (_set("conformations", ["a"]), "expected numbers as 'conformations', got object"),
        (_set("dft_total_energy", np.zeros(49)), r"expected 'dft_total_energy' of shape \[50\] or \[50, 1\], got \[49\]"),
        (_set("dft_total_energy", 3.0), r"expected 'dft_total_energy' of shape \[50\] or \[50, 1\], got \[\]"),
        (_set("dft_total_energy", np.full(50, np.inf)), "expected finite numbers as 'dft_total_energy', or NaN"),
        (lambda file: file["molecule 03/conformations"].__setitem__((4, 1), np.nan), "'/molecule 03': expected finite positions"),
        (lambda file: file["molecule 03/atomic_numbers"].__setitem__(0, 119), "expected atomic numbers from 1 to 118, got others"),
        (
            lambda file: file["molecule 03/dft_total_energy"].attrs.modify("units", "cal"),
            "expected one of the units eV, .*got 'cal'",
        ),
        (
            lambda file: file["molecule 03/dft_total_gradient"].attrs.modify("units", "bohr"),
            "expected a unit of energy over one of",
        ),
    ],
)
def test_faults_name_file_and_group(tmp_path: Path, sample: ForceFrames, change: Callable[[h5py.File], None], fault: str) -> None:
    write_spice(tmp_path / "spice.h5", sample)
    with h5py.File(tmp_path / "spice.h5", "r+") as file:
        change(file)
    with pytest.raises(DataError, match=rf"^{tmp_path}/spice\.h5: [^\n]*{fault}[^\n]*$"):
        read_frame_file(tmp_path / "spice.h5", names=SPICE)
    with pytest.raises(DataError):
        pack_frames([tmp_path / "spice.h5"], tmp_path / "packed", names=SPICE)
    assert not (tmp_path / "packed").exists()


def test_the_name_of_positions(tmp_path: Path, sample: ForceFrames) -> None:
    write_spice(tmp_path / "spice.h5", sample)
    with h5py.File(tmp_path / "spice.h5", "r+") as file:
        for group in file.values():
            group["positions"] = np.zeros((1, 2, 3))
            group.move("conformations", "xyz")
    names = LabelNames(SPICE.energy, SPICE.forces, positions="xyz")
    assert_close(read_frame_file(tmp_path / "spice.h5", names=names).frames, sample)


def test_damaged_files(tmp_path: Path, sample: ForceFrames) -> None:
    """Frames as written (but for bits of them), or one line."""
    write_spice(tmp_path / "spice.h5", sample)
    content, generator = (tmp_path / "spice.h5").read_bytes(), np.random.default_rng(0)
    (tmp_path / "short.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "none.h5").write_bytes(b"no HDF5")
    for name, fault in (("short", "cannot be read as HDF5"), ("none", "cannot be read as HDF5"), ("missing", "no such file")):
        with pytest.raises(DataError, match=rf"{name}\.h5: {fault}[^\n]*$"):
            read_frame_file(tmp_path / f"{name}.h5", names=SPICE)
    for place in generator.choice(len(content), 60):
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "changed.h5").write_bytes(changed)
        try:
            read_frame_file(tmp_path / "changed.h5", names=SPICE)
        except DataError as error:
            assert str(error).startswith(str(tmp_path / "changed.h5")) and "\n" not in str(error)


def test_deep_groups(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        group = file
        for _ in range(3000):
            group = group.create_group("g")
        group["atomic_numbers"], group["positions"], group["energy"] = [1], np.zeros((1, 1, 3)), [1.0]
    assert read_frame_file(tmp_path / "deep.h5").frames.energies.tolist() == [1.0]


@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("userblock", [0, 512])
def test_damaged_text(tmp_path: Path, version: str, userblock: int) -> None:
    """What is left of the heap of units has the size 0, with which the library does not come to an end; or it is no heap."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=version, userblock_size=userblock) as file:
        file["atomic_numbers"], file["positions"], file["energy"] = [1], np.zeros((1, 1, 3)), [1.0]
        for number in range(3):  # which the header has no room for
            file["energy"].attrs[f"note {number}"] = "text " * 20
        file["energy"].attrs["units"] = "hartree"
    assert read_frame_file(path).frames.energies.tolist() == [HARTREE]
    content = path.read_bytes()
    heap = content.index(b"GCOL\1\0\0\0")
    rest = content.rindex(b"hartree\0", heap, heap + 4096) + 8
    for place, zeros, fault in ((rest, 16, f"the heap at {heap - userblock} is damaged"), (heap, 4, "[^\n]*heap")):
        path.write_bytes(content[:place] + bytes(zeros) + content[place + zeros :])
        with pytest.raises(DataError, match=rf"a\.h5: cannot be read as HDF5 \({fault}[^\n]*\)$"):
            read_frame_file(path)


def test_text_among_many_attributes(tmp_path: Path) -> None:
    """They are kept apart from the header."""
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["atomic_numbers"], file["positions"], file["energy"] = [1], np.zeros((1, 1, 3)), [1.0]
        for name in (*map(str, range(20)), "units"):
            file["energy"].attrs[name] = "hartree"
        file["positions"].attrs["units"] = np.bytes_("bohr")
    assert read_frame_file(tmp_path / "a.h5").frames.energies.tolist() == [HARTREE]


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_headers_that_lead_anywhere(tmp_path: Path, version: str) -> None:
    """What comes of them is an error of heaps, or nothing, soon and without the whole file in memory."""
    with h5py.File(tmp_path / "a.h5", "w", libver=version) as file:
        file["energy"] = [1.0]
        file["energy"].attrs["units"] = "hartree"
        header = h5py.h5o.get_info(file["energy"].id).addr
    content, generator = (tmp_path / "a.h5").read_bytes(), np.random.default_rng(0)
    for number in range(300):
        changed = bytearray(content[: len(content) if number % 3 else header + number % 40])
        for place in generator.integers(header, header + 300, 4):
            changed[place : place + 1] = bytes([generator.choice([0, 1, 7, 12, 16, 255])]) if place < len(changed) else b""
        (tmp_path / "b.h5").write_bytes(changed)
        with suppress(HeapError):
            Heaps(tmp_path / "b.h5", 0).check(header, "units")
