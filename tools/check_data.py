#!/usr/bin/env python
"""`upsnet doctor` from a checkout."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
