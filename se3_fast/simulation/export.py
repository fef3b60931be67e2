"""A force field as a package of AOTInductor, which runs without se3_fast, from Python or C++: `se3-fast export-forces --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from se3_fast.backends.choice import backend
from se3_fast.commands.export_forces import main
from se3_fast.files import check_writable
from se3_fast.forces import ForceField, load_force_field
from se3_fast.graph import EdgeOrder, Graph
from se3_fast.training.errors import run_command, user_errors

from .arguments import DTYPES, WITHOUT_DIPOLE
from .compiled import describe
from .single_point import SinglePoint

Evaluation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def evaluation_of(force_field: ForceField, dtype: torch.dtype | None = None) -> Evaluation:
    """What is exported, as a function of tensors.

    Args:
        force_field: it is left as it is.
        dtype: what it computes in; None: as its parameters are.

    Returns:
        A function of rel_pos [E, 3] in that dtype (destination less source, with the lattice translation), src [E] and dst [E]
        int64, and atomic_numbers [N] int64, which gives energies of atoms [N] float64 in eV (not a number for an element that is
        not known), forces [N, 3] in eV/Angstrom, and the virial [3, 3] in eV, which over the volume is the stress.
    """
    model = SinglePoint(force_field, dtype=dtype).force_field

    def evaluate(rel_pos: Tensor, src: Tensor, dst: Tensor, atomic_numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rel_pos = rel_pos.detach().requires_grad_()
        ends = torch.arange(atomic_numbers.shape[0] + 1)
        incoming, outgoing = (_order(nodes, ends) for nodes in (dst, src))
        data = {"atomic_numbers": atomic_numbers}
        graph = Graph.from_orders(src, dst, incoming, outgoing, ndata=data, edata={"rel_pos": rel_pos})
        energies = model.atomic_energies(graph)
        (gradient,) = torch.autograd.grad(energies.sum(), rel_pos)
        forces = gradient.new_zeros(atomic_numbers.shape[0], 3).index_add(0, src, gradient).index_add(0, dst, -gradient)
        virial = (rel_pos[:, :, None] * gradient[:, None]).sum(0)
        is_known = model.column_of_element[atomic_numbers] >= 0
        return torch.where(is_known, energies, torch.nan).detach(), forces, virial.detach()

    return evaluate


def _order(nodes: Tensor, ends: Tensor) -> EdgeOrder:
    """Edges grouped by a node of theirs, by operations that can be traced."""
    found, order = nodes.sort(stable=True)
    return EdgeOrder(order, torch.searchsorted(found, ends))


def traced_force_field(force_field: ForceField, dtype: torch.dtype | None = None) -> torch.export.ExportedProgram:
    """A program of PyTorch's operations alone, for two edges at least between two atoms at least; see :func:`evaluation_of`."""
    evaluate = evaluation_of(force_field, dtype)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.tensor(force_field.elements[:1] * 4)
    src, dst = (~torch.eye(4, dtype=torch.bool)).nonzero(as_tuple=True)
    rel_pos = torch.randn(len(src), 3, generator=generator).to(dtype or next(force_field.parameters()).dtype)
    example = (rel_pos, src, dst, numbers)
    with backend("torch"):
        evaluate(*example)  # makes what is made once, such as coupling coefficients; their values cannot be traced
        # Its gradient becomes a part of the program here; torch.export alone does not differentiate.
        graph = make_fx(evaluate, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
    edges, atoms = Dim("edges", min=2), Dim("atoms", min=2)
    return torch.export.export(graph, example, dynamic_shapes=({0: edges}, {0: edges}, {0: edges}, {0: atoms}))


def export(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
    """
    with user_errors():
        if arguments.output.suffix != ".pt2":
            raise ValueError(f"{arguments.output}: expected a name that ends in .pt2")
        check_writable(arguments.output)
        force_field = load_force_field(arguments.load_ckpt_path, arguments.repulsion)
    program = traced_force_field(force_field, DTYPES[arguments.dtype])
    about = describe(force_field, DTYPES[arguments.dtype])
    configs = {"aot_inductor.metadata": about}
    torch._inductor.aoti_compile_and_package(program, package_path=str(arguments.output), inductor_configs=configs)
    if force_field.has_dipole:
        print(WITHOUT_DIPOLE)
    print(f"{arguments.output}: elements {force_field.elements}, cutoff {force_field.cutoff:g} Angstrom")


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return run_command(lambda: export(arguments))


if __name__ == "__main__":
    sys.exit(main())
