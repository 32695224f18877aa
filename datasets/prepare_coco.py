#!/usr/bin/env python
"""Checks an unpacked COCO panoptic, and packs submissions to its server.

    python datasets/prepare_coco.py check
    python datasets/prepare_coco.py submission --images image_info_test-dev2017.json --predictions out \
        --algorithm upsnet50 --output submission

Nothing has to be prepared for training. `submission` takes what tools/predict.py wrote about the pictures of test2017
and writes panoptic_test-dev2017_ALGORITHM_results.zip with a JSON and a folder of PNGs of that name. Pictures that
the list does not name are left aside.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from upsnet.data.coco import PanopticJson, image_files
from upsnet.data.known_categories import known_categories
from upsnet.data.loader import data_root
from upsnet.data.submission import pack_predictions
from upsnet.errors import run_tool
from upsnet.files import read_json

SPLIT_SIZES = {"train2017": 118_287, "val2017": 5_000}
ANNOTATIONS = "panoptic_annotations_trainval2017.zip"
SHOWN_PROBLEMS = 10


def main() -> None:
    """Parses the command line and runs the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    check = steps.add_parser("check", help="compare pictures, PNGs and JSON of each split")
    check.add_argument(
        "--root", type=Path, help="folder of train2017, val2017 and annotations (default: coco in $UPSNET_DATASETS)"
    )
    check.add_argument("--splits", nargs="+", choices=list(SPLIT_SIZES), default=list(SPLIT_SIZES))
    submit = steps.add_parser("submission", help="pack predictions of the test pictures for the server")
    submit.add_argument("--images", type=Path, required=True, help="image_info_test-dev2017.json")
    submit.add_argument("--predictions", type=Path, required=True, help="folder that tools/predict.py wrote")
    submit.add_argument("--algorithm", required=True, help="its name in the file names: letters, digits, - and _")
    submit.add_argument("--output", type=Path, required=True, help="folder of the zip file")
    args = parser.parse_args()
    if args.step == "submission":
        write_submission(args.images, args.predictions, args.algorithm, args.output)
        return
    root = args.root or data_root() / "coco"
    problems = [problem for split in args.splits for problem in check_split(root, split)]
    for problem in problems[:SHOWN_PROBLEMS]:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        raise ValueError(
            f"{root}: {len(problems)} files are missing or differ from the JSON, the first is {problems[0]}"
        )


def check_split(root: Path, split: str) -> list[str]:
    """Compares a split with its JSON; gives a line for each file that is missing or has another size.

    Raises:
        FileNotFoundError, ValueError: a folder or the JSON is missing, or the categories are others.
    """
    path = root / "annotations" / f"panoptic_{split}.json"
    for needed, archive in (
        (root / split, f"{split}.zip"),
        (path, ANNOTATIONS),
        (path.with_suffix(""), f"annotations/panoptic_{split}.zip, which {ANNOTATIONS} holds,"),
    ):
        if not needed.exists():
            raise FileNotFoundError(f"{needed}: missing; unpack {archive} of cocodataset.org (or choose --splits)")
    truth = PanopticJson(path)
    known_categories("coco").require(truth.categories, source=str(path))
    print(f"{split}: {len(truth.images)} images, {len(truth.annotations)} annotations")
    for count, what in ((len(truth.images), "images"), (len(truth.annotations), "annotations")):
        if count != SPLIT_SIZES[split]:
            print(
                f"warning: {path} has {count} {what}, the whole data set {SPLIT_SIZES[split]:,}: a partial copy",
                file=sys.stderr,
            )
    problems = []
    for image_id, annotation in tqdm(truth.annotations.items(), desc=split):
        image = truth.images[image_id]
        for file in (root / split / image.file_name, truth.png_dir / annotation.file_name):
            found = _size(file)
            if found != (image.height, image.width):
                expected = f"expected {image.width} x {image.height}, as the JSON says"
                problems.append(
                    f"{file}: {'missing or unreadable' if found is None else f'{found[1]} x {found[0]}'}, {expected}"
                )
    return problems


def _size(path: Path) -> tuple[int, int] | None:
    """(H, W) from the head of a picture's file; None where there is none."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def write_submission(images: Path, predictions: Path, algorithm: str, output: Path) -> None:
    """Packs the predictions of every picture of the list."""
    name = re.fullmatch(r"image_info_(.+)", images.stem)
    if name is None:
        raise ValueError(f"{images}: expected image_info_SET.json, whose SET (such as test-dev2017) names the results")
    if not re.fullmatch(r"[\w-]+", algorithm):
        raise ValueError(f"--algorithm {algorithm!r}: expected letters, digits, - and _")
    document = read_json(images)
    if not isinstance(document, dict) or not document.get("images"):
        raise ValueError(f"{images}: no images, expected a list such as image_info_test-dev2017.json")
    listed = image_files(images, document["images"])
    archive = output / f"panoptic_{name[1]}_{algorithm}_results.zip"
    pack_predictions(predictions, listed, known_categories("coco"), archive)
    print(f"{archive}: {len(listed)} pictures")


if __name__ == "__main__":
    run_tool(main)
