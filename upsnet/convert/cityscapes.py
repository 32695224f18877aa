"""Checks an unpacked Cityscapes, and writes its ground truth in COCO panoptic format for other programs.

Training and evaluation read the unpacked archives as they are (`format: cityscapes`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from upsnet.categories import known_categories
from upsnet.data import cityscapes
from upsnet.io.files import write_json

Tell = Callable[[str], None]

SUPERCATEGORIES = {
    "flat": (7, 8),
    "construction": (11, 12, 13),
    "object": (17, 19, 20),
    "nature": (21, 22),
    "sky": (23,),
    "human": (24, 25),
    "vehicle": (26, 27, 28, 31, 32, 33),
}
NAME = re.compile(rf"[a-z-]+_\d{{6}}_\d{{6}}({cityscapes.IMAGE_ENDING}|_gtFine_(instanceIds|labelIds|color)\.png)")


def check_split(root: Path, split: str, tell: Tell, warn: Tell) -> bool:
    """Counts the files of a split, and names those that are missing or misnamed.

    Args:
        root: folder of leftImg8bit and gtFine.
        split: train, val or test.
        tell: called with each line of information.
        warn: called with each warning.

    Returns:
        Whether the split is installed.

    Raises:
        FileNotFoundError: an image of train or val has no ground truth.
    """
    folders = [root / part / split for part in ("leftImg8bit", "gtFine")]
    has_images, has_truth = (folder.is_dir() for folder in folders)
    if not has_images and not has_truth:
        warn(f"{split} is not installed: no {folders[0]}")
        return False
    if has_images and split != "test":
        cityscapes.Cityscapes(root, split)
    images, truth = (
        {cityscapes.image_id(path) for path in paths(root, split)} if installed else set()
        for paths, installed in ((cityscapes.list_images, has_images), (cityscapes.list_truth, has_truth))
    )
    tell(f"{split}: {len(images)} images, {len(truth)} with ground truth")
    for count, what in ((len(images), "images"), (len(truth), "instanceIds files")):
        if count != cityscapes.SPLIT_SIZES[split]:
            warn(f"{split} has {count} {what}, expected {cityscapes.SPLIT_SIZES[split]}: the copy is incomplete")
    for names, text in ((truth - images, "no image for"), (images - truth, "no instanceIds file for")):
        if names:
            warn(f"{split}: {text} {', '.join(sorted(names)[:5])} ({len(names)} in all)")
    for folder in folders:
        odd = sorted(path for path in folder.glob("*/*.png") if not NAME.fullmatch(path.name))
        if odd:
            warn(f"{odd[0]}: not a name of Cityscapes, ignored ({len(odd)} such files in {folder})")
    return True


def convert_split(root: Path, split: str, output: Path) -> None:
    """Writes the ground truth of a split as csCreatePanopticImgs does: the same names, ids, rows and pixels.

    Args:
        root: folder of leftImg8bit and gtFine.
        split: train, val or test.
        output: folder for `cityscapes_panoptic_SPLIT.json` and the folder of its PNGs.
    """
    path = output / f"cityscapes_panoptic_{split}.json"
    truth = cityscapes.list_truth(root, split)
    with ProcessPoolExecutor() as pool:
        rows = pool.map(partial(cityscapes.write_panoptic, folder=path.with_suffix("")), truth, chunksize=4)
        images, annotations = zip(*tqdm(rows, desc=split, total=len(truth)), strict=True)
    above = {number: name for name, numbers in SUPERCATEGORIES.items() for number in numbers}
    categories = [{**row, "supercategory": above[row["id"]]} for row in known_categories("cityscapes").to_json()]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})
