"""Intervals of PQ, SQ and RQ over the choice of images: the bootstrap's percentiles (Efron 1979)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet

LEVEL = 95
RESAMPLES = 1000
SEED = 0
STEP = 256
"""Images whose sums are laid out at a time."""
FIXED_POINT = 2.0**30
FIELDS = ("pq", "sq", "rq")
GROUPS = (("All", (False, True)), ("Things", (True,)), ("Stuff", (False,)))

Row = tuple[npt.NDArray[np.integer], npt.NDArray[np.float64]]
"""Classes [k] that occur in an image, and their sums [k, 4]: IoU, TP, FP, FN."""


def draw_counts(count: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yields, for each resample, how often it draws each of `count` images, int64 [count].

    A resample draws `count` images with replacement. The numbers depend on the arguments alone.
    """
    rng, chances = np.random.default_rng(seed), np.full(count, 1 / count)
    for _ in range(resamples):
        yield rng.multinomial(count, chances)


def resampled_sums(
    images: Sequence[Row], num_classes: int, *, resamples: int = RESAMPLES, seed: int = SEED
) -> npt.NDArray[np.float64]:
    """Sums over the images, drawn anew with replacement, as many as there are.

    IoUs are rounded to steps of 2^-30, which makes their sums exact in any order: the same bits on every machine.

    Returns:
        [resamples, num_classes, 4].
    """
    count = len(images)
    times = np.empty((resamples, count), dtype=np.uint8)  # no image is drawn 256 times as often as it should be
    for row, drawn in zip(times, draw_counts(count, resamples, seed), strict=True):
        row[:] = drawn
    total = np.zeros((resamples, num_classes * 4))
    for start in range(0, count, STEP):
        part = images[start : start + STEP]
        dense = np.zeros((len(part), num_classes, 4))
        for sums, (channels, own) in zip(dense, part, strict=True):
            sums[channels] = own
        dense[..., 0] = np.rint(dense[..., 0] * FIXED_POINT) / FIXED_POINT
        total += times[:, start : start + STEP].astype(np.float64) @ dense.reshape(len(part), -1)
    return total.reshape(resamples, num_classes, 4)


def quality(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """PQ, SQ, RQ in percent, [..., 3], of sums [..., 4]; 0 where there is nothing."""
    iou, tp, fp, fn = np.moveaxis(sums, -1, 0)
    size = tp + fp / 2 + fn / 2
    parts = (iou / np.where(size > 0, size, 1), iou / np.where(tp > 0, tp, 1), tp / np.where(size > 0, size, 1))
    return 100 * np.stack(parts, axis=-1)


def intervals(images: Sequence[Row], categories: CategorySet) -> dict[str, Any] | None:
    """The middle 95 % of PQ, SQ and RQ over 1,000 resamples; None for fewer than two images.

    Returns:
        "All", "Things", "Stuff" -> "pq", "sq", "rq" -> [low, high] in percent, None for a group no class of which
        occurs; "per_class", the same by category id; and level, resamples, seed. A class that a resample does not
        hold is left out of its means.
    """
    if len(images) < 2:
        return None
    sums = resampled_sums(images, len(categories))
    values, seen = quality(sums), sums[..., 1:].sum(-1) > 0
    result: dict[str, Any] = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED}
    for name, wanted in GROUPS:
        members = seen & np.array([c.is_thing in wanted for c in categories.categories])
        count = members.sum(1)
        means = (values * members[..., None]).sum(1) / np.maximum(count, 1)[:, None]
        result[name] = _percentiles(means[count > 0])
    classes = enumerate(categories.categories)
    return {**result, "per_class": {str(c.id): _percentiles(values[seen[:, i], i]) for i, c in classes}}


def _percentiles(values: npt.NDArray[np.float64]) -> dict[str, list[float]] | None:
    if not len(values):
        return None
    tail = (100 - LEVEL) / 2
    ends = np.percentile(values, (tail, 100 - tail), axis=0)
    return {name: ends[:, i].tolist() for i, name in enumerate(FIELDS)}
