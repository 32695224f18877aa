#!/usr/bin/env python
"""Exports a trained model.

python tools/export.py --checkpoint runs/demo/model.pt --format checkpoint --output slim.pt
python tools/export.py --checkpoint runs/demo/model.pt --format pt2 --output model.pt2
python tools/export.py --checkpoint runs/demo/model.pt --format pt2 --compile --size 256 256 --output compiled.pt2
python tools/export.py --checkpoint runs/demo/model.pt --format onnx --size 800 1344 --output model.onnx

`checkpoint`: weights, config and categories in one file. `pt2` and `onnx`: the whole model as one graph, from a uint8
picture to the segment map and its table, the panoptic fusion included; `onnx` needs neither torch nor this package to
run (`examples/onnx_infer.py`). `tools/predict.py` and `PanopticPredictor` take all of them. A graph is run beside its
model, and written only if they agree.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from upsnet.errors import run_tool
from upsnet.inference.export import export_checkpoint, export_graph
from upsnet.inference.verify import Agreement

FEW_THINGS = 10


def main() -> None:
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt or last.pt of a run")
    parser.add_argument("--format", choices=["checkpoint", "pt2", "onnx"], default="checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fixed network input (default: any)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures per call (default: 1)")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32",
        help="of convolutions and linear layers: bf16 for pt2, fp16 for both (default: fp32)",
    )  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="pt2: machine code (AOTInductor), for this machine")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu",
        help="what --compile compiles for (default: the GPU if there is one)",
    )  # fmt: skip
    parser.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True, help="compare the file with the model"
    )
    args = parser.parse_args()
    if args.format == "checkpoint":
        of_graphs = args.size or args.batch_size != 1 or args.precision != "fp32" or args.compile
        if of_graphs or args.output.suffix in (".pt2", ".onnx"):
            raise ValueError(
                f"--output {args.output}: a checkpoint has no size, batch, precision, compilation, .pt2 or .onnx; "
                "expected --format pt2 or onnx"
            )
        export_checkpoint(args.checkpoint, args.output)
    else:
        if args.output.suffix != f".{args.format}":
            raise ValueError(f"--output {args.output}: expected a name that ends in .{args.format}")
        found = export_graph(
            args.checkpoint,
            args.output,
            size=None if args.size is None else (args.size[0], args.size[1]),
            batch_size=args.batch_size,
            precision=args.precision,
            compile_for=torch.device(args.device) if args.compile else None,
            verify=args.verify,
        )
        if found is not None:
            report(found)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")


def report(found: Agreement) -> None:
    """Prints how the file agrees with its model."""
    print(
        f"{found.pixels} pixels, {found.segments} segments ({found.instances} things): differing pixels in "
        f"stuff {found.stuff}, things {found.things}, void {found.void}; "
        f"model {found.eager_ms:.0f} ms, exported {found.exported_ms:.0f} ms a picture"
    )
    if found.drift:
        print(f"{100 * found.drift:.2f} % of the pixels differ from the model in 32 bits")
    if found.instances < FEW_THINGS:
        print(f"warning: the model found {found.instances} things there, which says little about their fusion")


if __name__ == "__main__":
    run_tool(main)
