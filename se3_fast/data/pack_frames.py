"""Any files of frames as a folder that training reads without loading it into memory: `se3-fast pack-frames --help`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from se3_fast.commands.pack_frames import main
from se3_fast.data.force_frames import frame_chunks, shards_of, warn_of
from se3_fast.data.frame_dataset import counted_edges
from se3_fast.data.frame_folder import FrameFolderWriter
from se3_fast.data.frame_statistics import Suspicions
from se3_fast.data.label_units import DEFAULT_NAMES, LabelNames
from se3_fast.data.molecules import DataError
from se3_fast.training.arguments import label_names
from se3_fast.training.errors import run_command, user_errors
from se3_fast.training.signals import StopSignal


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


def pack(arguments: argparse.Namespace) -> None:
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


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return run_command(lambda: pack(arguments))


if __name__ == "__main__":
    sys.exit(main())
