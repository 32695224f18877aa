"""Segments an image, a folder of images, or a video.

example:
  upsnet predict --checkpoint runs/demo/model.pt --input photo.jpg --output predictions

Writes STEM.png (ids as R + 256 G + 65536 B), STEM.json (the segments) and STEM_overlay.jpg for each image. For a video
it writes STEM_overlay.mp4, and the PNG and JSON of each frame into the folder STEM.

exit codes: 0 done; 1 some images could not be read; 2 a mistake in the input; 3 a bug
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from upsnet.cli.errors import SomeInputsFailedError

SHOWN_FAILURES = 5


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = _parse(argv)
    if not args.input.exists():
        raise FileNotFoundError(
            f"{args.input}: no such file or folder, expected an image, a folder of images or a video"
        )
    folder = args.input if args.input.is_dir() else args.input.parent
    if args.output.resolve() == folder.resolve():
        raise ValueError(
            f"--output {args.output}: is the folder of the input; choose another, "
            "because STEM.png could overwrite an image"
        )
    from upsnet.inference.predict_files import VIDEO_SUFFIXES, predict_images, predict_video
    from upsnet.inference.predictor import PanopticPredictor
    from upsnet.io.images import list_images

    is_video = args.input.suffix.lower() in VIDEO_SUFFIXES
    images = list_images(args.input) if args.input.is_dir() else [args.input]
    predictor = PanopticPredictor.from_checkpoint(
        args.checkpoint, args.device, trust=args.trust, precision=args.precision
    )
    if is_video:
        predict_video(predictor, args.input, args.output)
        return 0
    failures = predict_images(predictor, images, args.output)
    if failures:
        text = f"{len(failures)} of {len(images)} images failed: {'; '.join(failures[:SHOWN_FAILURES])}"
        raise ValueError(text) if len(failures) == len(images) else SomeInputsFailedError(text)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "upsnet predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="model.pt of a run, an exported checkpoint, .pt2 or .onnx"
    )
    parser.add_argument("--input", type=Path, required=True, help="image, folder of images, or video")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="fp32",
        help="of the convolutions and linear layers; auto: bf16 where the device computes it natively (default: fp32)",
    )
    parser.add_argument(
        "--trust", action="store_true", help="load a compiled .pt2, which is machine code; only from people you trust"
    )
    return parser.parse_args(argv)
