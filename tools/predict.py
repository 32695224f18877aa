#!/usr/bin/env python
"""`upsnet predict` from a checkout."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
