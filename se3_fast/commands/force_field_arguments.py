"""Options that the commands of force fields share."""

from __future__ import annotations

import argparse
from pathlib import Path

from se3_fast.training.arguments import add_flag, natural_float, positive_float

NAMES_OF_DTYPES = ("float32", "float64")


def add_force_field_arguments(parser: argparse.ArgumentParser, index: str) -> None:
    """Add which force field acts on which structures, and what happens outside of what it was trained on."""
    parser.add_argument("structures", type=Path, metavar="FILE", help="structures in any format that ASE reads")
    parser.add_argument("--index", default=index, metavar="INDEX", help="which of them: a number, or start:stop:step")
    group = parser.add_argument_group("force field")
    group.add_argument(
        "--load_ckpt_path",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="checkpoint of se3-fast train-forces; several are a committee, whose mean acts",
    )
    group.add_argument("--device", default="auto", help="auto (with --compiled: cpu), cpu, cuda or cuda:<number>")
    group.add_argument("--dtype", choices=NAMES_OF_DTYPES, default="float32", help="precision of the network")
    group.add_argument("--skin", type=natural_float, default=0.5, help="neighbours are searched for so much farther, Angstrom")
    group.add_argument(
        "--outside",
        choices=("warn", "stop", "ignore"),
        default="warn",
        help="where atoms come closer than in the training frames, or the committee disagrees",
    )
    group.add_argument(
        "--largest_spread",
        type=positive_float,
        default=None,
        help="of a committee: spread of a force that counts as outside, eV/Angstrom (default: any is inside)",
    )
    add_repulsion(group)
    group.add_argument(
        "--compiled",
        type=Path,
        default=None,
        metavar="FILE",
        help="package of se3-fast export-forces, for small structures on the CPU; it is machine code: load those alone that you "
        "have made",
    )
    add_flag(group, "cuda_graphs", "record a step on the GPU and replay it while the atoms stay the same")


def add_repulsion(parser: argparse._ActionsContainer) -> None:
    """Add whether nuclei repel each other outside of what was trained on."""
    parser.add_argument(
        "--repulsion",
        action="store_true",
        help="nuclei repel each other where atoms come closer than in the training frames (ZBL potential)",
    )


def add_export_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Add which force field is written where; ``output`` says what is written."""
    parser.add_argument("--load_ckpt_path", type=Path, required=True, metavar="FILE", help="checkpoint of se3-fast train-forces")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=output)
    parser.add_argument("--dtype", choices=NAMES_OF_DTYPES, default="float32", help="precision of the network")
    add_repulsion(parser)
