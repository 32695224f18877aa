#!/usr/bin/env python
"""Checks an unpacked Cityscapes, converts its truth to COCO panoptic format, and packs submissions to its server.

    python datasets/prepare_cityscapes.py check
    python datasets/prepare_cityscapes.py panoptic
    python datasets/prepare_cityscapes.py submission --predictions out --output submission

Training and evaluation read the unpacked archives as they are (`format: cityscapes`); nothing has to be prepared.
`panoptic` is for other programs: it writes gtFine/cityscapes_panoptic_SPLIT.json and the folder of its PNGs with the
names, ids, rows and pixels of csCreatePanopticImgs (cityscapesscripts). `submission` takes what tools/predict.py wrote
about the 1,525 test pictures (one folder for all cities):

    for city in datasets/cityscapes/leftImg8bit/test/*; do
        python tools/predict.py --checkpoint model.pt --input $city --output out
    done

and writes cityscapes_panoptic_test.zip (JSON and PNGs) and cityscapes_semantic_test.zip (labelIds of every pixel).
"""

from __future__ import annotations

import argparse
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from upsnet.data import cityscapes
from upsnet.data.annotation import ImageFile
from upsnet.data.known_categories import known_categories
from upsnet.data.loader import data_root
from upsnet.data.submission import pack_predictions
from upsnet.errors import run_tool
from upsnet.files import write_json

SUPERCATEGORIES = {
    "flat": (7, 8),
    "construction": (11, 12, 13),
    "object": (17, 19, 20),
    "nature": (21, 22),
    "sky": (23,),
    "human": (24, 25),
    "vehicle": (26, 27, 28, 31, 32, 33),
}
NAME = re.compile(rf"[a-z-]+_\d{{6}}_\d{{6}}({cityscapes.PICTURE}|_gtFine_(instanceIds|labelIds|color)\.png)")


def main() -> None:
    """Parses the command line and runs the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    check = steps.add_parser("check", help="count the files, and name those that are missing or misnamed")
    convert = steps.add_parser("panoptic", help="check, then write the truth in COCO panoptic format")
    submit = steps.add_parser("submission", help="pack predictions of the test pictures for the server")
    for step in (check, convert, submit):
        step.add_argument(
            "--root", type=Path, help="folder of leftImg8bit and gtFine (default: cityscapes in $UPSNET_DATASETS)"
        )
    for step in (check, convert):
        step.add_argument(
            "--splits", nargs="+", choices=list(cityscapes.SPLIT_SIZES), default=list(cityscapes.SPLIT_SIZES)
        )
    convert.add_argument("--output", type=Path, help="folder to write to (default: gtFine)")
    submit.add_argument("--predictions", type=Path, required=True, help="folder that tools/predict.py wrote")
    submit.add_argument("--output", type=Path, required=True, help="folder of the two zip files")
    args = parser.parse_args()
    root = args.root or data_root() / "cityscapes"
    if args.step == "submission":
        write_submission(root, args.predictions, args.output)
        return
    splits = [split for split in args.splits if check_split(root, split)]
    if not splits:
        raise FileNotFoundError(f"{root}: none of the splits {', '.join(args.splits)}; {cityscapes.DOWNLOAD} into it")
    if args.step == "panoptic":
        for split in (split for split in splits if (root / "gtFine" / split).is_dir()):
            convert_split(root, split, args.output or root / "gtFine")


def check_split(root: Path, split: str) -> bool:
    """Prints what a split has and lacks; False if it is not installed.

    Raises:
        FileNotFoundError: a picture to train or evaluate on has no truth.
    """
    folders = [root / part / split for part in ("leftImg8bit", "gtFine")]
    has_pictures, has_truth = (folder.is_dir() for folder in folders)
    if not has_pictures and not has_truth:
        _warn(f"{split} is not installed: no {folders[0]}")
        return False
    if has_pictures and split != "test":
        cityscapes.Cityscapes(root, split)
    pictures, truth = (
        {cityscapes.image_id(path) for path in paths(root, split)} if installed else set()
        for paths, installed in ((cityscapes.list_pictures, has_pictures), (cityscapes.list_truth, has_truth))
    )
    print(f"{split}: {len(pictures)} pictures, {len(truth)} with truth")
    for count, what in ((len(pictures), "pictures"), (len(truth), "instanceIds files")):
        if count != cityscapes.SPLIT_SIZES[split]:
            _warn(f"{split} has {count} {what}, the whole data set {cityscapes.SPLIT_SIZES[split]}: a partial copy")
    for names, text in ((truth - pictures, "no picture of"), (pictures - truth, "no instanceIds of")):
        if names:
            _warn(f"{split}: {text} {', '.join(sorted(names)[:5])} ({len(names)} in all)")
    for folder in folders:
        odd = sorted(path for path in folder.glob("*/*.png") if not NAME.fullmatch(path.name))
        if odd:
            _warn(f"{odd[0]}: not a name of Cityscapes, left aside ({len(odd)} such files in {folder})")
    return True


def convert_split(root: Path, split: str, output: Path) -> None:
    """Writes the PNGs and the JSON of a split, images sorted by city and name."""
    path = output / f"cityscapes_panoptic_{split}.json"
    truth = cityscapes.list_truth(root, split)
    with ProcessPoolExecutor() as pool:
        rows = pool.map(partial(cityscapes.write_panoptic, folder=path.with_suffix("")), truth, chunksize=4)
        images, annotations = zip(*tqdm(rows, desc=split, total=len(truth)), strict=True)
    above = {number: name for name, numbers in SUPERCATEGORIES.items() for number in numbers}
    categories = [{**row, "supercategory": above[row["id"]]} for row in known_categories("cityscapes").to_json()]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def write_submission(root: Path, predictions: Path, output: Path) -> None:
    """Packs the predictions of every test picture."""
    images: dict[int | str, ImageFile] = {}
    for path in cityscapes.list_pictures(root, "test"):
        with Image.open(path) as picture:
            images[cityscapes.image_id(path)] = ImageFile(path.name, picture.height, picture.width)
    if len(images) != cityscapes.SPLIT_SIZES["test"]:
        _warn(f"{root} has {len(images)} test pictures, the server expects {cityscapes.SPLIT_SIZES['test']}")
    archive, labels = (output / f"cityscapes_{task}_test.zip" for task in ("panoptic", "semantic"))
    pack_predictions(predictions, images, known_categories("cityscapes"), archive, labels=labels)
    print(f"{archive} and {labels}: {len(images)} pictures")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


if __name__ == "__main__":
    run_tool(main)
