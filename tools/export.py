#!/usr/bin/env python
"""Exports a trained model.

python tools/export.py --checkpoint runs/demo/model.pt --format checkpoint --output slim.pt
python tools/export.py --checkpoint runs/demo/model.pt --format pt2 --output model.pt2
python tools/export.py --checkpoint runs/demo/model.pt --format pt2 --size 800 1344 --output model.pt2

`checkpoint`: weights, config and categories in one file. `pt2`: the whole model as a `torch.export` graph, from a uint8
picture to the segment map and its table, the panoptic fusion included; `tools/predict.py` and `PanopticPredictor` take
both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from upsnet.errors import run_tool
from upsnet.inference.export import export_checkpoint, export_pt2


def main() -> None:
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt or last.pt of a run")
    parser.add_argument("--format", choices=["checkpoint", "pt2"], default="checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pt2: fixed network input (default: any)")
    parser.add_argument("--batch-size", type=int, default=1, help="pt2: pictures per call (default: 1)")
    parser.add_argument("--no-verify", action="store_true", help="pt2: do not compare the file with the model")
    args = parser.parse_args()
    if args.format == "checkpoint":
        export_checkpoint(args.checkpoint, args.output)
    else:
        size = None if args.size is None else (args.size[0], args.size[1])
        verify = not args.no_verify
        found = export_pt2(args.checkpoint, args.output, size=size, batch_size=args.batch_size, verify=verify)
        if found is not None:
            print(
                f"{found.pixels} pixels, {found.segments} segments ({found.instances} things): differing pixels in "
                f"stuff {found.stuff}, things {found.things}, void {found.void}; "
                f"model {found.eager_ms:.0f} ms, exported {found.exported_ms:.0f} ms a picture"
            )
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_tool(main)
