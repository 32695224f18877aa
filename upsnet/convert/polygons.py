"""Outlines and run lengths -> masks, by COCO's rules (pycocotools)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask


def fill_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The union of polygons as a mask [H, W].

    Args:
        polygons: each x1, y1, x2, y2, ... in pixels; (0, 0) is the picture's upper left corner.
        size: (H, W).

    Raises:
        ValueError: fewer than three points, something that is no number, or points far outside the picture.
    """
    height, width = size
    for polygon in polygons:
        if not isinstance(polygon, list | tuple) or not all(_is_finite(value) for value in polygon):
            raise ValueError("polygon is no list of numbers, expected x1, y1, x2, y2, ...")
        if len(polygon) % 2:
            raise ValueError(f"polygon of {len(polygon)} numbers, expected pairs x1, y1, x2, y2, ...")
        if len(polygon) < 6:
            raise ValueError(f"polygon of {len(polygon) // 2} points, expected at least 3; draw it again, or delete it")
        for values, length, axis in ((polygon[0::2], width, "x"), (polygon[1::2], height, "y")):
            if min(values) < -length or max(values) > 2 * length:
                raise ValueError(
                    f"polygon with {axis} from {min(values):g} to {max(values):g}, expected 0 to {length}: "
                    "it was drawn on a picture of another size"
                )
    rles = coco_mask.frPyObjects([[float(value) for value in polygon] for polygon in polygons], height, width)
    return np.asarray(coco_mask.decode(coco_mask.merge(rles)) > 0)


def fill_circle(center: tuple[float, float], radius: float, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels whose centres lie in a circle (x, y), as a mask [H, W]."""
    y, x = np.ogrid[: size[0], : size[1]]
    return np.asarray((x + 0.5 - center[0]) ** 2 + (y + 0.5 - center[1]) ** 2 <= radius**2)


def decode_rle(rle: dict[str, Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """COCO's run lengths, as a list or compressed, as a mask [H, W].

    Raises:
        ValueError: they are for another size, or damaged.
    """
    counts, own = rle.get("counts"), rle.get("size")
    if own is not None and own != list(size):
        raise ValueError(f"run lengths for size {own}, expected {list(size)} (height, width)")
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != math.prod(size):
            raise ValueError(f"run lengths do not add up to {math.prod(size)} pixels")
        if not counts:
            return np.zeros(size, dtype=bool)
        rle = coco_mask.frPyObjects({"counts": counts, "size": list(size)}, *size)
    elif not isinstance(counts, str) or not counts:
        raise ValueError("run lengths without counts, expected a list or a compressed string")
    try:
        return np.asarray(coco_mask.decode({"counts": rle["counts"], "size": list(size)}) > 0)
    except ValueError:
        raise ValueError("compressed run lengths are damaged") from None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e9
