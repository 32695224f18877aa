"""Exports a trained model.

examples:
  upsnet export --checkpoint runs/demo/model.pt --format checkpoint --output slim.pt
  upsnet export --checkpoint runs/demo/model.pt --format pt2 --output model.pt2
  upsnet export --checkpoint runs/demo/model.pt --format pt2 --compile --size 256 256 --output compiled.pt2
  upsnet export --checkpoint runs/demo/model.pt --format onnx --size 800 1344 --output model.onnx

`checkpoint`: weights, config and categories in one file. `pt2` and `onnx`: the whole model as one graph, from a uint8
image to the segment map and its table, with the panoptic fusion inside. `onnx` needs neither torch nor this package to
run (`examples/onnx_infer.py`). `upsnet predict` and `PanopticPredictor` read all of them. The exporter compares the
file with the model and refuses to write it if more than 0.1 % of the pixels differ (1 % in 16 bits).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upsnet.export.verify import Agreement

FEW_THINGS = 10


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = _parse(argv)
    import torch

    from upsnet.export.exporter import export_checkpoint, export_graph

    if args.format == "checkpoint":
        of_graphs = args.size or args.batch_size != 1 or args.precision != "fp32" or args.compile
        if of_graphs or args.output.suffix in (".pt2", ".onnx"):
            raise ValueError(
                f"--output {args.output}: --size, --batch-size, --precision, --compile, .pt2 and .onnx need "
                "--format pt2 or --format onnx"
            )
        export_checkpoint(args.checkpoint, args.output, overrides=args.overrides)
    else:
        if args.output.suffix != f".{args.format}":
            raise ValueError(f"--output {args.output}: expected a name that ends in .{args.format}")
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        found = export_graph(
            args.checkpoint,
            args.output,
            size=None if args.size is None else (args.size[0], args.size[1]),
            batch_size=args.batch_size,
            precision=args.precision,
            compile_for=torch.device(device) if args.compile else None,
            verify=args.verify,
            overrides=args.overrides,
        )
        if found is not None:
            _print_agreement(found)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")
    return 0


def _print_agreement(found: Agreement) -> None:
    """Prints how the file agrees with its model."""
    print(
        f"{found.pixels} pixels, {found.segments} segments ({found.instances} things); differing pixels: "
        f"stuff {found.stuff}, things {found.things}, void {found.void}; "
        f"time per image: model {found.eager_ms:.0f} ms, exported file {found.exported_ms:.0f} ms"
    )
    if found.drift:
        print(f"{100 * found.drift:.2f} % of the pixels differ from the model in 32 bits")
    if found.instances < FEW_THINGS:
        print(f"warning: the model predicted only {found.instances} things; the comparison hardly tests their fusion")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "upsnet export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt or last.pt of a run")
    parser.add_argument("--format", choices=["checkpoint", "pt2", "onnx"], default="checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fixed network input (default: any)")
    parser.add_argument("--batch-size", type=int, default=1, help="images per call (default: 1)")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32",
        help="precision of convolutions and linear layers; bf16 only for pt2 (default: fp32)",
    )  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="pt2: machine code (AOTInductor), for this machine")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"],
        help="what --compile compiles for (default: the GPU if there is one)",
    )  # fmt: skip
    parser.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True, help="compare the file with the model"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config of the checkpoint")
    return parser.parse_intermixed_args(argv)
