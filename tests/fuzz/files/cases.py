"""What is attacked: for every reader its files, how they are changed, and what may come of it.

A case is refused with the project's own error in one line, or accepted; then what was read must be what was written, where the
format can tell, and sound anyway.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from se3_fast.data import force_frames
from se3_fast.data.force_frames import FORCE_ARRAY_NAMES, FORCE_SAMPLE_PATH, read_force_frames
from se3_fast.data.frame_folder import INDEX_NAME, FrameFolder, FrameFolderWriter
from se3_fast.data.frames import ForceFrames as Frames
from se3_fast.data.label_units import DEFAULT_NAMES
from se3_fast.data.molecules import ARRAY_NAMES, DataError, MoleculeDataset, check_archive, read_molecules
from se3_fast.data.npz_file import write_npz
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.data.resident import NumberedBatch, ResidentMolecules
from se3_fast.forces import ForceField, load_force_field
from se3_fast.training import CheckpointError, TrainingOptions, read_checkpoint
from se3_fast.training.checkpoint import write_safetensors
from se3_fast.training.model_config import build_model, model_of_checkpoint
from se3_fast.training.optimizers import build_optimizer, build_schedule, load_optimizer_state
from se3_fast.training.random_state import capture_random_state, restore_random_state

from . import mutations
from .mutations import Arrays

MODEL_CONFIG = {
    "fiber_in": {0: 6}, "fiber_edge": {0: 4}, "fiber_out": {0: 4}, "output_dim": 1, "num_degrees": 2, "num_channels": 2,
    "num_layers": 1, "num_heads": 1, "channels_div": 2, "pooling": "max", "norm": True, "use_layer_norm": True,
    "tensor_cores": True, "low_memory": False,
}  # fmt: skip


class Failure(Exception):
    """A reader did what it must not do; the message says what."""


class Reader:
    """A reader and its files.

    Attributes:
        error: What it may raise.
        suffix: Of its files.
    """

    error: type[Exception]
    suffix: str

    def change(self, numbers: random.Random) -> tuple[bytes, Callable[[Any], bool]]:
        """A changed file, and whether what is read from it is what was written."""
        raise NotImplementedError

    def read(self, path: Path) -> Any:
        """Read a file."""
        raise NotImplementedError

    def use(self, result: Any) -> None:
        """Do with the result what is done with it next."""


def equal(first: Any, second: Any) -> bool:
    """Whether two results are the same to the bit."""
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return isinstance(first, Tensor) and isinstance(second, Tensor) and _equal_tensors(first, second)
    if isinstance(first, dict):
        return isinstance(second, dict) and list(first) == list(second) and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(equal, first, second))
    if is_dataclass(first):
        return all(equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    both_nan = isinstance(first, float) and isinstance(second, float) and math.isnan(first) and math.isnan(second)
    return type(first) is type(second) and (both_nan or first == second)


def _equal_tensors(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    one, two = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second))
    return torch.equal(one, two)


class _ArrayReader(Reader):
    """A reader of arrays.

    Args:
        arrays: Sound ones.
        counts: Names of those that count the rows of others.
    """

    error = DataError
    suffix = ".npz"

    def __init__(self, arrays: Arrays, counts: tuple[str, ...], folder: Path) -> None:
        self.arrays, self.counts = arrays, counts
        path = folder / "sound.npz"
        write_npz(path, arrays)
        self.content = path.read_bytes()
        self.sound = self.read(path)

    def change(self, numbers: random.Random) -> tuple[bytes, Callable[[Any], bool]]:
        kind = numbers.randrange(10)
        if kind <= 2:
            return mutations.change_bytes(numbers, self.content), self._is_sound_one
        if kind <= 4:
            return mutations.change_archive(numbers, self.content), lambda result: True
        if kind <= 6:
            return mutations.lie_in_header(numbers, self.arrays), lambda result: True
        changed = mutations.change_values(numbers, self.arrays, self.counts)
        return mutations.archive_of_arrays(changed), lambda result: self.holds(result, changed)

    def _is_sound_one(self, result: Any) -> bool:
        return equal(result, self.sound)

    def holds(self, result: Any, arrays: Arrays) -> bool:
        """Whether a result is what these arrays say."""
        raise NotImplementedError


def _same(read: Tensor, written: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        return np.array_equal(read.numpy(), written.astype(read.numpy().dtype), equal_nan=True)


def near_origin(positions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Positions [N, 3] as readers have them: molecules that reach further than 100 Angstrom begin at the origin."""
    wide = positions.astype(np.float64)
    for molecule in np.split(wide, np.cumsum(counts)[:-1]):
        if (np.abs(molecule) > 100).any():
            molecule -= molecule[0].copy()
    return wide


class Molecules(_ArrayReader):
    """`read_molecules`."""

    def __init__(self, folder: Path, molecules: int = 40) -> None:
        with np.load(SAMPLE_PATH) as archive:
            arrays = {name: archive[name] for name in ARRAY_NAMES}
        nodes, edges = int(arrays["n_node"][:molecules].sum()), int(arrays["n_edge"][:molecules].sum())
        lengths = {"node_attr": nodes, "node_pos": nodes, "edge_attr": edges, "src": edges, "dst": edges}
        few = {name: array[: lengths.get(name, molecules)] for name, array in arrays.items()}
        super().__init__(few, ("n_node", "n_edge"), folder)

    def read(self, path: Path) -> Any:
        result = read_molecules(path, "homo")
        check_archive(path)
        return result

    def holds(self, result: Any, arrays: Arrays) -> bool:
        names = ("n_node", "n_edge", "src", "dst")
        attributes = ((result.node_attr, arrays["node_attr"][:, :6]), (result.edge_attr, arrays["edge_attr"][:, :4]))
        return (
            all(_same(getattr(result, name), arrays[name]) for name in names)
            and _same(result.node_pos, near_origin(arrays["node_pos"], arrays["n_node"]))
            and all(_same(read, written) for read, written in attributes)
            and _same(result.targets, arrays["targets"][:, 2])
        )

    def use(self, result: Any) -> None:
        for name in ("node_pos", "node_attr", "edge_attr"):
            if not getattr(result, name).float().isfinite().all():
                raise Failure(f"{name} is not finite")
        if result.targets.isinf().any() or (result.node_pos.square().sum(1).isinf()).any():
            raise Failure("targets or distances are infinite")
        for kinds, rows in ((result.node_attr[:, :5], result.node_attr), (result.edge_attr, result.edge_attr)):
            if rows.dtype == torch.uint8 and not ((kinds == 1).sum(1) == 1).all():
                raise Failure("rows are not one-hot")
        numbers = torch.arange(len(result))
        everything = NumberedBatch(numbers, int(result.n_node.sum()), int(result.n_edge.sum()))
        ResidentMolecules(result).assemble(everything)
        MoleculeDataset(result)[len(result) - 1]


class ForceFrames(_ArrayReader):
    """`read_force_frames`, and the same file in chunks, which must come to the same."""

    def __init__(self, folder: Path, frames: int = 30) -> None:
        with np.load(FORCE_SAMPLE_PATH) as archive:
            arrays = {name: archive[name] for name in (*FORCE_ARRAY_NAMES, "split")}
        atoms = int(arrays["n_atoms"][:frames].sum())
        of_atoms = ("z", "pos", "forces_eV_A")
        few = {name: array[: atoms if name in of_atoms else frames] for name, array in arrays.items()}
        super().__init__(few, ("n_atoms",), folder)

    def read(self, path: Path) -> Any:
        try:
            frames, split = read_force_frames(path)
        except DataError:
            self._in_chunks(path)
            raise Failure("refused as a whole, and read in chunks") from None
        parts = self._in_chunks(path)
        if not equal(Frames.joined([part.frames for part in parts]), frames):
            raise Failure("other frames in chunks")
        if split is not None and not equal(torch.cat([part.split for part in parts]), split):
            raise Failure("another split in chunks")
        return frames, split

    def _in_chunks(self, path: Path) -> list[Any]:
        with mock.patch.object(force_frames, "CHUNK", 7):
            return list(force_frames.frame_chunks(path, ":", DEFAULT_NAMES))

    def holds(self, result: Any, arrays: Arrays) -> bool:
        frames, split = result
        arrays = {**arrays, "pos": near_origin(arrays["pos"], arrays["n_atoms"])}
        values = (frames.n_atoms, frames.atomic_numbers, frames.pos, frames.energies, frames.forces)
        are_same = all(_same(read, arrays[name]) for name, read in zip(FORCE_ARRAY_NAMES, values, strict=True))
        return are_same and (split is None if "split" not in arrays else split is not None and _same(split, arrays["split"]))

    def use(self, result: Any) -> None:
        frames, _ = result
        for values in (frames.pos, frames.forces, frames.energies.float(), frames.pos.square().sum(1)):
            if not values.isfinite().all():
                raise Failure("positions, distances, forces or energies are not finite")
        frames.select(range(len(frames)))


def trained_checkpoint() -> dict[str, Any]:
    """All that a trainer writes, of a model of a few parameters."""
    torch.manual_seed(0)
    model = build_model(MODEL_CONFIG)
    optimizer = build_optimizer(model.parameters(), TrainingOptions())
    schedule = build_schedule(optimizer, TrainingOptions())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": schedule.state_dict(),
        "scaler_state_dict": torch.amp.GradScaler("cpu", init_scale=2.0).state_dict(),
        "epoch": 3,
        "step": 12,
        "optimizer": "adam",
        "rng": [capture_random_state()],
        "history": [{"epoch": epoch, "learning_rate": 0.002, "train_loss": 0.5, "validation_mae": 0.25} for epoch in (1, 2, 3)],
        "model_config": MODEL_CONFIG,
        "data": {"dataset": "qm9", "task": "homo", "mean": -6.5, "std": 0.6},
        "seed": 7,
        "version": 1,
    }


def _saved(checkpoint: Any, is_archive: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(checkpoint, stream, _use_new_zipfile_serialization=is_archive)
    return stream.getvalue()


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _containers(value: Any) -> Iterator[Any]:
    """Dictionaries and lists, each as often as its parts in all their depth have parts, so that a choice is one of places."""
    if isinstance(value, dict | list) and len(value):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _containers(part)


def _odd_tensor(numbers: random.Random, tensor: Tensor) -> Tensor:
    values = tensor.flatten()
    return numbers.choice(
        (
            *(tensor.double() * 1e300, tensor * float("inf"), torch.full_like(tensor, -1), torch.tensor(float("nan"))),
            *(tensor.to(torch.complex64), tensor.long(), tensor.half(), tensor.bool(), tensor.to("meta")),
            *(tensor[None], values, values[:1], torch.zeros(0), torch.nn.Parameter(tensor.float())),
            *(values[:1].expand(10**9), values[:1].expand(tensor.numel()).view(tensor.shape)),
        )
    )


def change_entries(numbers: random.Random, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint in which one entry, at any depth, is another, is missing, or stands elsewhere too."""
    changed = _copied(checkpoint)
    top = numbers.choice(list(changed))
    nested = [changed, *_containers(changed[top])]
    container = numbers.choice(nested)
    key = top if container is changed else numbers.choice(list(container) if isinstance(container, dict) else range(len(container)))
    value, kind = container[key], numbers.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1:
        other = numbers.choice(nested)
        container[key] = other if other is not container else {}
    elif kind == 2 and isinstance(container, dict):
        container[numbers.choice(("added", "a\nb", 7, None, "x" * 5000, ("a", 1)))] = value
    elif kind == 3:
        container[key] = numbers.choice(([value], {"a": value}, [], {}, (value,), {0: value}, [[value] * 3] * 3))
    elif isinstance(value, Tensor):
        container[key] = _odd_tensor(numbers, value) if kind < 7 else mutations.any_value(numbers)
    elif isinstance(value, int | float) and kind < 7:
        others = (-value, value + 1, value * 10**5, float("nan"), 1e308, 2**62)
        container[key] = numbers.choice((*others, float(value), str(value), bool(value), torch.tensor(value)))
    else:
        container[key] = mutations.any_value(numbers)
    return changed


class Checkpoints(Reader):
    """`read_checkpoint` of what `torch.save` writes, and going on from it."""

    error = CheckpointError
    suffix = ".pth"

    def __init__(self, folder: Path, is_archive: bool = True) -> None:
        self.is_archive = is_archive
        self.checkpoint = trained_checkpoint()
        self.content = _saved(self.checkpoint, is_archive)
        (folder / "sound.pth").write_bytes(self.content)
        self.sound = self.read(folder / "sound.pth")
        self.use(self.sound)

    def change(self, numbers: random.Random) -> tuple[bytes, Callable[[Any], bool]]:
        kind = numbers.randrange(10)
        if kind <= 3:
            return mutations.change_bytes(numbers, self.content), lambda result: not self.is_archive or equal(result, self.sound)
        if kind <= 5 and self.is_archive:
            change = mutations.change_archive if kind == 4 else self._change_pickle
            return change(numbers, self.content), lambda result: True
        changed = change_entries(numbers, self.checkpoint)
        return _saved(changed, self.is_archive), lambda result: equal(result, changed)

    @staticmethod
    def _change_pickle(numbers: random.Random, content: bytes) -> bytes:
        """An archive whose pickle was changed before its checksum was taken."""
        entries = mutations.members(content)
        name = next(name for name in entries if name.endswith("data.pkl"))
        entries[name] = change_pickle(numbers, entries[name])
        return mutations.archive_of(list(entries.items()))

    def read(self, path: Path) -> Any:
        return read_checkpoint(path)

    def use(self, result: Any) -> None:
        path = Path("checkpoint")
        model = build_model(MODEL_CONFIG)
        if "model_config" in result:
            model = model_of_checkpoint(path, result["model_config"], result["state_dict"])
        optimizer = build_optimizer(model.parameters(), TrainingOptions())
        load_optimizer_state(optimizer, result["optimizer_state_dict"], path)
        if result.get("scaler_state_dict"):
            torch.amp.GradScaler("cpu").load_state_dict(result["scaler_state_dict"])
        state = capture_random_state()
        for saved in result.get("rng", []):
            restore_random_state(saved)
            np.random.rand(), torch.rand(1), random.random()
        restore_random_state(state)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise Failure("a step makes parameters that are not finite")
        if type(result["epoch"]) is not int or result["epoch"] < 0:
            raise Failure(f"epoch is {result['epoch']!r}")


def change_pickle(numbers: random.Random, pickled: bytes) -> bytes:
    """A pickle that asks for something else: sizes, objects, or what a damaged file asks for."""
    kind = numbers.randrange(6)
    if kind <= 1:
        return mutations.change_bytes(numbers, pickled)
    if kind == 2:
        # BININT1 becomes BININT of another number.
        places = [place for place in range(len(pickled) - 1) if pickled[place : place + 1] == b"K"]
        place, number = numbers.choice(places), numbers.choice((2**31 - 1, -1, -(2**31), 10**6, 0))
        return pickled[:place] + b"J" + number.to_bytes(4, "little", signed=True) + pickled[place + 2 :]
    if kind == 3:
        storages = (b"DoubleStorage", b"ByteStorage", b"ComplexDoubleStorage", b"NopeStorage")
        return pickled.replace(b"FloatStorage", numbers.choice(storages), numbers.choice((1, -1)))
    if kind == 4:
        names = (
            "builtins bytearray",
            "torch FloatTensor",
            "torch.storage UntypedStorage",
            "posix system",
            "torch Tensor",
            "_codecs encode",
        )
        name = numbers.choice(names).replace(" ", "\n").encode()
        return pickled.replace(b"collections\nOrderedDict\n", name + b"\n", 1)
    bombs = (
        b"\x80\x02]q\x00" + b"(h\x00h\x00eh\x00" * 2 + b"0.",
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        b"\x80\x02" + b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (level, level - 1, level - 1) for level in range(1, 60)) + b".",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
    )
    return numbers.choice(bombs)


class OldCheckpoints(Checkpoints):
    """The format before the archives; it has no checksums, so that a change may be read as it stands."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, is_archive=False)


def _as_json(description: Any) -> str:
    try:
        return json.dumps(description, default=repr, skipkeys=True)
    except ValueError:  # of what holds itself
        return "{}"


class Safetensors(Reader):
    """`read_checkpoint` of safetensors."""

    error = CheckpointError
    suffix = ".safetensors"

    def __init__(self, folder: Path) -> None:
        self.checkpoint = trained_checkpoint()
        path = folder / "sound.safetensors"
        write_safetensors(path, self.checkpoint)
        self.content = path.read_bytes()
        self.sound = self.read(path)
        self.use(self.sound)

    def change(self, numbers: random.Random) -> tuple[bytes, Callable[[Any], bool]]:
        kind = numbers.randrange(10)
        if kind <= 4:
            return mutations.change_bytes(numbers, self.content), lambda result: equal(result, self.sound)
        if kind <= 6:
            return self._lie_in_header(numbers), lambda result: True
        described = {key: self.checkpoint[key] for key in ("epoch", "step", "optimizer", "model_config", "data", "seed")}
        odd = ("[]", "null", "3", "{", "[" * 10**5, "NaN", '{"epoch": ' + "9" * 5000 + "}", '{"epoch": -3}', '{"epoch": NaN}')
        text = numbers.choice(odd) if numbers.random() < 0.4 else _as_json(change_entries(numbers, described))
        return safetensors_bytes(self.checkpoint["state_dict"], {"checkpoint": text}), lambda result: True

    def _lie_in_header(self, numbers: random.Random) -> bytes:
        length = int.from_bytes(self.content[:8], "little")
        header, values = json.loads(self.content[8 : 8 + length]), self.content[8 + length :]
        name = numbers.choice(sorted(set(header) - {"__metadata__"}))
        field, lies = numbers.choice(
            (
                ("dtype", ("F64", "I32", "BF16", "F8_E4M3", "nope", 3, "C64", "U32")),
                ("shape", ([10**12], [-1], [], [2**63, 2], "a", [1.5], [[1]])),
                ("data_offsets", ([0, 10**12], [-4, 0], [0, 0], [10, 2], [0], "a", [0, 2**64])),
            )
        )
        header[name][field] = numbers.choice(lies)
        text = json.dumps(header).encode()
        length = numbers.choice((len(text), len(text), 2**63, 2**64 - 1, 10**8, 0, len(text) + 10**6))
        return length.to_bytes(8, "little") + text + values

    def read(self, path: Path) -> Any:
        return read_checkpoint(path)

    def use(self, result: Any) -> None:
        if "model_config" in result:
            model_of_checkpoint(Path("checkpoint"), result["model_config"], result["state_dict"])


class ForceFields(Reader):
    """`load_force_field`."""

    error = CheckpointError
    suffix = ".pth"

    def __init__(self, folder: Path) -> None:
        model = ForceField([1, 6], num_layers=1, num_degrees=2, num_channels=4, num_radial=4, cutoff=4.0)
        self.checkpoint = {"state_dict": model.state_dict(), "optimizer_state_dict": {}, "epoch": 1, "model_config": model.config}
        path = folder / "forces.pth"
        path.write_bytes(_saved(self.checkpoint))
        load_force_field(path)

    def change(self, numbers: random.Random) -> tuple[bytes, Callable[[Any], bool]]:
        name = numbers.choice(("model_config", "model_config", "model_config", "state_dict"))
        part = change_entries(numbers, {name: self.checkpoint[name]})
        return _saved({**self.checkpoint, name: None, **part}), lambda result: True

    def read(self, path: Path) -> Any:
        return load_force_field(path)


class Molecules3D(Reader):
    """`build_qm9`: an sdf and its csv, of which one is changed; both are in one file here, with a line between them."""

    error = DataError
    suffix = ".both"
    border = b"\n=== csv ===\n"

    def __init__(self, folder: Path) -> None:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdDistGeom

        rdBase.DisableLog("rdApp.*")
        self.folder = folder
        stream = io.StringIO()
        smiles = {1: "C", 7: "CC", 21: "c1cc[nH]c1", 30: "CC#N"}
        with Chem.SDWriter(stream) as writer:
            for number, text in smiles.items():
                molecule = Chem.AddHs(Chem.MolFromSmiles(text))
                rdDistGeom.EmbedMolecule(molecule, randomSeed=1)
                molecule.SetProp("_Name", f"gdb_{number}")
                writer.write(molecule)
        self.sdf = stream.getvalue().encode()
        columns = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv"
        values = "157.7,157.7,157.7,0,13.2,-0.4,0.1,0.5,35.4,0.04,-40.4,-40.4,-40.4,-40.4,6.5"
        self.csv = "\n".join([columns, *(f"gdb_{number},{values}" for number in smiles)]).encode() + b"\n"

    def change(self, numbers: random.Random) -> tuple[bytes, Callable[[Any], bool]]:
        sdf, table = self.sdf, self.csv
        if numbers.random() < 0.6:
            sdf = mutations.change_text(numbers, sdf) if numbers.random() < 0.9 else self._lie_in_counts(numbers)
        else:
            table = mutations.change_text(numbers, table)
        return sdf + self.border + table, lambda result: True

    def _lie_in_counts(self, numbers: random.Random) -> bytes:
        counts = numbers.choice((b"999999", b"  0  0", b" -1 -1", b"  5999", b"999  4"))
        many = (
            b"gdb_1\n RDKit\n\n  0  0  0     0  0            999 V3000\nM  V30 BEGIN CTAB\n"
            b"M  V30 COUNTS 400000000 400000000 0 0 0\nM  V30 BEGIN ATOM\n"
            b"M  V30 1 C 0 0 0 0\nM  V30 END ATOM\nM  V30 END CTAB\nM  END\n$$$$\n"
        )
        return numbers.choice((self.sdf.replace(b"  5  4", counts, 1), many))

    def read(self, path: Path) -> Any:
        from se3_fast.data.build_qm9 import build_qm9

        sdf, _, table = path.read_bytes().partition(self.border)
        self.folder.joinpath("a.sdf").write_bytes(sdf)
        self.folder.joinpath("a.csv").write_bytes(table)
        return build_qm9(self.folder / "a.sdf", self.folder / "a.csv")

    def use(self, result: Any) -> None:
        path = self.folder / "built.npz"
        write_npz(path, result)
        try:
            for task in ("homo", "U0_atom"):
                if not read_molecules(path, task).targets.isfinite().all():
                    raise Failure("a target is not finite")
        except DataError as error:
            raise Failure(f"what was built is refused: {error}") from error


class FrameFolders(Reader):
    """`FrameFolder`: a file of the folder is changed; here its name stands before it."""

    error = DataError
    suffix = ".one"

    def __init__(self, folder: Path, frames: int = 30) -> None:
        sample, _ = read_force_frames(FORCE_SAMPLE_PATH)
        self.sound = sample.select(range(frames)).completed(True, True)
        self.folder = folder / "packed"
        with FrameFolderWriter(self.folder, 5.0) as writer:
            writer.add(self.sound, torch.full((frames,), 40), torch.zeros(frames, dtype=torch.int64))
        self.files = {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}

    def change(self, numbers: random.Random) -> tuple[bytes, Callable[[Any], bool]]:
        name = INDEX_NAME if numbers.random() < 0.5 else numbers.choice([*self.files])
        changed = (mutations.change_text if name == INDEX_NAME else mutations.change_bytes)(numbers, self.files[name])
        return name.encode() + b"\n" + changed, lambda result: equal(result, self.sound)

    def read(self, path: Path) -> Any:
        name, _, changed = path.read_bytes().partition(b"\n")
        for each, content in {**self.files, name.decode(): changed}.items():
            self.folder.joinpath(each).write_bytes(content)
        folder = FrameFolder(self.folder)
        folder.check_bytes()
        if folder.elements != self.sound.elements:
            raise Failure("other elements")
        return folder.select(range(len(folder)))
