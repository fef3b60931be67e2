"""Any files of frames as a folder that training reads without loading it into memory: `se3-fast pack-frames --help`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from se3_fast.command_line import HelpFormatter
from se3_fast.data.force_frames import frame_chunks, shards_of, warn_of
from se3_fast.data.frame_dataset import counted_edges
from se3_fast.data.frame_folder import FrameFolderWriter
from se3_fast.data.frame_statistics import Suspicions
from se3_fast.data.frames import DEFAULT_NAMES, LabelNames
from se3_fast.data.molecules import DataError
from se3_fast.training.arguments import FILES_OF_FRAMES, add_label_names, label_names, positive_float
from se3_fast.training.errors import run_command, user_errors
from se3_fast.training.signals import StopSignal


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast pack-frames",
        description="Write frames into a folder, which --data of train-forces takes. Training maps it instead of loading it.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("data", type=Path, nargs="+", metavar="FILE", help=FILES_OF_FRAMES)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    add_label_names(parser)
    parser.add_argument(
        "--cutoff",
        type=positive_float,
        default=5.0,
        help="edges of every frame are counted for it, Angstrom; training may have another",
    )
    return parser


def pack_frames(
    files: Sequence[Path], folder: Path, index: str = ":", names: LabelNames = DEFAULT_NAMES, cutoff: float = 5.0
) -> tuple[int, int]:
    """Write the frames of files into a folder, some at a time.

    Args:
        files: Files of :func:`~se3_fast.data.force_frames.read_frame_file`, or folders of shards.
        folder: The folder; it is made.
        index: Which frames of each file: a number, or ``start:stop:step``.
        names: Names and units of the labels in files that do not fix them.
        cutoff: For which edges are counted, Angstrom.

    Returns:
        Numbers of frames and of atoms.

    Raises:
        DataError: A file or one of its frames cannot be used, or some files say what trains and others do not.
        OSError: The folder cannot be written.
        ImportError: A file is for a package that is not installed.
    """
    with FrameFolderWriter(folder, cutoff) as writer, tqdm(unit=" frames", leave=False, disable=None) as bar:
        for path in shards_of(files):
            suspicions, before = Suspicions(path), writer.frames
            for part in frame_chunks(path, index, names):
                if writer.frames and writer.has_split != (part.split is not None):
                    raise DataError(f"{path}: expected `split` in all files or in none: pack them into folders of their own")
                edges = counted_edges(part.frames, cutoff, part.name_of)
                suspicions.add(part.frames, part.numbers)
                writer.add(part.frames, edges, part.split)
                bar.update(len(part.frames))
            warn_of(suspicions)
            writer.sources.append({"file": path.name, "frames": writer.frames - before})
    return writer.frames, writer.atoms


def run(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
        Stopped: SIGINT or SIGTERM has ended it; what was written is removed.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = label_names(arguments)
    with StopSignal().watched(), user_errors():
        frames, atoms = pack_frames(arguments.data, arguments.output, arguments.index, names, arguments.cutoff)
    print(f"{arguments.output}: {frames:,} frames, {atoms:,} atoms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, write the folder, and return the exit status."""
    parsed = build_parser().parse_args(arguments)
    return run_command(lambda: run(parsed))


if __name__ == "__main__":
    sys.exit(main())
