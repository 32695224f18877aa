#!/usr/bin/env python
"""`upsnet compare` from a checkout."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
