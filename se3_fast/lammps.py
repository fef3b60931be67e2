"""Force fields in LAMMPS (needs the extra ``ase``).

By the unified Python interface of its package ML-IAP, on many processes:

    pair_style mliap unified force_field.pkl 0
    pair_coeff * * C H O

or, where LAMMPS runs inside Python on one process, by :func:`attach`, which needs nothing of LAMMPS but ``fix external``.

The file is made by ``se3-fast export-lammps``. A force field of more than one layer has messages of messages: LAMMPS then has to
copy what the atoms of a layer have become to their images and to neighbouring processes, which its KOKKOS version does.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from se3_fast.ase import OutsideDomainError, SE3FastCalculator
from se3_fast.commands.export_lammps import main
from se3_fast.error_text import one_line
from se3_fast.files import atomic_file
from se3_fast.forces import ForceField, load_force_field
from se3_fast.graph import Graph
from se3_fast.simulation.arguments import DTYPES, WITHOUT_DIPOLE
from se3_fast.simulation.single_point import SinglePoint
from se3_fast.training.errors import run_command, user_errors


class LAMMPSForceField:
    """What LAMMPS calls: it gives pairs of near atoms, and takes energies and pair forces. Units are LAMMPS' ``metal``.

    Args:
        force_field: it is left as it is.
        dtype: what it computes in; None: as its parameters are.

    Attributes:
        element_types: symbols of the elements that it knows.
        rcutfac: half its cutoff, Angstrom.

    Raises:
        ValueError: as :class:`~se3_fast.simulation.single_point.SinglePoint`.
    """

    ndescriptors = 1
    nparams = 1

    def __init__(self, force_field: ForceField, dtype: torch.dtype | None = None) -> None:
        self._evaluated = SinglePoint(force_field, dtype=dtype)
        self.interface = None  # LAMMPS puts its own there
        self.element_types = [chemical_symbols[number] for number in force_field.elements]
        self.rcutfac = force_field.cutoff / 2

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled it is numbers and names, no objects of others, and nothing of LAMMPS."""
        force_field = self._evaluated.force_field
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in force_field.state_dict().items()}
        return _restored, (force_field.config, save_safetensors(tensors), str(self._evaluated.dtype).removeprefix("torch."))

    def compute_gradients(self, data: Any) -> None:
        """Nothing; LAMMPS asks for it before the forces."""

    def compute_descriptors(self, data: Any) -> None:
        """Nothing; LAMMPS asks for it before the forces."""

    def compute_forces(self, data: Any) -> None:
        """Evaluate the atoms of a process.

        Args:
            data: of ML-IAP. It has ``ntotal`` atoms, of which the first ``nlistatoms`` are the process' own; ``elems`` of all;
                pairs ``pair_i`` (an own atom), ``pair_j`` and ``rij``, from i to j.

        Raises:
            RuntimeError: if the force field has several layers, and this LAMMPS does not copy features.
        """
        count, total = data.nlistatoms, data.ntotal
        if not count:
            return
        force_field = self._evaluated.force_field
        if len(force_field.layers) > 1 and not hasattr(data, "forward_exchange"):
            raise RuntimeError(
                f"LAMMPS: expected its KOKKOS version (lmp -k on -sf kk) for a force field of {len(force_field.layers)} layers, "
                "got one that does not exchange features of atoms"
            )
        rij = torch.as_tensor(data.rij, dtype=torch.float64).clone().requires_grad_()
        force_field.to(rij.device)
        src, dst = (torch.as_tensor(part, device=rij.device).long() for part in (data.pair_j, data.pair_i))
        known = torch.tensor([atomic_numbers[symbol] for symbol in self.element_types], device=rij.device)
        elements = known[torch.as_tensor(data.elems, device=rij.device).long()]
        graph = Graph(src, dst, total, ndata={"atomic_numbers": elements}, edata={"rel_pos": -rij.to(self._evaluated.dtype)})

        def exchange(features: list[Tensor]) -> list[Tensor]:
            sizes = [feature.shape[1] for feature in features]
            own = torch.cat(features, 1)[:count]
            padded = torch.cat([own, own.new_zeros(total - count, *own.shape[1:])])
            return list(_Exchanged.apply(padded.flatten(1), data).view_as(padded).split(sizes, 1))

        with torch.enable_grad():
            energies = force_field.atomic_energies(graph, exchange)[:count]
            (pair_forces,) = torch.autograd.grad(energies.sum(), rij, materialize_grads=True)
        _hand_over(data, energies.detach(), pair_forces)


class _Exchanged(torch.autograd.Function):
    """The rows of a process' own atoms, and after them those of the atoms that others are copies of."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, data: Any) -> Tensor:
        ctx.data = data
        rows = rows.contiguous()
        exchanged = torch.empty_like(rows)
        data.forward_exchange(rows, exchanged, rows.shape[1])
        return exchanged

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows = gradients[0].contiguous()
        collected = torch.empty_like(rows)
        ctx.data.reverse_exchange(rows, collected, rows.shape[1])
        return collected, None


def _hand_over(data: Any, energies: Tensor, pair_forces: Tensor) -> None:
    """Give LAMMPS energies of atoms, [nlistatoms], and the gradients by rij, [npairs, 3]; it makes forces and virial of them."""
    data.energy = float(energies.sum())
    if hasattr(data, "eatoms"):  # the KOKKOS version lends its array, the other one takes ours
        torch.as_tensor(data.eatoms).copy_(energies)
    else:
        data.eatoms = energies.cpu().numpy()
    if len(pair_forces):
        data.update_pair_forces(pair_forces if pair_forces.is_cuda else pair_forces.contiguous().numpy())


def _restored(config: dict[str, Any], tensors: bytes, dtype: str) -> LAMMPSForceField:
    """What :meth:`LAMMPSForceField.__reduce__` has taken apart."""
    force_field = ForceField(**config)
    force_field.load_state_dict(load_safetensors(tensors))
    return LAMMPSForceField(force_field, DTYPES[dtype])


def attach(lmp: Any, calculator: SE3FastCalculator, elements: Sequence[str], fix: str = "se3_fast") -> None:
    """Have a LAMMPS that runs inside Python, on one process, move its atoms by a calculator.

    Energy and, where all directions are periodic, virial go to LAMMPS too. An error is printed, and ends the run; so does Ctrl-C.

    Args:
        lmp: a ``lammps.lammps`` in units ``metal`` with its box and atoms made.
        calculator: evaluates.
        elements: symbols, by LAMMPS' types of atoms.
        fix: name of the fix that is made.

    Raises:
        ValueError: if LAMMPS has other units or several processes, or an element is missing or none.
    """
    if lmp.extract_global("units") != "metal" or lmp.extract_setting("world_size") > 1:
        came = f"{lmp.extract_global('units')} and {lmp.extract_setting('world_size')}"
        raise ValueError(f"lmp: expected units metal and one process, got {came}")
    if len(elements) != lmp.extract_global("ntypes"):
        raise ValueError(f"elements: expected one for each of the {lmp.extract_global('ntypes')} types, got {list(elements)}")
    unknown = [symbol for symbol in elements if symbol not in chemical_symbols[1:]]
    if unknown:
        raise ValueError(f"elements: expected symbols of elements such as 'C', got {unknown}")
    symbols = np.array(["", *elements])  # types count from 1

    def evaluate(_: Any, __: int, count: int, tags: np.ndarray, pos: np.ndarray, forces: np.ndarray) -> None:
        try:
            hand_over(count, tags, pos, forces)
        except BaseException as error:  # ctypes would drop any, and LAMMPS go on with the forces of an earlier step
            known = isinstance(error, (ValueError, OutsideDomainError))
            print(f"error: {one_line(error)}" if known else f"error: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
            forces[:] = 0.0
            lmp.force_timeout()

    def hand_over(count: int, tags: np.ndarray, pos: np.ndarray, forces: np.ndarray) -> None:
        order = np.argsort(tags)  # LAMMPS sorts its atoms now and then
        low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
        lengths = np.subtract(high, low)
        cell = [[lengths[0], 0, 0], [xy, lengths[1], 0], [xz, yz, lengths[2]]]
        kinds = symbols[lmp.numpy.extract_atom("type")[:count][order]]
        atoms = Atoms(list(kinds), positions=pos[order] - low, cell=cell, pbc=np.array(periodic, dtype=bool), calculator=calculator)
        forces[order] = atoms.get_forces()
        lmp.fix_external_set_energy_global(fix, atoms.get_potential_energy())
        if atoms.pbc.all():
            xx, yy, zz, yz, xz, xy = -atoms.get_stress() * atoms.get_volume()
            lmp.fix_external_set_virial_global(fix, [xx, yy, zz, xy, xz, yz])

    lmp.commands_list([f"fix {fix} all external pf/callback 1 1", f"fix_modify {fix} energy yes virial yes"])
    lmp.set_fix_external_callback(fix, evaluate)


def export(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
    """
    with user_errors():
        if arguments.output.suffix in (".pt", ".pth"):
            raise ValueError(f"{arguments.output}: expected another ending, .pkl, since LAMMPS has PyTorch read this one")
        loaded = load_force_field(arguments.load_ckpt_path, arguments.repulsion)
        force_field = LAMMPSForceField(loaded, DTYPES[arguments.dtype])
        with atomic_file(arguments.output) as file:
            pickle.dump(force_field, file)
    elements, cutoff = " ".join(force_field.element_types), 2 * force_field.rcutfac
    if loaded.has_dipole:
        print(WITHOUT_DIPOLE)
    print(f"{arguments.output}: elements {elements}, cutoff {cutoff:g} Angstrom; pair_style mliap unified {arguments.output} 0")


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return run_command(lambda: export(arguments))


if __name__ == "__main__":
    sys.exit(main())
