"""The command `se3-fast`, or `python -m se3_fast`: sub-commands that hand over to the commands of the package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from se3_fast import __version__
from se3_fast.command_line import quiet_when_unread

COMMANDS = {
    "train": ("se3_fast.train", "train on a molecular property"),
    "train-forces": ("se3_fast.train_forces", "train a force field"),
    "pack-frames": ("se3_fast.commands.pack_frames", "write frames into a folder that need not fit into memory"),
    "md": ("se3_fast.commands.md", "run molecular dynamics with a force field"),
    "relax": ("se3_fast.commands.relax", "relax structures with a force field"),
    "export-forces": ("se3_fast.commands.export_forces", "compile a force field to a package that runs without se3_fast"),
    "export-lammps": ("se3_fast.commands.export_lammps", "write a force field for LAMMPS"),
    "predict": ("se3_fast.commands.predict", "predict a property for molecules"),
    "models": ("se3_fast.pretrained.__main__", "list the trained models"),
    "models pack": ("se3_fast.commands.pack_model", "make a named model of a checkpoint"),
    "evaluate": ("se3_fast.inference", "evaluate a trained model on the test set"),
    "evaluate-forces": ("se3_fast.commands.evaluate_forces", "compare a force field with labelled frames"),
    "data build-qm9": ("se3_fast.commands.build_qm9", "build qm9_edge.npz from its sources"),
    "data make-sample": ("se3_fast.commands.make_sample", "make the sample data set again"),
    "data make-force-sample": ("se3_fast.commands.make_force_sample", "make the sample data set of forces again"),
}
"""Module and purpose of every sub-command."""


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return int(import_module(COMMANDS[name][0]).main(words[count:]))
    if words == ["--version"]:
        print(f"se3_fast {__version__}")
        return 0
    is_help = words[:1] in (["-h"], ["--help"])
    if words and not is_help:
        groups = {name.split()[0] for name in COMMANDS if " " in name}
        unknown = " ".join(words[: 2 if words[0] in groups else 1])
        print(f"error: no command {unknown!r:.50}", file=sys.stderr)
    print(_usage(), file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else 2


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        ["usage: se3-fast COMMAND [OPTIONS]; se3-fast COMMAND --help lists the options; se3-fast --version", "", *lines]
    )


if __name__ == "__main__":
    sys.exit(main())
