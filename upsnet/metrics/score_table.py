"""The scored segments of an evaluation as columns, and their sums over groups and over resampled images.

`ScoreTable` has one row for each true segment (without crowds) and each spurious prediction. PQ, SQ and RQ of any
subset of images or segments are computed from it. A bootstrap resample multiplies the sums of each image by the number
of times that it draws the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.metrics.bootstrap import FIELDS, FIXED_POINT, GROUPS, draw_counts, quality
from upsnet.metrics.error_causes import CAUSES, NO_ERROR
from upsnet.metrics.image_scores import ImageScores

MATCHED, MISSED, SPURIOUS = range(3)
"""Outcomes of a segment: TP, FN and FP."""

BLOCK = 250
"""Number of resamples that are summed together."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ScoreTable:
    """The E scored segments of all images, in the order of the images.

    Attributes:
        num_images: N.
        image: int64 [E], index of the image, 0..N-1.
        kind: int64 [E], semantic channel.
        area: int64 [E], pixels of the true segment, or of the spurious prediction.
        iou: float64 [E], 0 without a match.
        outcome: int64 [E], `MATCHED`, `MISSED` or `SPURIOUS`.
        cause: int64 [E], index in `error_causes.CAUSES`, `NO_ERROR` for a match.
    """

    num_images: int
    image: Ints
    kind: Ints
    area: Ints
    iou: Floats
    outcome: Ints
    cause: Ints

    @classmethod
    def of(cls, images: Sequence[ImageScores]) -> ScoreTable:
        """Joins the segments of images."""
        parts = [scores.segments for scores in images]

        def column(name: str) -> npt.NDArray[Any]:
            return np.concatenate([np.zeros(0), *(getattr(part, name) for part in parts)])

        true = np.array([part.num_true for part in parts], dtype=np.int64)
        count = np.array([len(part.classes) for part in parts], dtype=np.int64)
        image = np.repeat(np.arange(len(parts)), count)
        position = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        cause = column("causes").astype(np.int64)
        outcome = np.where(cause == NO_ERROR, MATCHED, np.where(position < true[image], MISSED, SPURIOUS))
        kind, area = column("classes").astype(np.int64), column("areas").astype(np.int64)
        return cls(len(parts), image, kind, area, column("ious"), outcome, cause)

    def true_things(self, categories: CategorySet) -> Ints:
        """int64 [N]: true segments of things in each image."""
        is_thing = np.array([c.is_thing for c in categories.categories], dtype=bool)
        return np.bincount(self.image[is_thing[self.kind] & (self.outcome != SPURIOUS)], minlength=self.num_images)


@dataclass(frozen=True)
class Partition:
    """Disjoint groups of images or of segments.

    Attributes:
        name: such as "object_size".
        labels: names of the G groups.
        of_segments: True: segments are grouped. False: images are grouped.
        groups: function of the table that returns the group of each segment or image, int64 [E] or [N]; -1: in none.
    """

    name: str
    labels: tuple[str, ...]
    of_segments: bool
    groups: Callable[[ScoreTable], Ints]

    def of(self, table: ScoreTable) -> Ints:
        """int64 [E]: the group of each segment."""
        found = self.groups(table)
        return found if self.of_segments else found[table.image]


EVERYTHING = Partition("", ("",), True, lambda table: np.zeros(len(table.image), dtype=np.int64))


def partition_sums(
    table: ScoreTable, partition: Partition, num_classes: int, times: Floats | None = None
) -> npt.NDArray[np.float64]:
    """Sums IoU, TP, FP and FN of the segments by group and class.

    Args:
        table: the segments.
        partition: into G groups.
        num_classes: C.
        times: [N, R], how often each of R resamples draws each image; None counts each image once.

    Returns:
        float64 [G, C, 4, R]: IoU, TP, FP, FN; R is 1 without `times`.
    """
    group = partition.of(table)
    cells = (group * num_classes + table.kind) * 4
    field = np.array([1, 3, 2])[table.outcome]
    matched = table.outcome == MATCHED
    cells, values, image = (
        np.concatenate(pair)
        for pair in (
            (cells + field, cells[matched]),
            (np.ones(len(cells)), table.iou[matched]),
            (table.image, table.image[matched]),
        )
    )
    chosen = np.concatenate([group, group[matched]]) >= 0
    shape = len(partition.labels), num_classes, 4
    found = _sum_cells(cells[chosen], values[chosen], image[chosen], int(np.prod(shape)), times)
    return found.reshape(*shape, -1)


def cause_sums(table: ScoreTable, num_classes: int, times: Floats | None = None) -> tuple[Floats, Floats]:
    """Missed and spurious segments by cause, each float64 [C, 7, R] (see `partition_sums`)."""
    found = []
    for outcome in (MISSED, SPURIOUS):
        rows = table.outcome == outcome
        cells = table.kind[rows] * len(CAUSES) + table.cause[rows]
        ones = np.ones(len(cells))
        sums = _sum_cells(cells, ones, table.image[rows], num_classes * len(CAUSES), times)
        found.append(sums.reshape(num_classes, len(CAUSES), -1))
    return found[0], found[1]


def _sum_cells(cells: Ints, values: Floats, image: Ints, count: int, times: Floats | None) -> Floats:
    """Sums of values by cell, [count, R].

    For resamples, values are rounded to steps of 2^-30, which makes their sums exact in any order.
    """
    if times is None:
        return np.bincount(cells, values, count).astype(np.float64)[:, None]
    order = np.argsort(cells, kind="stable")
    cells, values, image = cells[order], np.rint(values[order] * FIXED_POINT) / FIXED_POINT, image[order]
    found = np.zeros((count, times.shape[1]))
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    for start, end in zip(starts, np.append(starts, len(cells))[1:], strict=True):
        found[cells[start]] = values[start:end] @ times[image[start:end]]
    return found


def group_scores(sums: Floats, categories: CategorySet) -> dict[str, Floats]:
    """PQ, SQ and RQ of `All`, `Things` and `Stuff`: means over the classes that occur.

    Args:
        sums: [C, 4, R].
        categories: the classes.

    Returns:
        float64 [3, R] for each group, in percent; NaN where no class of the group occurs.
    """
    values, occurs = class_scores(sums)
    found = {}
    for name, wanted in GROUPS:
        members = occurs & np.array([c.is_thing in wanted for c in categories.categories])[:, None]
        count = members.sum(0)
        means = np.where(members, values, 0).sum(1) / np.maximum(count, 1)
        found[name] = np.where(count > 0, means, np.nan)
    return found


def class_scores(sums: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """PQ, SQ and RQ of each class, float64 [3, C, R] in percent, and whether it occurs, bool [C, R]."""
    values = quality(np.moveaxis(sums, 1, -1))
    return np.moveaxis(values, -1, 0), sums[:, 1:].sum(1) > 0


def drawn(num_images: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yields the results of `bootstrap.draw_counts` in blocks, float64 [N, up to `BLOCK`]."""
    counts = draw_counts(num_images, resamples, seed)
    while rows := list(islice(counts, BLOCK)):
        yield np.array(rows, dtype=np.float64).T.copy()


def percentiles(values: Floats, level: float) -> list[float] | None:
    """The ends of the middle `level` percent of values [R]. NaN is ignored; None if all values are NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    tail = (100 - level) / 2
    found: list[float] = np.percentile(known, (tail, 100 - tail)).tolist()
    return found


def named_scores(values: Floats) -> dict[str, float | None]:
    """`pq`, `sq` and `rq` of [3] values, None for NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in zip(FIELDS, values, strict=True)}
