"""What the images of the splits add up to: class balance, sizes, and how the anchors fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.doctor.segments import Segments

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
