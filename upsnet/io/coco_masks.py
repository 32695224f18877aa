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

from upsnet.json_values import whole_number
from upsnet.text import shown

Size = tuple[int, int]
MAX_NESTED = 3
"""Lists around a number of a polygon at most."""


def mask_of(segmentation: Any, size: Size) -> npt.NDArray[np.bool_]:
    """Draws a `segmentation` as a mask [H, W].

    Args:
        segmentation: polygons, run lengths, or a list of run lengths, whose union counts. Polygons are lists of numbers
            x1, y1, x2, y2, ... or of pairs [x, y] in pixels; (0, 0) is the upper left corner of the image. They may lie
            in one list or in two nested lists; a single polygon needs no list around it. A polygon of fewer than three
            points covers no pixel.
        size: (H, W) of the image.

    Raises:
        ValueError: it is none of these, it is for an image of another size, or it is damaged.
    """
    return np.asarray(coco_mask.decode(run_lengths(segmentation, size)) > 0)


def run_lengths(segmentation: Any, size: Size) -> dict[str, Any]:
    """Gives a `segmentation` (see `mask_of`) as compressed run lengths, the form that pycocotools takes.

    Raises:
        ValueError: as in `mask_of`.
    """
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, size)
    if _is_list_of_runs(segmentation):
        parts = [_checked_runs(part, size) for part in segmentation]
    else:
        polygons = [polygon for polygon in outlines(segmentation) if len(polygon) >= 6]
        for polygon in polygons:
            require_near(polygon, size)
        parts = coco_mask.frPyObjects(polygons, *size) if polygons else []
    if not parts:
        parts = [coco_mask.frPyObjects({"counts": [math.prod(size)], "size": list(size)}, *size)]
    merged: dict[str, Any] = coco_mask.merge(parts)
    return merged


def has_no_pixels(segmentation: Any) -> bool:
    """Whether a `segmentation` says that its object has no pixel: an empty list, or only polygons of one or two points.

    A missing segmentation (None) says nothing, so the result is False; `mask_of` raises an error for it.

    Raises:
        ValueError: a list that is no list of polygons.
    """
    if not isinstance(segmentation, list) or _is_list_of_runs(segmentation):
        return False
    return all(len(polygon) < 6 for polygon in outlines(segmentation))


def fill_polygons(polygons: Sequence[Sequence[float]], size: Size) -> npt.NDArray[np.bool_]:
    """The union of polygons as a mask [H, W].

    Args:
        polygons: each x1, y1, x2, y2, ... in pixels; (0, 0) is the upper left corner of the image.
        size: (H, W).

    Raises:
        ValueError: fewer than three points, something that is no number, or points far outside the image.
    """
    for polygon in polygons:
        if len(polygon) < 6:
            raise ValueError(f"polygon of {len(polygon) // 2} points, expected at least 3; draw it again, or delete it")
    return mask_of(list(polygons), size)


def outlines(segmentation: Any) -> list[list[float]]:
    """Gives the polygons of a `segmentation` (see `mask_of`), each as x1, y1, x2, y2, ...

    Raises:
        ValueError: it is no list of polygons, or something in it is no coordinate.
    """
    if segmentation is None:
        raise ValueError("no segmentation, expected polygons or run lengths: a box alone gives no mask")
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation {shown(segmentation)}, expected polygons or run lengths")
    return _outlines(segmentation, MAX_NESTED)


def _outlines(value: Any, depth: int) -> list[list[float]]:
    """The polygons in a list in which numbers lie in at most `depth` lists."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"polygon {shown(value)}, expected a list x1, y1, x2, y2, ...")
    if not any(isinstance(item, list | tuple) for item in value):
        return [_outline(value)]
    if depth == 1:
        raise ValueError(f"polygons in more than {MAX_NESTED} nested lists, expected [[x1, y1, x2, y2, ...], ...]")
    if all(_is_point(item) for item in value):
        return [_outline([coordinate for point in value for coordinate in point])]
    return [polygon for item in value for polygon in _outlines(item, depth - 1)]


def _outline(values: Sequence[Any]) -> list[float]:
    for value in values:
        if not is_coordinate(value):
            raise ValueError(f"polygon with {shown(value)}, expected numbers x1, y1, x2, y2, ...")
    if len(values) % 2:
        raise ValueError(f"polygon of {len(values)} numbers, expected pairs x1, y1, x2, y2, ...")
    return [float(value) for value in values]


def _is_point(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and not any(isinstance(v, list | tuple) for v in value)


def _is_list_of_runs(segmentation: Any) -> bool:
    return isinstance(segmentation, list) and len(segmentation) > 0 and all(isinstance(r, dict) for r in segmentation)


def require_near(outline: Sequence[float], size: Size, what: str = "polygon") -> None:
    """Checks that an outline does not reach further outside the image than the image is long.

    Args:
        outline: x1, y1, x2, y2, ... in pixels, at least one point.
        size: (H, W) of the image.
        what: names the shape in the error.

    Raises:
        ValueError: it does.
    """
    for values, length, axis in ((outline[0::2], size[1], "x"), (outline[1::2], size[0], "y")):
        if min(values) < -length or max(values) > 2 * length:
            raise ValueError(
                f"{what} with {axis} from {min(values):g} to {max(values):g}, expected 0 to {length}: "
                "it was drawn on an image of another size"
            )


def is_coordinate(value: Any) -> bool:
    """Whether a value is a number that a coordinate can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _checked_runs(rle: dict[str, Any], size: Size) -> dict[str, Any]:
    counts, own = rle.get("counts"), rle.get("size")
    is_own_size = isinstance(own, list | tuple) and [whole_number(side) for side in own] == list(size)
    if own is not None and not is_own_size:
        raise ValueError(f"run lengths for size {shown(own)}, expected {list(size)} (height, width)")
    total = math.prod(size)
    if isinstance(counts, list):
        runs: list[Any] = counts if all(type(count) is int for count in counts) else list(map(whole_number, counts))
        if None in runs:
            raise ValueError(f"run lengths with {shown(counts[runs.index(None)])}, expected whole numbers")
        if not all(0 <= count <= total for count in runs) or sum(runs) != total:
            raise ValueError(f"run lengths do not add up to {total} pixels")
        packed: dict[str, Any] = coco_mask.frPyObjects({"counts": runs, "size": list(size)}, *size)
        return packed
    if not isinstance(counts, str) or not counts:
        raise ValueError("run lengths without counts, expected a list or a compressed string")
    values = decompress(counts)
    if values is None:
        raise ValueError("compressed run lengths are damaged")
    if (values < 0).any() or (values > total).any() or values.sum() != total:
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
