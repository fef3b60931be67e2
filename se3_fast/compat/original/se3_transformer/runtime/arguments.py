"""The parser of the training command: its published options, and those that this package adds."""

from __future__ import annotations

import argparse

from se3_fast import data
from se3_fast.training.arguments import add_run_arguments, add_training_arguments

from ..model import SE3TransformerPooled

__all__ = ["PARSER", "build_parser"]


def build_parser(command: str = "training") -> argparse.ArgumentParser:
    """A parser of all options.

    Args:
        command: ``training`` or ``inference``, which has them too.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m se3_transformer.runtime.{command}",
        description=f"SE(3)-Transformer on QM9: {command}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data.QM9DataModule.add_argparse_args(parser)
    add_run_arguments(parser, batch_size=240)
    SE3TransformerPooled.add_argparse_args(parser)
    add_training_arguments(parser)
    return parser


PARSER = build_parser()
