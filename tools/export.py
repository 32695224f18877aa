#!/usr/bin/env python
"""Exports a trained model.

python tools/export.py --checkpoint runs/demo/model.pt --format checkpoint --output slim.pt
python tools/export.py --checkpoint runs/demo/model.pt --format pt2 --output model.pt2
python tools/export.py --checkpoint runs/demo/model.pt --format onnx --size 800 1344 --output model.onnx

`checkpoint`: weights, config and categories in one file. `pt2` and `onnx`: the whole model as one graph, from a uint8
picture to the segment map and its table, the panoptic fusion included; `onnx` needs neither torch nor this package to
run (`examples/onnx_infer.py`). `tools/predict.py` and `PanopticPredictor` take all three.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from upsnet.errors import run_tool
from upsnet.inference.export import export_checkpoint, export_graph


def main() -> None:
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt or last.pt of a run")
    parser.add_argument("--format", choices=["checkpoint", "pt2", "onnx"], default="checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fixed network input (default: any)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures per call (default: 1)")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the file with the model")
    args = parser.parse_args()
    if args.format == "checkpoint":
        export_checkpoint(args.checkpoint, args.output)
    else:
        if args.output.suffix != f".{args.format}":
            raise ValueError(f"--output {args.output}: expected a name that ends in .{args.format}")
        size = None if args.size is None else (args.size[0], args.size[1])
        verify = not args.no_verify
        found = export_graph(args.checkpoint, args.output, size=size, batch_size=args.batch_size, verify=verify)
        if found is not None:
            print(
                f"{found.pixels} pixels, {found.segments} segments ({found.instances} things): differing pixels in "
                f"stuff {found.stuff}, things {found.things}, void {found.void}; "
                f"model {found.eager_ms:.0f} ms, exported {found.exported_ms:.0f} ms a picture"
            )
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_tool(main)
