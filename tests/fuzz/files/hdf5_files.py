"""What is attacked of HDF5 collections: damaged bytes, and files that somebody made up."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, read_force_frames
from se3_fast.data.frames import ForceFrames

from . import mutations
from .cases import near_origin
from .frame_reader import FrameReader, molecule_of
from .mutations import Arrays


class Collections(FrameReader):
    """HDF5 collections: three molecules, each stored in another way."""

    suffix = ".h5"

    def __init__(self, folder: Path) -> None:
        sample, _ = read_force_frames(FORCE_SAMPLE_PATH)
        self.molecules = [molecule_of(sample, number, 6) for number in (0, 3, 5)]
        self.folder = folder
        self.contents = [self._written(version, lambda file: None) for version in ("earliest", "latest")]
        self.sounds = [self._read_content(content) for content in self.contents]

    def _read_content(self, content: bytes) -> ForceFrames:
        path = self.folder / "sound.h5"
        path.write_bytes(content)
        return self.read(path)

    def _written(self, version: str, change: Callable[[h5py.File], None]) -> bytes:
        """A collection that was changed while it was written."""
        ways: tuple[dict[str, Any], ...] = ({}, {"compression": "gzip", "shuffle": True}, {"chunks": True, "fletcher32": True})
        path = self.folder / "written.h5"
        with h5py.File(path, "w", libver=version) as file:
            for number, (arrays, way) in enumerate(zip(self.molecules, ways, strict=True)):
                group = file.create_group(f"part {number % 2}/molecule {number}")
                for name, array in arrays.items():
                    dataset = group.create_dataset(name, data=array, **way)
                    if name == "energy":
                        dataset.attrs["units"] = "eV"
            file["again"] = file["part 0"]
            change(file)
        return path.read_bytes()

    def change(self, numbers: random.Random) -> tuple[bytes, Callable[[Any], bool]]:
        kind, version = numbers.randrange(10), numbers.randrange(2)
        if kind <= 4:
            changed = mutations.change_bytes(numbers, self.contents[version])
            return changed, lambda result: True  # most of what stands in such a file has no checksum
        if kind <= 6:
            molecule = numbers.randrange(3)
            arrays = mutations.change_values(numbers, self.molecules[molecule], ("atomic_numbers",))

            def rewrite(file: h5py.File) -> None:
                group = _group(file, molecule)
                for name in list(group):
                    del group[name]
                for name, array in arrays.items():
                    _store(group, name, array)

            return self._written("latest", rewrite), lambda result: self._holds(result, molecule, arrays)
        return self._written("earliest", lambda file: _change_objects(numbers, file)), lambda result: True

    def _holds(self, result: ForceFrames, molecule: int, arrays: Arrays) -> bool:
        """Whether what was read of a molecule is what was written; it may not have been a molecule any more."""
        if len(result) == 12:
            return "atomic_numbers" not in arrays or "positions" not in arrays
        first = sum(len(self.molecules[number]["energy"]) for number in (0, 2, 1)[: (0, 2, 1).index(molecule)])
        part = result.select(range(first, first + len(arrays["positions"])))
        for name, found in (("positions", part.pos), ("forces", part.forces), ("energy", part.energies)):
            written = arrays.get(name)
            with np.errstate(all="ignore"):
                if name == "positions":
                    count = len(arrays[name])
                    written = near_origin(arrays[name].reshape(-1, 3), np.full(count, len(found) // count))
                expected = np.nan if written is None else written.astype(found.numpy().dtype).reshape(found.shape)
            if not np.array_equal(found.numpy(), np.broadcast_to(expected, found.shape), equal_nan=True):
                return False
        return True


def _group(file: h5py.File, molecule: int) -> h5py.Group:
    return file[f"part {molecule % 2}/molecule {molecule}"]


def _store(group: h5py.Group, name: str, array: np.ndarray) -> None:
    if array.dtype.kind == "O":
        group.create_dataset(name, data=[str(value) for value in array.ravel()], dtype=h5py.string_dtype())
    elif array.dtype.kind == "U":
        group.create_dataset(name, data=array.astype("S"))
    elif array.dtype.kind == "M":
        group.create_dataset(name, data=array.astype(np.int64))
    else:
        group.create_dataset(name, data=array)


_UNITS = ("", "hartree", "bohr", "eV\n", "e" * 60000, 3, b"\xff\xfe", np.nan, np.zeros(5000), ["eV", "eV"], h5py.Empty("f8"))


def _change_objects(numbers: random.Random, file: h5py.File) -> None:
    """Make one of the objects of a collection another one."""
    group = _group(file, numbers.randrange(3))
    name = numbers.choice(list(group))
    array = group[name][()]
    kind = numbers.randrange(9)
    if kind <= 1:
        group[numbers.choice(("energy", "forces", "positions", "dipole"))].attrs["units"] = numbers.choice(_UNITS)
        return
    if kind == 2:
        more = numbers.choice(("cell", "coordinates", "conformations", "a\nb", "é", "x" * 3000, "."))
        if more not in group:
            group[more] = numbers.choice((array, array[:1], h5py.SoftLink("/"), h5py.SoftLink(f"/{name}")))
        return
    del group[name]
    if kind == 3:
        links = (h5py.SoftLink(name), h5py.SoftLink("/nowhere"), h5py.ExternalLink("/etc/hostname", "/"), h5py.SoftLink(".."))
        group[name] = numbers.choice((*links, file, group, file["part 1"]))
    elif kind == 4:
        _claim(numbers, group, name, array)
    elif kind == 5:
        data = numbers.choice((array[..., None], array.ravel(), array.ravel()[0], h5py.Empty("f8"), "text", [b"a", b"b"]))
        group.create_dataset(name, data=data)
    elif kind == 6:
        layout = h5py.VirtualLayout(array.shape, array.dtype)
        layout[...] = h5py.VirtualSource(numbers.choice((".", "/etc/hostname")), "/part 1/molecule 1/" + name, array.shape)
        group.create_virtual_dataset(name, layout)
    elif kind == 7:
        kinds = (
            np.dtype([("a", "f8")]),
            h5py.ref_dtype,
            h5py.vlen_dtype("f8"),
            h5py.enum_dtype({"a": 1}),
            "c16",
            "V8",
            "?",
            "(3,)f8",
        )
        group.create_dataset(name, array.shape, numbers.choice(kinds))
    else:
        for _ in range(numbers.choice((3, 300))):
            group = group.create_group(numbers.choice(("g", "é", "a b")))
        group[name] = array


def _claim(numbers: random.Random, group: h5py.Group, name: str, array: np.ndarray) -> None:
    """A dataset that says it is large, of which little or nothing stands in the file."""
    shape = list(array.shape)
    shape[numbers.randrange(len(shape))] = numbers.choice((10**5, 10**9, 2**40))
    chunk = [1] * len(shape)
    axis = numbers.randrange(len(chunk))
    chunk[axis] = min(shape[axis], numbers.choice((1, 1 << 16, 1 << 24)))
    dataset = group.create_dataset(
        name, shape, array.dtype, chunks=tuple(chunk), maxshape=tuple(shape),
        compression=numbers.choice(("gzip", None)), fillvalue=numbers.choice((0, 1, 7)),
    )  # fmt: skip
    if dataset.compression and numbers.random() < 0.7:
        dataset[(0,) * len(shape)] = 1
