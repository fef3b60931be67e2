"""What the commands that run force fields share."""

from __future__ import annotations

import argparse

import torch
from ase import Atoms

from se3_fast.ase import SE3FastCalculator
from se3_fast.commands.force_field_arguments import NAMES_OF_DTYPES
from se3_fast.data.molecules import DataError
from se3_fast.data.structures import read_structures

WITHOUT_DIPOLE = "note: energies and forces alone are exported, not the dipole that this force field gives too"
"""What commands say that write a force field of dipoles."""

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in NAMES_OF_DTYPES}


def device_name_of(arguments: argparse.Namespace) -> str:
    """The device that the command line asks for; packages run on the CPU alone."""
    return "cpu" if arguments.compiled is not None and arguments.device == "auto" else str(arguments.device)


def calculator_of(arguments: argparse.Namespace, device: torch.device) -> SE3FastCalculator:
    """The calculator that the command line asks for.

    Raises:
        ValueError: A checkpoint or an option is at fault.
    """
    return SE3FastCalculator(
        arguments.load_ckpt_path,
        device=device,
        dtype=DTYPES[arguments.dtype],
        skin=arguments.skin,
        largest_spread=arguments.largest_spread,
        outside=arguments.outside,
        repulsion=arguments.repulsion,
        cuda_graphs=arguments.cuda_graphs,
        compiled=arguments.compiled,
    )


def structures_of(arguments: argparse.Namespace) -> list[tuple[int, Atoms]]:
    """Frame numbers and structures that the command line asks for, one at least, each of one atom at least.

    Raises:
        DataError: The file cannot be read, or has none; or one has no atoms.
    """
    found = list(read_structures(arguments.structures, arguments.index))
    if not found:
        raise DataError(f"{arguments.structures}: expected structures at index {arguments.index}, got none")
    for number, atoms in found:
        if not len(atoms):
            raise DataError(f"{arguments.structures}: frame {number}: expected one atom at least, got none")
    return found
