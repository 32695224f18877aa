#!/usr/bin/env python
"""`upsnet convert shapes` from a checkout."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", "shapes", *sys.argv[1:]]))
