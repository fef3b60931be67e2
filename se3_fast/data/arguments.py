"""Options of data sets."""

from __future__ import annotations

import argparse

from se3_fast.command_line import boolean
from se3_fast.data.tasks import TASKS

DATASETS = ("qm9", "sample")

SPLITS = ("random", "scaffold")
"""How molecules of one's own are divided."""


def add_qm9_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of QM9 and the sample to a parser, and return it."""
    group = parser.add_argument_group("QM9 dataset")
    group.add_argument("--dataset", choices=DATASETS, default="qm9", help="QM9, or the shipped sample")
    group.add_argument("--task", choices=TASKS, default="homo", const="homo", nargs="?", help="Property to learn")
    group.add_argument(
        "--precompute_bases",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="Compute the geometry of all edges once at the start instead of in every forward pass",
    )
    return parser
