"""COCO's masks (outlines and run lengths), checked before pycocotools sees them.

pycocotools trusts its input: run lengths that do not add up leave memory as it was, and far coordinates take all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from upsnet.text import shown

Size = tuple[int, int]


def mask_of(segmentation: Any, size: Size) -> npt.NDArray[np.bool_]:
    """The mask [H, W] of a `segmentation`: outlines, or run lengths.

    Args:
        segmentation: a list of polygons, each x1, y1, x2, y2, ...; or an object with `counts`.
        size: (H, W) of the image.

    Raises:
        ValueError: it is neither, it is for an image of another size, or it is damaged.
    """
    return np.asarray(coco_mask.decode(run_lengths(segmentation, size)) > 0)


def run_lengths(segmentation: Any, size: Size) -> dict[str, Any]:
    """The same as compressed run lengths, as pycocotools takes them."""
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, size)
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation {shown(segmentation)}, expected polygons or run lengths")
    _require_polygons(segmentation, size)
    polygons = [[float(value) for value in polygon] for polygon in segmentation]
    merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    return merged


def fill_polygons(polygons: Sequence[Sequence[float]], size: Size) -> npt.NDArray[np.bool_]:
    """The union of polygons as a mask [H, W].

    Args:
        polygons: each x1, y1, x2, y2, ... in pixels; (0, 0) is the upper left corner of the image.
        size: (H, W).

    Raises:
        ValueError: fewer than three points, something that is no number, or points far outside the image.
    """
    return mask_of(list(polygons), size)


def _require_polygons(polygons: Sequence[Any], size: Size) -> None:
    if not polygons:
        raise ValueError("no polygon, expected at least one; draw it again, or delete it")
    height, width = size
    for polygon in polygons:
        if not isinstance(polygon, list | tuple) or not all(is_coordinate(value) for value in polygon):
            raise ValueError("polygon is no list of numbers, expected x1, y1, x2, y2, ...")
        if len(polygon) % 2:
            raise ValueError(f"polygon of {len(polygon)} numbers, expected pairs x1, y1, x2, y2, ...")
        if len(polygon) < 6:
            raise ValueError(f"polygon of {len(polygon) // 2} points, expected at least 3; draw it again, or delete it")
        for values, length, axis in ((polygon[0::2], width, "x"), (polygon[1::2], height, "y")):
            if min(values) < -length or max(values) > 2 * length:
                raise ValueError(
                    f"polygon with {axis} from {min(values):g} to {max(values):g}, expected 0 to {length}: "
                    "it was drawn on an image of another size"
                )


def is_coordinate(value: Any) -> bool:
    """Whether a value is a number that a coordinate can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _checked_runs(rle: dict[str, Any], size: Size) -> dict[str, Any]:
    counts, own = rle.get("counts"), rle.get("size")
    if own is not None and own != list(size):
        raise ValueError(f"run lengths for size {shown(own)}, expected {list(size)} (height, width)")
    total = math.prod(size)
    if isinstance(counts, list):
        if not all(type(count) is int and 0 <= count <= total for count in counts) or sum(counts) != total:
            raise ValueError(f"run lengths do not add up to {total} pixels")
        packed: dict[str, Any] = coco_mask.frPyObjects({"counts": counts, "size": list(size)}, *size)
        return packed
    if not isinstance(counts, str) or not counts:
        raise ValueError("run lengths without counts, expected a list or a compressed string")
    runs = decompress(counts)
    if runs is None:
        raise ValueError("compressed run lengths are damaged")
    if (runs < 0).any() or (runs > total).any() or runs.sum() != total:
        raise ValueError(f"run lengths do not add up to {total} pixels")
    return {"counts": counts.encode(), "size": list(size)}


def decompress(counts: str) -> npt.NDArray[np.int64] | None:
    """The run lengths of a compressed string, None if it is damaged.

    A number has 5 bits in each character, low bits first. 32 is set in all but the last character, and 16 in the last
    one is the sign. From the fourth number on, each is the difference to the one two before (format of COCO's API).
    """
    try:
        codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    is_last = codes & 32 == 0
    if (codes < 0).any() or (codes > 63).any() or not is_last[-1]:
        return None
    ends = np.flatnonzero(is_last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts)
    if place.max() > 11:  # more bits than a number of 64 bits has
        return None
    values = np.add.reduceat((codes & 31) << 5 * place, starts)
    is_negative = codes[ends - 1] & 16 > 0
    values = values - (is_negative.astype(np.int64) << 5 * (ends - starts))
    if len(values) > 3:
        # Numbers 1, 3, 5, ... and 2, 4, 6, ... are sums of differences.
        values[1::2], values[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return values
