"""`python -m se3_fast.predict`."""

import sys

from se3_fast.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
