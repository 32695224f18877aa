"""The segments of one id map: areas, boxes, pieces, and what is odd about them. Works for every data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from upsnet.ops.pieces import connected_pieces

Size = tuple[int, int]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

TINY = 16
"""Pixels of a cell of the finest level, whose stride is 4."""
COARSEST = 32
"""Pixels of a cell of the backbone's last stage, per side."""
LARGE_PIECE = 0.25
"""Of a segment's pixels."""
MOSTLY = 0.5
"""Of an image's pixels."""


def own_size(size: Size) -> Size:
    """Images are used at the size they have."""
    return size


@dataclass(frozen=True)
class Use:
    """What the training will make of a split, in plain values; the defaults ask for nothing.

    Attributes:
        network_size: (H, W) of an image -> (H, W) at which the network sees it.
        crop: (H, W) of the window that training then cuts, where it cuts one.
        best_iou: boxes float32 [N, 4] and the size of the image, both at the network's size -> IoU [N] with the anchor
            that fits best.
        positive_iou, negative_iou: the thresholds of the anchors.
        max_detections, train_slots: instances that an image may have.
        value_range: `data.value_range`.
    """

    network_size: Callable[[Size], Size] = own_size
    crop: Size | None = None
    best_iou: Callable[[Floats, Size], Floats] | None = None
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    max_detections: int | None = None
    train_slots: int | None = None
    value_range: tuple[float, float] | None = None


class Measures(NamedTuple):
    """Areas int64 [n], boxes int64 [n, 4] (zeros without pixels), and bool [n]: in pieces far apart."""

    areas: Integers
    boxes: Integers
    scattered: npt.NDArray[np.bool_]

    def part(self, start: int, stop: int) -> Measures:
        """Those of some segments."""
        return Measures(self.areas[start:stop], self.boxes[start:stop], self.scattered[start:stop])


def measure(rows: npt.NDArray[np.int32], count: int) -> Measures:
    """Measures the segments 0..count-1 of a map of them [H, W].

    A segment is scattered if a piece with a quarter of its pixels or more lies farther from its largest piece than that
    is long, measured between their boxes: what an occluder cuts apart lies nearer.
    """
    pieces = connected_pieces(rows)
    pieces = pieces[np.lexsort((-pieces[:, 1], pieces[:, 0]))]
    owner, area, box = pieces[:, 0], pieces[:, 1], pieces[:, 2:]
    areas = np.zeros(count, dtype=np.int64)
    np.add.at(areas, owner, area)
    boxes = np.zeros((count, 4), dtype=np.int64)
    present, first = np.unique(owner, return_index=True)
    boxes[present, :2] = np.minimum.reduceat(box[:, :2], first)
    boxes[present, 2:] = np.maximum.reduceat(box[:, 2:], first)
    main = np.zeros((count, 4), dtype=np.int64)
    main[present] = box[first]
    nearest = main[owner]
    gap = np.maximum(box[:, :2] - nearest[:, 2:], nearest[:, :2] - box[:, 2:]).max(1)
    length = (nearest[:, 2:] - nearest[:, :2]).max(1)
    far = (gap > length) & (area >= LARGE_PIECE * areas[owner])
    scattered = np.zeros(count, dtype=bool)
    scattered[owner[far]] = True
    return Measures(areas, boxes, scattered)


@dataclass(frozen=True)
class Segments:
    """The segments of an image that have pixels.

    Attributes:
        channels: int16 [n], semantic channels; is_crowd: bool [n].
        areas: int32 [n], pixels; boxes: int32 [n, 4].
        scale: network pixels per pixel, of lengths.
        best_iou: float32 [n], with the anchors; NaN for what is no instance, or without anchors.
    """

    channels: npt.NDArray[np.int16]
    is_crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.int32]
    scale: float
    best_iou: Floats


def examine_segments(
    found: Measures,
    channels: Integers,
    is_crowd: npt.NDArray[np.bool_],
    ids: Integers,
    *,
    num_stuff: int,
    size: Size,
    use: Use,
) -> tuple[Segments, list[tuple[str, str]]]:
    """Looks at the segments of an image.

    Args:
        found: their measures; channels int64 [n], is_crowd bool [n], ids int64 [n]: of the same segments.
        num_stuff: channels from here on are things.
        size: (H, W) of the image.
        use: what will be made of it.

    Returns:
        What is kept, and the (check, detail) of what is odd.
    """
    odd: list[tuple[str, str]] = []
    is_thing = channels >= num_stuff
    network = use.network_size(size)
    factors = network[1] / size[1], network[0] / size[0]
    inside = is_thing & ~is_crowd & (found.areas > 0)
    best = np.full(len(channels), np.nan, dtype=np.float32)
    if use.best_iou is not None and inside.any():
        boxes = (found.boxes[inside] * np.array(factors * 2)).astype(np.float32)
        best[inside] = use.best_iou(boxes, network)
    odd += [("thing-scattered", f"segment {ids[row]}") for row in np.flatnonzero(found.scattered & inside).tolist()]
    tiny = (found.areas > 0) & (found.areas * factors[0] * factors[1] < TINY)
    odd += [("segment-tiny", f"segment {ids[row]}, {found.areas[row]} px") for row in np.flatnonzero(tiny).tolist()]
    stuff = channels[~is_thing & ~is_crowd]
    for channel in np.flatnonzero(np.bincount(stuff) > 1).tolist():
        parts = ids[(channels == channel) & ~is_crowd].tolist()
        odd.append(("stuff-split", f"segments {', '.join(map(str, parts[:5]))}"))
    odd += [("stuff-crowd", f"segment {ids[row]}") for row in np.flatnonzero(~is_thing & is_crowd).tolist()]
    void = 1 - int(found.areas.sum()) / (size[0] * size[1])
    if void == 1:
        odd.append(("image-void", ""))
    elif void > MOSTLY:
        odd.append(("image-mostly-void", f"{void:.0%}"))
    if min(network) < COARSEST:
        odd.append(("image-small", f"{network[1]} x {network[0]}"))
    odd += _too_many(int(inside.sum()), network, use)
    seen = found.areas > 0
    kept = Segments(
        channels[seen].astype(np.int16), is_crowd[seen], found.areas[seen].astype(np.int32),
        found.boxes[seen].astype(np.int32), (factors[0] * factors[1]) ** 0.5, best[seen],
    )  # fmt: skip
    return kept, odd


def _too_many(instances: int, network: Size, use: Use) -> list[tuple[str, str]]:
    odd = []
    if use.max_detections is not None and instances > use.max_detections:
        odd.append(("over-max-detections", f"{instances} instances"))
    if use.train_slots is not None:
        share = 1.0
        for side, window in zip(network, use.crop or network, strict=True):
            share *= min(1.0, window / side)
        expected = round(instances * share)
        if expected > use.train_slots:
            odd.append(("over-train-slots", f"{expected} instances" + " a crop" * (share < 1)))
    return odd
