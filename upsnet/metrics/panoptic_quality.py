"""Panoptic quality (Kirillov et al. 2019, sec. 4) by the rules of the COCO panoptic evaluation.

A prediction matches a truth of its class that is no crowd if their IoU is above 1/2, where the union leaves out the
prediction's pixels on void truth and nothing else: a pixel predicted as void stays a miss. An unmatched truth that
is no crowd is a false negative. An unmatched prediction is a false positive, unless more than half of it lies on void
truth and on a crowd of its class (the last such crowd of the image, as in the reference evaluation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.data.categories import CategorySet

IntArray = npt.NDArray[np.integer]
FIELDS = ("iou", "tp", "fp", "fn")


@dataclass(frozen=True)
class SegmentTable:
    """The segments of an image: row i describes id i + 1 of the dense map; 0 is void.

    Attributes:
        classes: int64 [n], semantic channels; is_crowd: bool [n] (truth only).
    """

    classes: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, classes: Any, is_crowd: Any = None) -> SegmentTable:
        """Builds the table; without `is_crowd` nothing is a crowd."""
        rows = np.asarray(classes, dtype=np.int64)
        return cls(rows, np.zeros(len(rows), dtype=bool) if is_crowd is None else np.asarray(is_crowd, dtype=bool))


@dataclass(frozen=True)
class Matching:
    """A prediction beside its truth: n true and m predicted segments of one image.

    Attributes:
        truth, predicted: the segments.
        inter: int64 [n + 1, m + 1], pixels shared; row and column 0 are void.
        iou: float64 [n, m], the union without the prediction's pixels on void truth.
        hit_truth, hit_predicted: int64 [k], rows of the segments that match.
        missed: bool [n], true segments without a match (no crowds).
        spurious: bool [m], predicted segments without a match, less the excused and the empty ones.
    """

    truth: SegmentTable
    predicted: SegmentTable
    inter: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    hit_truth: npt.NDArray[np.int64]
    hit_predicted: npt.NDArray[np.int64]
    missed: npt.NDArray[np.bool_]
    spurious: npt.NDArray[np.bool_]


def match_segments(
    truth_map: IntArray, truth: SegmentTable, predicted_map: IntArray, predicted: SegmentTable
) -> Matching:
    """Compares one prediction with its truth.

    Args:
        truth_map, predicted_map: [H, W] of one size, dense ids.
        truth, predicted: their segments; a predicted row without a pixel is no segment.

    Raises:
        ValueError: the maps differ in size, or hold an id without a row.
    """
    if truth_map.shape != predicted_map.shape:
        raise ValueError(f"prediction has size {predicted_map.shape}, expected {truth_map.shape} as the truth")
    rows, columns = len(truth.classes) + 1, len(predicted.classes) + 1
    for name, ids, limit in (("truth", truth_map, rows), ("prediction", predicted_map, columns)):
        if ids.size and not (ids.min() >= 0 and ids.max() < limit):
            raise ValueError(f"{name} has ids from {ids.min()} to {ids.max()}, expected 0..{limit - 1}")
    pairs = truth_map.astype(np.int64).ravel() * columns + predicted_map.ravel()
    inter = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
    predicted_area = inter.sum(0)[1:]
    union = inter.sum(1)[1:, None] + predicted_area - inter[1:, 1:] - inter[:1, 1:]
    iou = inter[1:, 1:] / np.maximum(union, 1)
    same = (truth.classes[:, None] == predicted.classes) & ~truth.is_crowd[:, None]
    hit_truth, hit_predicted = np.nonzero(same & (iou > 0.5))
    missed = ~truth.is_crowd
    missed[hit_truth] = False

    crowds = np.flatnonzero(truth.is_crowd)
    crowd_row = np.zeros(1 + max(truth.classes.max(initial=0), predicted.classes.max(initial=0)), dtype=np.int64)
    crowd_row[truth.classes[crowds]] = crowds + 1  # the last one of a class stays
    own_crowd = crowd_row[predicted.classes]
    excused = inter[0, 1:] + np.where(own_crowd > 0, inter[own_crowd, np.arange(1, columns)], 0)
    spurious = (predicted_area > 0) & (excused / np.maximum(predicted_area, 1) <= 0.5)
    spurious[hit_predicted] = False
    return Matching(truth, predicted, inter, iou, hit_truth, hit_predicted, missed, spurious)


def class_sums(found: Matching, num_classes: int) -> npt.NDArray[np.float64]:
    """float64 [num_classes, 4]: sum of IoU, TP, FP, FN of each class in one image."""
    scores = np.zeros((num_classes, len(FIELDS)))
    hit = found.truth.classes[found.hit_truth]
    np.add.at(scores[:, 0], hit, found.iou[found.hit_truth, found.hit_predicted])
    np.add.at(scores[:, 1], hit, 1)
    np.add.at(scores[:, 2], found.predicted.classes[found.spurious], 1)
    np.add.at(scores[:, 3], found.truth.classes[found.missed], 1)
    return scores


class PanopticQuality:
    """Sums the scores of images, and gives PQ, SQ and RQ in percent.

    Args:
        categories: the classes.
    """

    def __init__(self, categories: CategorySet) -> None:
        self.categories = categories
        self.rows: dict[Any, npt.NDArray[np.float64]] = {}

    def update(
        self, key: Any, truth_map: IntArray, truth: SegmentTable, predicted_map: IntArray, predicted: SegmentTable
    ) -> None:
        """Adds one image under a key of its own (see `match_segments`)."""
        self.rows[key] = class_sums(match_segments(truth_map, truth, predicted_map, predicted), len(self.categories))

    def compute(self) -> dict[str, Any]:
        """The `panoptic` section of `metrics.json`: All, Things, Stuff and per_class.

        The sums run in the order of the keys, so that any split of the images over processes gives the same bits.
        """
        total = np.zeros((len(self.categories), len(FIELDS)))
        for key in sorted(self.rows, key=str):
            total += self.rows[key]
        scores = [_quality(row) for row in total]
        result: dict[str, Any] = {}
        for group, wanted in (("All", (False, True)), ("Things", (True,)), ("Stuff", (False,))):
            members = [s for s, c in zip(scores, self.categories.categories, strict=True) if c.is_thing in wanted]
            seen = [m for m in members if m["tp"] + m["fp"] + m["fn"] > 0]
            means = {name: sum(m[name] for m in seen) / max(1, len(seen)) for name in ("pq", "sq", "rq")}
            result[group] = {**means, "n": len(seen)}
        named = zip(self.categories.categories, scores, strict=True)
        return {**result, "per_class": {str(c.id): {"name": c.name, **s} for c, s in named}}


def _quality(row: npt.NDArray[np.float64]) -> dict[str, float]:
    iou, tp, fp, fn = row.tolist()
    size = tp + fp / 2 + fn / 2
    return {
        "pq": 100 * iou / size if size else 0.0,
        "sq": 100 * iou / tp if tp else 0.0,
        "rq": 100 * tp / size if size else 0.0,
        "iou": iou,
        "tp": int(tp),
        "fp": int(fp),
        "fn": int(fn),
    }
