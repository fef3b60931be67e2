"""Print what ``PYTHONPATH`` needs so that ``import se3_transformer`` gives this package: ``python -m se3_fast.compat [--dgl]``."""

from __future__ import annotations

import argparse
import os

from se3_fast.compat import folders


def main() -> None:
    """Parse the command line and print the folders."""
    parser = argparse.ArgumentParser(prog="python -m se3_fast.compat", description="Print the folders that PYTHONPATH needs.")
    parser.add_argument("--dgl", action="store_true", help="import dgl gives the graphs of se3_fast, too")
    print(os.pathsep.join(map(str, folders(parser.parse_args().dgl))))


if __name__ == "__main__":
    main()
