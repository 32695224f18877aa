"""What people annotate (regions that may overlap, a map of stuff) becomes one map, in which a pixel has one segment.

The order is fixed: background, stuff, crowds, instances. Of two instances the smaller lies on top: it is mostly the one
in front, or a part that was drawn upon a whole, and it would vanish under the other, while the larger remains visible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from upsnet.categories import IGNORE_LABEL, CategorySet

OnTop = Literal["smaller", "later", "earlier"]


@dataclass(frozen=True)
class Region:
    """One annotated area, cut to its box.

    Attributes:
        channel: semantic channel of its class.
        mask: bool [h, w]; top, left: where it lies in the picture.
        area: its pixels.
        is_crowd: several instances that nobody separated.
    """

    channel: int
    mask: npt.NDArray[np.bool_]
    top: int
    left: int
    area: int
    is_crowd: bool = False

    @classmethod
    def of(cls, channel: int, mask: npt.NDArray[np.bool_], *, is_crowd: bool = False) -> Region:
        """Cuts a mask of the whole picture [H, W] to its box."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return cls(channel, np.zeros((0, 0), dtype=bool), 0, 0, 0, is_crowd)
        top, left = int(rows[0]), int(columns[0])
        cut = mask[top : rows[-1] + 1, left : columns[-1] + 1].copy()
        return cls(channel, cut, top, left, int(np.count_nonzero(cut)), is_crowd)

    def window(self, canvas: np.ndarray) -> np.ndarray:
        """The part of a map [H, W] that the mask lies on, as a view."""
        return canvas[self.top : self.top + self.mask.shape[0], self.left : self.left + self.mask.shape[1]]


@dataclass(frozen=True)
class Layers:
    """The annotation of one picture.

    Attributes:
        size: (H, W) that it was made for.
        regions: in the order of the annotation.
        semantic: uint8 [H, W], channels of stuff, `IGNORE_LABEL` where there is none; None: no map.
        skipped: kind of annotation that is no region -> how many.
    """

    size: tuple[int, int]
    regions: list[Region]
    semantic: npt.NDArray[np.uint8] | None = None
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Composition:
    """One map without overlaps.

    Attributes:
        segment_map: int32 [H, W], 0 = void, `i + 1` = row `i` of the next two.
        classes: int64 [n], semantic channels; is_crowd: bool [n].
        overlapped: pixels that more than one instance claims.
        covered: regions that others cover whole; empty: regions without a pixel. Neither has a segment.
    """

    segment_map: npt.NDArray[np.int32]
    classes: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]
    overlapped: int
    covered: int
    empty: int


def compose(
    layers: Layers, categories: CategorySet, background: int | None = None, on_top: OnTop = "smaller"
) -> Composition:
    """Lays background, stuff, crowds and instances upon each other.

    Stuff has one segment of each class, and so have crowds. Instances keep the order of the annotation in their ids.

    Args:
        layers: the annotation.
        categories: the classes.
        background: channel of the stuff class that fills what nothing else covers; None: that is void.
        on_top: of two instances, the one of fewer pixels as annotated (of equal ones the later), or that which comes
            later or earlier. Stuff that was drawn as regions, and crowds, follow the same rule.
    """
    stuff = [r for r in layers.regions if r.channel < categories.num_stuff]
    crowds = [r for r in layers.regions if r.channel >= categories.num_stuff and r.is_crowd]
    instances = [r for r in layers.regions if r.channel >= categories.num_stuff and not r.is_crowd]

    semantic = np.full(layers.size, IGNORE_LABEL, np.uint8) if layers.semantic is None else layers.semantic.copy()
    for region in _bottom_up(stuff, on_top):
        region.window(semantic)[region.mask] = region.channel
    if background is not None:
        semantic[semantic == IGNORE_LABEL] = background

    ids = semantic.astype(np.int32) + 1
    ids[semantic == IGNORE_LABEL] = 0
    classes = list(range(categories.num_stuff))  # one row of each, to begin with
    crowd_rows = {c: len(classes) + number for number, c in enumerate(dict.fromkeys(r.channel for r in crowds))}
    for region in _bottom_up(crowds, on_top):
        region.window(ids)[region.mask] = crowd_rows[region.channel] + 1
    classes += crowd_rows
    first = len(classes)
    rows = {id(region): first + number for number, region in enumerate(instances)}
    shared = np.zeros(layers.size, dtype=bool)
    for region in _bottom_up(instances, on_top):
        window = region.window(ids)
        region.window(shared)[region.mask & (window > first)] = True
        window[region.mask] = rows[id(region)] + 1
    classes += [region.channel for region in instances]

    areas = np.bincount(ids.ravel(), minlength=len(classes) + 1)[1:]
    kept = np.flatnonzero(areas)
    renumber = np.zeros(len(classes) + 1, dtype=np.int32)
    renumber[kept + 1] = np.arange(1, len(kept) + 1)
    empty = sum(region.area == 0 for region in layers.regions)
    return Composition(
        renumber[ids],
        np.array(classes, dtype=np.int64)[kept],
        np.isin(kept, list(crowd_rows.values())),
        int(np.count_nonzero(shared)),
        int(np.count_nonzero(areas[first:] == 0)) - sum(region.area == 0 for region in instances),
        empty,
    )


def _bottom_up(regions: Iterable[Region], on_top: OnTop) -> list[Region]:
    in_order = list(regions)
    if on_top == "smaller":
        return sorted(in_order, key=lambda region: -region.area)
    return in_order if on_top == "later" else in_order[::-1]
