"""Reading the file: what is kept, and every fault by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from se3_fast.data.molecules import DataError, MoleculeDataset, check_archive, ragged_indices, read_molecules
from se3_fast.data.npz_file import write_npz

Arrays = dict[str, np.ndarray]


def test_arrays_are_read_as_they_are(data_dir: Path, arrays: Arrays) -> None:
    molecules = read_molecules(data_dir / "qm9_edge.npz", "alpha")
    assert molecules.node_attr.dtype == torch.uint8
    np.testing.assert_array_equal(molecules.node_attr, arrays["node_attr"][:, :6])
    np.testing.assert_array_equal(molecules.edge_attr, arrays["edge_attr"])
    np.testing.assert_array_equal(molecules.node_pos, arrays["node_pos"])
    np.testing.assert_array_equal(molecules.src, arrays["src"])
    np.testing.assert_array_equal(molecules.dst, arrays["dst"])
    np.testing.assert_array_equal(molecules.targets, arrays["targets"][:, 1])


def test_other_number_types_give_the_same(data_dir: Path, arrays: Arrays) -> None:
    wide = {name: array.astype(np.float64 if "attr" in name else array.dtype) for name, array in arrays.items()}
    wide |= {name: arrays[name].astype(np.int64) for name in ("src", "dst")}
    write_npz(data_dir / "wide.npz", wide)
    narrow, read = (read_molecules(data_dir / name, "homo") for name in ("qm9_edge.npz", "wide.npz"))
    for name in ("node_attr", "edge_attr", "src", "dst"):
        assert getattr(read, name).dtype == torch.uint8
        assert torch.equal(getattr(read, name), getattr(narrow, name))


def test_features_that_are_no_small_integers_become_float32(tmp_path: Path, arrays: Arrays) -> None:
    arrays["node_attr"] = arrays["node_attr"] - 0.5
    write_npz(tmp_path / "f.npz", arrays)
    molecules = read_molecules(tmp_path / "f.npz", "homo")
    assert molecules.node_attr.dtype == torch.float32
    np.testing.assert_array_equal(molecules.node_attr, arrays["node_attr"][:, :6])


def test_ragged_indices() -> None:
    indices = ragged_indices(torch.tensor([10, 3, 7]), torch.tensor([2, 0, 3]))
    assert indices.tolist() == [10, 11, 7, 8, 9]


def test_a_molecule_holds_its_own_rows(data_dir: Path, arrays: Arrays) -> None:
    dataset = MoleculeDataset(read_molecules(data_dir / "qm9_edge.npz", "homo"))
    first_node, first_edge = arrays["n_node"][:5].sum(), arrays["n_edge"][:5].sum()
    molecule = dataset[5]
    np.testing.assert_array_equal(molecule.node_pos, arrays["node_pos"][first_node:][: arrays["n_node"][5]])
    np.testing.assert_array_equal(molecule.dst, arrays["dst"][first_edge:][: arrays["n_edge"][5]])


def without(name: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        del arrays[name]

    return change


def setting(name: str, index: object, value: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][index] = value

    return change


def replacing(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = function(arrays[name])

    return change


def without_last_atom_of_molecule_1(arrays: Arrays) -> None:
    """Give it to molecule 2, and let an edge of molecule 1 name it: the smallest number that is too large."""
    arrays["n_node"] = arrays["n_node"] + np.array([0, -1, 1] + [0] * 197)
    arrays["src"][: arrays["n_edge"][1]] = 0
    arrays["dst"][: arrays["n_edge"][1]] = 0
    arrays["dst"][0] = arrays["n_node"][1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (without("node_pos"), "missing node_pos"),
        (replacing("node_pos", lambda a: a[:-1]), r"'node_pos' must have shape \[\d+, 3\], got"),
        (replacing("node_pos", lambda a: a.astype("U5")), "'node_pos' must hold numbers, got <U5"),
        (replacing("node_attr", lambda a: a[:, :5]), "'node_attr' must have 6 columns or more, got 5"),
        (replacing("node_attr", lambda a: a[1:]), r"'node_attr' must have shape \[\d+, any\]"),
        (replacing("edge_attr", lambda a: a[:, :3]), "'edge_attr' must have 4 columns or more, got 3"),
        (replacing("src", lambda a: a[1:]), r"'src' must have shape \[\d+\]"),
        (replacing("dst", lambda a: a.astype(float)), "'dst' must hold integers, got float64"),
        (replacing("targets", lambda a: a[:, :18]), r"'targets' must have shape \[200, 19\], got \[200, 18\]"),
        (replacing("n_edge", lambda a: a[1:]), r"'n_edge' must have shape \[200\]"),
        (setting("n_node", 4, 0), "n_node must be 1 or more"),
        (setting("n_edge", 4, -1), "n_edge must be 0 or more"),
        (without_last_atom_of_molecule_1, "names an atom that its molecule does not have"),
        (setting("src", 0, 200), r"src names an atom that its molecule does not have \(molecule 1, row 0\)"),
        (replacing("dst", lambda a: np.where(np.arange(len(a)) == 0, -1, a.astype(int))), "dst names an atom"),
        (setting("node_pos", (3, 1), np.nan), r"'node_pos' has values that are not finite \(molecule 1, row 3\)"),
        (replacing("edge_attr", lambda a: a * np.inf), "'edge_attr' has values that are not finite"),
        (setting("targets", (0, 2), np.inf), "targets of homo hold infinite values"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_faulty_arrays_are_named(tmp_path: Path, arrays: Arrays, change: Callable[[Arrays], None], fault: str) -> None:
    change(arrays)
    path = tmp_path / "faulty.npz"
    write_npz(path, arrays)
    with pytest.raises(DataError, match=fault) as caught:
        read_molecules(path, "homo")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_no_molecules(tmp_path: Path, arrays: Arrays) -> None:
    write_npz(tmp_path / "empty.npz", {name: array[:0] for name, array in arrays.items()})
    with pytest.raises(DataError, match="no molecules"):
        read_molecules(tmp_path / "empty.npz", "homo")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_truncated_file(data_dir: Path, kept: float) -> None:
    path = data_dir / "qm9_edge.npz"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    for function in (check_archive, lambda path: read_molecules(path, "homo")):
        with pytest.raises(DataError, match=r"not a whole \.npz archive"):
            function(path)


def test_corrupt_bytes(data_dir: Path) -> None:
    path = data_dir / "qm9_edge.npz"
    content = bytearray(path.read_bytes())
    position = content.find(b"node_pos.npy") + 2000
    content[position : position + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(DataError, match="'node_pos' is damaged"):
        read_molecules(path, "homo")
    with pytest.raises(DataError, match=r"'node_pos' is damaged|not a whole"):
        check_archive(path)


def test_missing_file_and_other_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_molecules(tmp_path / "none.npz", "homo")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="not a whole"):
        read_molecules(tmp_path / "single.npy", "homo")


class Bomb:
    """Leaves a trace if it is unpickled."""

    trace: Path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


def test_pickled_objects_are_refused_and_never_loaded(tmp_path: Path, arrays: Arrays) -> None:
    Bomb.trace = tmp_path / "exploded"
    targets = np.empty((200, 19), dtype=object)
    targets[0, 0] = Bomb()
    np.savez_compressed(tmp_path / "bomb.npz", **(arrays | {"targets": targets}))
    with pytest.raises(DataError, match="'targets' holds pickled Python objects"):
        read_molecules(tmp_path / "bomb.npz", "homo")
    assert not Bomb.trace.exists()


def test_unknown_task(data_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"task must be one of mu, .*, C; got 'HOMO'"):
        read_molecules(data_dir / "qm9_edge.npz", "HOMO")


def test_write_npz_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.npz"
    write_npz(path, {"a": np.arange(3)})
    before = path.read_bytes()
    write_npz(path, {"a": np.arange(3)})
    assert path.read_bytes() == before

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        write_npz(path, {"a": np.arange(4)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(TypeError, match="arrays\\['b'\\] must hold numbers"):
        write_npz(path, {"b": np.array([None])})
