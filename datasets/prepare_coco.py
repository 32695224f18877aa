#!/usr/bin/env python
"""`upsnet convert coco` (check) and `upsnet evaluate --submission coco` from a checkout."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["submission"]:
        sys.exit(main(["evaluate", "--submission", "coco", *sys.argv[2:]]))
    sys.exit(main(["convert", "coco", *sys.argv[1:]]))
