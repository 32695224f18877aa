#!/usr/bin/env python
"""`upsnet convert cityscapes` (check or panoptic) and `upsnet evaluate --submission cityscapes` from a checkout."""

import sys

from upsnet.cli.main import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["submission"]:
        sys.exit(main(["evaluate", "--submission", "cityscapes", *sys.argv[2:]]))
    sys.exit(main(["convert", "cityscapes", *sys.argv[1:]]))
