"""Composes what people annotate (regions that may overlap, a map of stuff) into one map with one segment per pixel.

From bottom to top: background, stuff, crowds, instances. Of two instances the smaller one is on top. Usually it is in
front, or a part that was drawn upon a whole; it would vanish under the other one, which stays visible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from upsnet.categories import IGNORE_LABEL, CategorySet
from upsnet.text import shown

OnTop = Literal["smaller", "later", "earlier"]

Box = tuple[int, int, int, int]
"""Top, left, bottom, right; the last two are exclusive."""

VOID = IGNORE_LABEL - 1
"""Channel of pixels in a map of classes that are void for certain. There are fewer classes."""

STUFF, CROWD, INSTANCE = 0.0, 1.0, 2.0
"""Levels, from bottom to top."""


@dataclass(frozen=True)
class Region:
    """One annotated area, cut to its box.

    Attributes:
        channel: semantic channel of its class; `IGNORE_LABEL` if its pixels are void.
        mask: bool [h, w]; top, left: where it lies in the image.
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
        """Cuts a mask of the whole image [H, W] to its box."""
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
    """The annotation of one image.

    Attributes:
        size: (H, W) that it was made for.
        regions: in the order of the annotation.
        semantic: uint8 [H, W], channels of stuff, `VOID` where pixels are void for certain, `IGNORE_LABEL` where
            nothing is known; None: no map.
        skipped: kind of annotation that has no area -> how many.
        mistakes: objects that were left out, and why.
        unknown: boxes of objects that were left out: their pixels are void instead of background.
        is_size_declared: the annotation says for which size it was made.
    """

    size: tuple[int, int]
    regions: list[Region]
    semantic: npt.NDArray[np.uint8] | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    mistakes: list[str] = field(default_factory=list)
    unknown: list[Box] = field(default_factory=list)
    is_size_declared: bool = True


@dataclass(frozen=True)
class Order:
    """Which of two regions is on top where they overlap.

    Attributes:
        on_top: of two instances, the one with fewer pixels as annotated (of equal ones the later), or the one that
            comes later or earlier in the annotation. Stuff regions and crowds follow the same rule.
        levels: semantic channel -> level of its regions, for classes that do not have the level of their kind.
    """

    on_top: OnTop = "smaller"
    levels: dict[int, float] = field(default_factory=dict)

    def level(self, region: Region, num_stuff: int) -> float:
        """The level of a region; crowds are one level below the instances of their class."""
        if region.channel < num_stuff:
            return self.levels.get(region.channel, STUFF)
        return self.levels.get(region.channel, INSTANCE) - (INSTANCE - CROWD if region.is_crowd else 0.0)

    def bottom_up(self, regions: Sequence[Region], num_stuff: int) -> list[Region]:
        """The regions in the order in which they are drawn."""
        rows: Sequence[int] = range(len(regions))
        if self.on_top == "smaller":
            rows = sorted(rows, key=lambda row: -regions[row].area)
        elif self.on_top == "earlier":
            rows = rows[::-1]
        return sorted((regions[row] for row in rows), key=lambda region: self.level(region, num_stuff))


BY_KIND = Order()
"""The order by kind, the smaller of two instances on top."""


def parse_order(text: str, categories: CategorySet) -> dict[int, float]:
    """`vegetation > window > facade` -> the levels of these classes, the first one on top.

    A class is raised just above the next one in the list if it is not above it by its kind.

    Raises:
        ValueError: fewer than two names, an unknown name, or a name that appears twice.
    """
    channels = {category.name: channel for channel, category in enumerate(categories.categories)}
    names = [name.strip() for name in text.split(">")]
    for name in names:
        if name not in channels:
            raise ValueError(f"--order {shown(text)}: no class {shown(name)}, expected some of: {', '.join(channels)}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"--order {shown(text)}: expected two classes or more, each once, as in 'window > facade'")
    levels: dict[int, float] = {}
    below = -1.0
    for name in reversed(names):
        channel = channels[name]
        kind = STUFF if channel < categories.num_stuff else INSTANCE
        below = levels[channel] = kind if kind > below else below + 1 / len(names) / 2
    return levels


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
    layers: Layers, categories: CategorySet, background: int | None = None, order: Order = BY_KIND
) -> Composition:
    """Lays background, stuff, crowds and instances upon each other.

    Stuff has one segment of each class, and so have crowds. Instances keep the order of the annotation in their ids.

    Args:
        layers: the annotation.
        categories: the classes.
        background: channel of the stuff class that fills pixels without annotation; None: they are void.
        order: which of two regions is on top.
    """
    num_stuff = categories.num_stuff
    crowds = dict.fromkeys(r.channel for r in layers.regions if _is_thing(r, num_stuff) and r.is_crowd)
    instances = [r for r in layers.regions if _is_thing(r, num_stuff) and not r.is_crowd]
    classes = [*range(num_stuff), *crowds, *(region.channel for region in instances)]
    ids_of_crowds = {channel: row for row, channel in enumerate(crowds, start=num_stuff + 1)}
    first = num_stuff + len(crowds) + 1
    ids_of_instances = {id(region): row for row, region in enumerate(instances, start=first)}

    ids = _background(layers, background)
    shared = np.zeros(layers.size, dtype=bool)
    for region in order.bottom_up(layers.regions, num_stuff):
        window = region.window(ids)
        if id(region) in ids_of_instances:
            number = ids_of_instances[id(region)]
            region.window(shared)[region.mask & (window >= first)] = True
        elif region.channel == IGNORE_LABEL:
            number = 0
        else:
            number = ids_of_crowds.get(region.channel, region.channel + 1)
        window[region.mask] = number

    areas = np.bincount(ids.ravel(), minlength=len(classes) + 1)[1:]
    kept = np.flatnonzero(areas)
    renumber = np.zeros(len(classes) + 1, dtype=np.int32)
    renumber[kept + 1] = np.arange(1, len(kept) + 1)
    return Composition(
        renumber[ids],
        np.array(classes, dtype=np.int64)[kept],
        (kept >= num_stuff) & (kept < first - 1),
        overlapped=int(np.count_nonzero(shared)),
        covered=int(np.count_nonzero(areas[first - 1 :] == 0)) - sum(region.area == 0 for region in instances),
        empty=sum(region.area == 0 for region in layers.regions),
    )


def _is_thing(region: Region, num_stuff: int) -> bool:
    return num_stuff <= region.channel < IGNORE_LABEL


def _background(layers: Layers, background: int | None) -> npt.NDArray[np.int32]:
    """int32 [H, W] of channels + 1: the map of stuff, and the background where nothing is known to be."""
    ids = np.zeros(layers.size, dtype=np.int32)
    if background is not None:
        ids[...] = background + 1
        for top, left, bottom, right in layers.unknown:
            ids[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 0
    if layers.semantic is not None:
        ids = np.where(layers.semantic == IGNORE_LABEL, ids, layers.semantic.astype(np.int32) + 1)
        ids[layers.semantic == VOID] = 0
    return ids
