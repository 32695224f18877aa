"""What the images of the splits add up to: class balance, sizes, void, and how the anchors fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import IGNORE_LABEL, CategorySet
from upsnet.categories.edits import channel_table, edit_categories
from upsnet.class_edits import ClassEdits
from upsnet.doctor.segments import Integers, Segments, Size

EDGES = (0, 8, 16, 32, 64, 128, 256, 512)
"""Lower ends of the bins of sizes: square roots of areas in pixels of the network's input."""


def class_balance(segments: Iterable[Segments], categories: CategorySet) -> dict[int, dict[str, int]]:
    """Category id -> its images, segments (crowds included) and pixels."""
    totals = np.zeros((3, len(categories)), dtype=np.int64)
    for one in segments:
        totals[0, np.unique(one.channels)] += 1
        np.add.at(totals[1], one.channels, 1)
        np.add.at(totals[2], one.channels, one.areas)
    keys = ("images", "segments", "pixels")
    return {c.id: dict(zip(keys, totals[:, at].tolist(), strict=True)) for at, c in enumerate(categories.categories)}


def void_share(segments: Iterable[Segments], sizes: Iterable[Size]) -> float:
    """Share of the pixels of images of these (H, W) that belong to no segment; 0 without images."""
    labelled = sum(int(one.areas.sum()) for one in segments)
    total = sum(height * width for height, width in sizes)
    return 1 - labelled / total if total else 0.0


def instance_sizes(
    segments: Iterable[Segments], num_stuff: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sizes and best IoUs of all instances, float64 [N] each; the latter are NaN without anchors."""
    sizes: list[npt.NDArray[np.float64]] = [np.zeros(0)]
    best: list[npt.NDArray[np.float64]] = [np.zeros(0)]
    for one in segments:
        is_instance = (one.channels >= num_stuff) & ~one.is_crowd
        sizes.append(np.sqrt(one.areas[is_instance].astype(np.float64)) * one.scale)
        best.append(one.best_iou[is_instance].astype(np.float64))
    return np.concatenate(sizes), np.concatenate(best)


def size_histogram(sizes: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """Instances by size at the network's scale."""
    counts = np.histogram(sizes, [*EDGES, np.inf])[0].tolist()
    ends: Sequence[int | None] = [*EDGES[1:], None]
    return [{"from": a, "to": b, "instances": n} for a, b, n in zip(EDGES, ends, counts, strict=True)]


def anchor_coverage(
    sizes: npt.NDArray[np.float64], best: npt.NDArray[np.float64], positive_iou: float, negative_iou: float
) -> dict[str, Any] | None:
    """How many instances no anchor matches, over all and by size; None without anchors or instances.

    An instance below `positive_iou` has its one best anchor as only positive; below `negative_iou`, all the others on
    it teach background.
    """
    if not len(best) or np.isnan(best).any():
        return None
    bins = np.digitize(sizes, EDGES) - 1
    by_size = [
        {"from": EDGES[n], "instances": int((bins == n).sum()), "median_best_iou": float(np.median(best[bins == n])),
         "below_positive_iou": float((best[bins == n] < positive_iou).mean()),
         "below_negative_iou": float((best[bins == n] < negative_iou).mean())}
        for n in np.unique(bins).tolist()
    ]  # fmt: skip
    return {
        "instances": len(best),
        "positive_iou": positive_iou,
        "negative_iou": negative_iou,
        "median_best_iou": float(np.median(best)),
        "below_positive_iou": float((best < positive_iou).mean()),
        "below_negative_iou": float((best < negative_iou).mean()),
        "by_size": by_size,
    }


@dataclass(frozen=True)
class SplitStatistics:
    """All images and segments of a split as arrays, in pixels of the images.

    Attributes:
        categories: the classes of the model.
        names: of the images; sizes: int64 [N, 2], their (H, W).
        image: int64 [n], the image of each segment; channels: int64 [n], its semantic channel.
        is_crowd: bool [n]; areas: int64 [n], pixels; boxes: int64 [n, 4].
    """

    categories: CategorySet
    names: tuple[str, ...]
    sizes: Integers
    image: Integers
    channels: Integers
    is_crowd: npt.NDArray[np.bool_]
    areas: Integers
    boxes: Integers

    @classmethod
    def of(
        cls,
        images: Iterable[tuple[str, Size, Segments]],
        categories: CategorySet,
        edits: ClassEdits = ClassEdits(),  # noqa: B008 - it is frozen
    ) -> SplitStatistics:
        """Collects a split.

        Args:
            images: (name, (H, W), segments) of each image.
            categories: the classes of the segments.
            edits: changes to the classes; segments that become void are left out. A `background` that no segment has
                is a class without objects, because void pixels are no segment.
        """
        rows = list(images)
        model = edit_categories(categories, edits, source="data.classes")
        table = channel_table(categories, model, edits, source="data.classes")
        segments = [one for _, _, one in rows]
        image = np.repeat(np.arange(len(rows)), [len(one.channels) for one in segments])
        channels = table[_joined([one.channels for one in segments])]
        kept = channels != IGNORE_LABEL
        return cls(
            model,
            tuple(name for name, _, _ in rows),
            np.array([size for _, size, _ in rows], dtype=np.int64).reshape(-1, 2),
            image[kept],
            channels[kept],
            _joined([one.is_crowd for one in segments]).astype(bool)[kept],
            _joined([one.areas for one in segments])[kept],
            _joined([one.boxes.ravel() for one in segments]).reshape(-1, 4)[kept],
        )

    @cached_property
    def instances(self) -> SplitStatistics:
        """The same images with their instances only: things that are no crowds."""
        chosen = (self.channels >= self.categories.num_stuff) & ~self.is_crowd
        return replace(
            self,
            image=self.image[chosen],
            channels=self.channels[chosen],
            is_crowd=self.is_crowd[chosen],
            areas=self.areas[chosen],
            boxes=self.boxes[chosen],
        )

    @cached_property
    def short_sides(self) -> Integers:
        """int64 [N], pixels."""
        return np.asarray(self.sizes.min(1, initial=65536))

    @cached_property
    def long_sides(self) -> Integers:
        """int64 [N], pixels."""
        return np.asarray(self.sizes.max(1, initial=0))

    def images_of_class(self) -> Integers:
        """int64 [classes], the number of images that show each class."""
        pairs = np.unique(np.stack([self.image, self.channels]), axis=1)
        return np.bincount(pairs[1], minlength=len(self.categories))

    def objects_of_class(self) -> Integers:
        """int64 [classes]: the instances of things, and the images that show stuff."""
        instances = np.bincount(self.instances.channels, minlength=len(self.categories))
        is_thing = np.arange(len(self.categories)) >= self.categories.num_stuff
        return np.where(is_thing, instances, self.images_of_class())


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> Integers:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays]).astype(np.int64)
