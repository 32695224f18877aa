"""Checks an unpacked COCO panoptic. Training and evaluation read it as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from upsnet.categories import known_categories
from upsnet.io.images import open_image
from upsnet.io.panoptic_json import PanopticJson

Tell = Callable[[str], None]

SPLIT_SIZES = {"train2017": 118_287, "val2017": 5_000}
ANNOTATIONS = "panoptic_annotations_trainval2017.zip"


def check_split(root: Path, split: str, tell: Tell, warn: Tell) -> list[str]:
    """Compares the images and PNGs of a split with its JSON.

    Args:
        root: folder of train2017, val2017 and annotations.
        split: train2017 or val2017.
        tell: called with each line of information.
        warn: called with each warning.

    Returns:
        One line for each file that is missing or has another size.

    Raises:
        FileNotFoundError, ValueError: a folder or the JSON is missing, or the categories differ from those of COCO.
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
    tell(f"{split}: {len(truth.images)} images, {len(truth.annotations)} annotations")
    for count, what in ((len(truth.images), "images"), (len(truth.annotations), "annotations")):
        if count != SPLIT_SIZES[split]:
            warn(f"{path} has {count} {what}, expected {SPLIT_SIZES[split]:,}: the copy is incomplete")
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
    """(H, W) from the header of an image file; None if it is missing or unreadable."""
    try:
        with open_image(path, streamed=True) as image:
            return image.height, image.width
    except (OSError, ValueError):
        return None
