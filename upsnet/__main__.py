"""`python -m upsnet` is the command `upsnet`."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
