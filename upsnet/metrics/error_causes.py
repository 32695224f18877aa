"""Where the errors come from: every missed truth and every spurious prediction of an image gets one cause.

The causes are looked for in this order, and the first that holds counts, so that their numbers add up to FN and FP:

1. wrong class: truth and prediction overlap with IoU > 1/2, but their classes differ.
2. split: several predictions lie mostly inside one truth of their class and together cover more than half of it.
   The truth is missed (if none of them matches), and each piece that does not match is spurious.
3. merge: a prediction covers more than half of each of several truths of its class.
4. poor mask: truth and prediction are of one class, both without a match, with an IoU from 0.1 to 1/2.
5. void: the model abstained on more than half of the truth (truths only; predictions on void truth are excused).
6. missed (truths) or spurious (predictions): nothing of the above.

Crowds, excused predictions and predictions without a pixel are no errors. What a cause is worth follows the idea of
TIDE (Bolya et al. 2020) for AP, see `mended_pq`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from upsnet.metrics.matching import Matching

CAUSES = ("wrong class", "split", "merge", "poor mask", "void", "missed", "spurious")
"""A cause's code is its position."""

NO_ERROR = -1
POOR_IOU = 0.1
"""Least IoU at which a prediction still means a truth, as in TIDE."""


@dataclass(frozen=True)
class Causes:
    """The cause of each error of one image.

    Attributes:
        truth: int8 [n], a code of `CAUSES` for each missed truth, else `NO_ERROR`.
        predicted: int8 [m], the same for each spurious prediction.
    """

    truth: npt.NDArray[np.int8]
    predicted: npt.NDArray[np.int8]


def find_causes(found: Matching) -> Causes:
    """Gives each missed truth and each spurious prediction of an image its cause (see the module's text)."""
    inter = found.inter[1:, 1:]
    area = found.inter.sum(1)[1:]
    real = ~found.truth.is_crowd[:, None]
    same = (found.truth.classes[:, None] == found.predicted.classes) & real
    confused = real & ~same & (found.iou > 0.5)

    pieces = same & (2 * inter > inter.sum(0))  # of the prediction's pixels on labelled truth, as in the IoU
    split = (pieces.sum(1) > 1) & (2 * (inter * pieces).sum(1) > area)
    covered = same & (2 * inter > area[:, None])
    merger = covered.sum(0) > 1
    unmatched = np.ones(len(found.predicted.classes), dtype=bool)
    unmatched[found.hit_predicted] = False
    poor = same & found.missed[:, None] & unmatched & (found.iou >= POOR_IOU)
    void = 2 * found.inter[1:, 0] > area

    truth = (confused.any(1), split, (covered & merger).any(1), poor.any(1), void)
    predicted = (confused.any(0), (pieces & split[:, None]).any(0), merger, poor.any(0))
    return Causes(
        _first(truth, CAUSES.index("missed"), found.missed), _first(predicted, CAUSES.index("spurious"), found.spurious)
    )


def _first(
    conditions: tuple[npt.NDArray[np.bool_], ...], rest: int, errors: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int8]:
    """The first condition that holds, in the order of `CAUSES`; `NO_ERROR` where there is none to explain."""
    codes = np.select(list(conditions), list(range(len(conditions))), rest)
    return np.where(errors, codes, NO_ERROR).astype(np.int8)


def count_causes(
    classes: npt.NDArray[np.integer], causes: npt.NDArray[np.integer], num_classes: int
) -> npt.NDArray[np.int64]:
    """Errors by class and cause.

    Args:
        classes: int [n], semantic channels; causes: int [n], codes or `NO_ERROR`.
        num_classes: C.

    Returns:
        int64 [C, 7], in the order of `CAUSES`.
    """
    wrong = causes >= 0
    cells = classes[wrong].astype(np.int64) * len(CAUSES) + causes[wrong]
    return np.bincount(cells, minlength=num_classes * len(CAUSES)).reshape(num_classes, len(CAUSES))


def mended_pq(
    sums: npt.NDArray[np.float64],
    missed: npt.NDArray[np.integer] | npt.NDArray[np.float64],
    spurious: npt.NDArray[np.integer] | npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """What PQ would be if one cause were fixed, for each cause.

    A fixed true segment becomes a match with the mean IoU of its class's matches (of all matches if the class has
    none). A fixed prediction is removed. A class without remaining segments is left out of the mean, like a class that
    does not occur. The gains of several causes cannot be added.

    Args:
        sums: float64 [C, 4, ...], sum of IoU, TP, FP, FN of each class (`image_scores.class_sums`).
        missed, spurious: [C, 7, ...], FN and FP by cause (`count_causes`).

    Returns:
        float64 [7, ...], in percent; 0 where no class is left.
    """
    iou, tp, fp, fn = np.moveaxis(sums, 1, 0)
    overall = np.where(tp.sum(0) > 0, iou.sum(0) / np.maximum(tp.sum(0), 1), 0.5)
    usual = np.where(tp > 0, iou / np.maximum(tp, 1), overall)
    found = []
    for k in range(len(CAUSES)):
        size = tp + missed[:, k] + (fp - spurious[:, k]) / 2 + (fn - missed[:, k]) / 2
        quality = (iou + usual * missed[:, k]) / np.where(size > 0, size, 1)
        found.append(100 * quality.sum(0) / np.maximum((size > 0).sum(0), 1))
    return np.array(found)
