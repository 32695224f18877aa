"""Which segments of a prediction are which of the truth: the matching behind panoptic quality.

By the rules of the COCO panoptic evaluation (Kirillov et al. 2019, sec. 4.1).

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

from upsnet.ops.id_maps import count_pairs


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
        pair_truth, pair_predicted: int64, rows of those that would, if classes did not matter.
        missed: bool [n], true segments without a match (no crowds).
        spurious: bool [m], predicted segments without a match, less the excused and the empty ones.
    """

    truth: SegmentTable
    predicted: SegmentTable
    inter: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    hit_truth: npt.NDArray[np.int64]
    hit_predicted: npt.NDArray[np.int64]
    pair_truth: npt.NDArray[np.int64]
    pair_predicted: npt.NDArray[np.int64]
    missed: npt.NDArray[np.bool_]
    spurious: npt.NDArray[np.bool_]


def match_segments(truth_map: Any, truth: SegmentTable, predicted_map: Any, predicted: SegmentTable) -> Matching:
    """Compares one prediction with its truth.

    Args:
        truth_map, predicted_map: [H, W] of one size, dense ids; arrays, or tensors on one device.
        truth, predicted: their segments; a predicted row without a pixel is no segment.

    Raises:
        ValueError: the maps differ in size, or hold an id without a row.
    """
    if truth_map.shape != predicted_map.shape:
        raise ValueError(
            f"prediction has size {tuple(predicted_map.shape)}, expected {tuple(truth_map.shape)} as the truth"
        )
    rows, columns = len(truth.classes) + 1, len(predicted.classes) + 1
    counts = count_pairs(truth_map, np.arange(rows), predicted_map, np.arange(columns))
    if counts[0].any() or counts[:, 0].any():
        for name, ids, limit in (("truth", truth_map, rows), ("prediction", predicted_map, columns)):
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= limit:
                raise ValueError(f"{name} has ids from {low} to {high}, expected 0..{limit - 1}")
    return match_counts(counts[1:, 1:], truth, predicted)


def match_counts(
    inter: npt.NDArray[np.int64],
    truth: SegmentTable,
    predicted: SegmentTable,
    at_most: npt.NDArray[np.float64] | None = None,
) -> Matching:
    """Matches segments whose shared pixels are counted.

    Args:
        inter: int64 [n + 1, m + 1], row and column 0 are void.
        truth, predicted: n and m segments.
        at_most: [n, m], a second IoU; the smaller of the two counts.
    """
    predicted_area, shared = np.add.reduce(inter, 0)[1:], inter[1:, 1:]
    union = np.add.reduce(inter, 1)[1:, None] + (predicted_area - inter[0, 1:]) - shared
    iou = shared / np.maximum(union, 1)
    if at_most is not None:
        iou = np.minimum(iou, at_most)
    missed = ~truth.is_crowd
    pair_truth, pair_predicted = np.nonzero((iou > 0.5) & missed[:, None])
    same = truth.classes[pair_truth] == predicted.classes[pair_predicted]
    hit_truth, hit_predicted = pair_truth[same], pair_predicted[same]
    missed[hit_truth] = False

    excused = inter[0, 1:]
    crowds = np.flatnonzero(truth.is_crowd)
    if len(crowds):
        crowd_row = np.zeros(1 + max(truth.classes.max(), predicted.classes.max(initial=0)), dtype=np.int64)
        crowd_row[truth.classes[crowds]] = crowds + 1  # the last one of a class stays
        own_crowd = crowd_row[predicted.classes]
        excused = excused + np.where(own_crowd > 0, inter[own_crowd, np.arange(1, inter.shape[1])], 0)
    spurious = (predicted_area > 0) & (2 * excused <= predicted_area)
    spurious[hit_predicted] = False
    hits = (hit_truth, hit_predicted, pair_truth, pair_predicted)
    return Matching(truth, predicted, inter, iou, *hits, missed, spurious)
