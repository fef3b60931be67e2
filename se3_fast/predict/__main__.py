"""`python -m se3_fast.predict`."""

import sys

from se3_fast.predict.command import main

if __name__ == "__main__":
    sys.exit(main())
