"""A COCO instance file as the ground truth of AP, in place of the things of the panoptic ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upsnet.categories import CategorySet
from upsnet.io.coco_masks import has_no_pixels, is_coordinate, run_lengths
from upsnet.io.files import read_json
from upsnet.io.panoptic_json import PanopticJson
from upsnet.json_values import ImageId, crowd_flag, image_id, match_image_ids, number, whole_number
from upsnet.text import shown

REQUIRED = ("image_id", "category_id", "segmentation", "area", "bbox")


def read_instances(path: Path, truth: PanopticJson, problems: list[str]) -> list[dict[str, Any]]:
    """Reads the instances of the images that are evaluated, with run lengths in the place of every segmentation.

    Args:
        path: a COCO instance JSON.
        truth: the panoptic ground truth. Its annotated images are evaluated, and its categories are the classes. The
            file may write an image id in another way (`match_image_ids`).
        problems: receives a line if annotations of unknown images, or without a pixel, are left out.

    Returns:
        Rows of COCO's instance format, under the image ids of `truth`.

    Raises:
        FileNotFoundError, ValueError: no such file, a row that cannot be used, or no row of an image of `truth`.
    """
    document = read_json(path)
    rows = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: 'annotations' is no list of objects, expected a COCO instance file")
    ids = [image_id(row.get("image_id")) for row in rows]
    matched = match_image_ids((key for key in ids if key is not None), truth.images)
    _report_unknown_images(path, ids, matched, truth, problems)
    found, empty = [], []
    for index, (row, key) in enumerate(zip(rows, ids, strict=True)):
        name = shown(row.get("id", index))
        try:
            _require_fields(row, truth.categories)
            own = None if key is None else matched.get(key)
            if own is None or own not in truth.annotations:
                continue
            if has_no_pixels(row["segmentation"]):
                empty.append(name)
            else:
                found.append(_checked(row, own, truth))
        except ValueError as error:
            raise ValueError(f"{path}: annotation {name}: {error}") from None
    if empty:
        problems.append(
            f"{path}: {len(empty)} of {len(rows)} annotations have no pixel, the first is annotation {empty[0]}: they "
            "are left out of AP"
        )
    return found


def _report_unknown_images(
    path: Path, ids: list[ImageId | None], matched: dict[ImageId, ImageId], truth: PanopticJson, problems: list[str]
) -> None:
    unknown = [key for key in ids if key is not None and key not in matched]
    if unknown and not matched:
        raise ValueError(
            f"{path}: none of its {len(ids)} annotations is for an image of {truth.path}: the first image_id is "
            f"{shown(unknown[0])} here and {shown(next(iter(truth.images), None))} there, expected the same ids"
        )
    if unknown:
        problems.append(
            f"{path}: {len(unknown)} of {len(ids)} annotations are for images that {truth.path} does not have, the "
            f"first has image_id {shown(unknown[0])}: they are left out of AP"
        )


def _require_fields(row: dict[str, Any], categories: CategorySet) -> None:
    lacking = [key for key in REQUIRED if key not in row]
    if lacking:
        raise ValueError(f"lacks {', '.join(lacking)}")
    if image_id(row["image_id"]) is None:
        raise ValueError(f"image_id {shown(row['image_id'])}, expected a whole number or a text")
    if _thing(row["category_id"], categories) is None:
        raise ValueError(
            f"category_id {shown(row['category_id'])}, expected a thing of the categories of the panoptic ground truth"
        )


def _thing(value: Any, categories: CategorySet) -> int | None:
    """The id of a category of things, None if it is none."""
    category_id = whole_number(value)
    channel = None if category_id is None else categories.channels.get(category_id)
    return category_id if channel is not None and categories[channel].is_thing else None


def _checked(row: dict[str, Any], key: ImageId, truth: PanopticJson) -> dict[str, Any]:
    """The row as COCO's evaluation takes it."""
    area = number(row["area"])
    if area is None or not 0 <= area < 1e12:
        raise ValueError(f"area {shown(row['area'])}, expected a number of pixels")
    box = [number(side) for side in row["bbox"]] if isinstance(row["bbox"], list) else []
    if len(box) != 4 or not all(map(is_coordinate, box)):
        raise ValueError(f"bbox {shown(row['bbox'])}, expected four numbers x, y, width, height")
    images = truth.images
    return {
        "image_id": key,
        "category_id": _thing(row["category_id"], truth.categories),
        "segmentation": run_lengths(row["segmentation"], images.size_at(images.position(key))),
        "area": area,
        "bbox": box,
        "iscrowd": int(crowd_flag(row.get("iscrowd"))),
    }
