"""`python -m se3_fast.pretrained`: list the trained models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from se3_fast.command_line import quiet_when_unread
from se3_fast.pretrained import FOLDERS_VARIABLE, model_names, model_summary


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Print name and summary of every model; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="se3-fast models",
        description=f"List the trained models; {FOLDERS_VARIABLE} names folders of further ones.",
    )
    parser.parse_args(arguments)
    names = model_names()
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:<{width}}  {model_summary(name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
