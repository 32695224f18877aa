#!/usr/bin/env python
"""`upsnet weights` from a checkout."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["weights", *sys.argv[1:]]))
