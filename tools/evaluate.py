#!/usr/bin/env python
"""`upsnet evaluate` from a checkout."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
