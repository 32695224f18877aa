#!/usr/bin/env python
"""Exports a trained model.

python tools/export.py --checkpoint runs/demo/model.pt --format checkpoint --output model.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from upsnet.errors import run_tool
from upsnet.inference.export import export_checkpoint


def main() -> None:
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt or last.pt of a run")
    parser.add_argument(
        "--format", choices=["checkpoint"], default="checkpoint", help="weights, config and categories in one file"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    export_checkpoint(args.checkpoint, args.output)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_tool(main)
