"""Segments an image, a folder of images, or a video.

examples:
  upsnet predict --checkpoint runs/demo/model.pt --input photo.jpg --output predictions
  upsnet predict --checkpoint model.pt --input val2017 --coco out/panoptic.json --images-json gt.json --no-exif
  upsnet evaluate --gt gt.json --pred out/panoptic.json

Writes STEM.png (ids as R + 256 G + 65536 B), STEM.json (the segments) and STEM_overlay.jpg for each image. For a video
it writes STEM_overlay.mp4, and the PNG and JSON of each frame into the folder STEM.

With --coco it writes one COCO-panoptic set instead: the JSON, and the PNGs in the folder of the same name without
.json. --images-json takes the image ids from the ground truth, and predicts only the images that it lists. Without it
an id is the file name without suffix, as a number if it has only digits (000000000139.jpg is image 139). The ground
truth of COCO lies on the pixels as stored, so predict its images with --no-exif.

exit codes: 0 done; 1 some images could not be read; 2 a mistake in the input; 3 a bug
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from upsnet.cli import test_time_views
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
    _require_other_files(args, folder)
    from upsnet.inference import predict_files as files
    from upsnet.inference.predictor import PanopticPredictor
    from upsnet.io.images import list_images

    is_video = args.input.suffix.lower() in files.VIDEO_SUFFIXES
    if is_video and args.coco is not None:
        raise ValueError(f"{args.input}: --coco with a video, expected an image or a folder of images")
    rows: list[files.CocoImage] = []
    paths: list[Path] = []
    if args.images_json is not None:
        rows = files.images_of_json(args.images_json)
        if not rows:
            raise ValueError(f"{args.images_json}: lists no image, expected at least one")
    else:
        paths = list_images(args.input) if args.input.is_dir() else [args.input]
        rows = files.images_by_stem(paths) if args.coco is not None else []
    predictor = PanopticPredictor.from_checkpoint(
        args.checkpoint, args.device, trust=args.trust, precision=args.precision, views=test_time_views.chosen(args)
    )
    if is_video:
        files.predict_video(predictor, args.input, args.output)
        return 0
    if args.coco is not None:
        failures = files.predict_coco(predictor, folder, rows, args.coco, args.output, apply_exif=args.exif)
    else:
        failures = files.predict_images(predictor, paths, args.output, apply_exif=args.exif)
    if failures:
        count = len(rows or paths)
        text = f"{len(failures)} of {count} images failed: {'; '.join(failures[:SHOWN_FAILURES])}"
        raise ValueError(text) if len(failures) == count else SomeInputsFailedError(text)
    return 0


def _require_other_files(args: argparse.Namespace, folder: Path) -> None:
    """Checks that no result can overwrite an image or the JSON with the ids."""
    if args.output is not None and args.output.resolve() == folder.resolve():
        raise ValueError(
            f"--output {args.output}: is the folder of the input; choose another, "
            "because STEM.png could overwrite an image"
        )
    if args.coco is None:
        return
    if args.coco.with_suffix("").resolve() == folder.resolve():
        raise ValueError(
            f"--coco {args.coco}: its PNGs would go into the folder of the input; choose another name, because they "
            "could overwrite an image"
        )
    if args.images_json is not None and args.coco.resolve() == args.images_json.resolve():
        raise ValueError(f"--coco {args.coco}: is the file of --images-json; choose another name")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "upsnet predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="model.pt of a run, an exported checkpoint, .pt2 or .onnx"
    )
    parser.add_argument("--input", type=Path, required=True, help="image, folder of images, or video")
    parser.add_argument("--output", type=Path, help="folder for the results (with --coco: for overlays, optional)")
    parser.add_argument("--coco", type=Path, metavar="JSON", help="write one COCO-panoptic set with this JSON")
    parser.add_argument(
        "--images-json",
        type=Path,
        metavar="JSON",
        help="with --coco: ground truth or list of images (image_info_*.json) that gives the images and their ids",
    )
    parser.add_argument(
        "--no-exif",
        dest="exif",
        action="store_false",
        help="predict the pixels as stored (default: rotated as the EXIF orientation says)",
    )
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
    test_time_views.add_options(parser)
    args = parser.parse_args(argv)
    if args.output is None and args.coco is None:
        parser.error("--output or --coco is required")
    if args.coco is not None and args.coco.suffix != ".json":
        parser.error(f"--coco is {args.coco}, expected a name that ends in .json")
    if args.images_json is not None and args.coco is None:
        parser.error("--images-json needs --coco")
    if args.images_json is not None and args.input.is_file():
        parser.error(f"--images-json needs a folder of images, but --input is {args.input}")
    return args
