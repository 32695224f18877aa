#!/usr/bin/env python
"""`upsnet convert nuclei` from a checkout."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["convert", "nuclei", *sys.argv[1:]]))
