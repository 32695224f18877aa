"""What the report says in numbers, computed from the rows of a collector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.metrics.error_causes import CAUSES, NO_ERROR, count_causes, mended_pq
from upsnet.report.collector import PREDICTED, TRUTH, ReportCollector

SIZE_EDGES = (16, 32, 64, 128, 256)
"""Square roots of the areas between the bins of segment sizes, in pixels."""

SCORE_BINS = 20
SUSPECT_SCORE = 0.9
"""Minimum score of a prediction in the list of suspected label errors."""
MAX_SUSPECTS = 50


@dataclass(frozen=True)
class Suspect:
    """A confident prediction that the ground truth contradicts: the label may be wrong or missing.

    Attributes:
        file_name: of the image.
        predicted: class of the prediction; labelled: class of the true segment at its place, None if there is none.
        score: of the prediction, 0..1.
        area: pixels of the prediction.
    """

    file_name: str
    predicted: int
    labelled: int | None
    score: float
    area: int


@dataclass(frozen=True)
class Statistics:
    """Sums over all images; C classes.

    Attributes:
        image_sums: float64 [images, C, 4], sum of IoU, TP, FP, FN, in the order of the keys.
        missed, spurious: int64 [C, 7], FN and FP by cause.
        mended: float64 [7], PQ if a cause were mended.
        confusion: int64 [C, C], true segments by the class they are seen as (IoU > 1/2).
        score_bins: int64 [2, `SCORE_BINS`], predicted things by score, matched and not; None without scores.
        size_sums: float64 [6, 4], the sums by size of the segment (of the truth for matches).
        image_pq: float64 [images], PQ of each image that has segments.
        suspects: things, the highest score first, then the largest; at most `MAX_SUSPECTS`.
    """

    image_sums: npt.NDArray[np.float64]
    missed: npt.NDArray[np.int64]
    spurious: npt.NDArray[np.int64]
    mended: npt.NDArray[np.float64]
    confusion: npt.NDArray[np.int64]
    score_bins: npt.NDArray[np.int64] | None
    size_sums: npt.NDArray[np.float64]
    image_pq: npt.NDArray[np.float64]
    suspects: list[Suspect]


def summarize(collector: ReportCollector) -> Statistics:
    """Adds up the rows of a collector, in the order of their keys."""
    rows = [collector.rows[key] for key in sorted(collector.rows, key=str)]
    size = len(collector.categories)
    truth = np.concatenate([np.zeros(0, dtype=TRUTH), *(row.truth for row in rows)])
    predicted = np.concatenate([np.zeros(0, dtype=PREDICTED), *(row.predicted for row in rows)])
    image_t = np.repeat(np.arange(len(rows)), [len(row.truth) for row in rows])
    image_p = np.repeat(np.arange(len(rows)), [len(row.predicted) for row in rows])
    missed = count_causes(truth["kind"], truth["cause"], size)
    spurious = count_causes(predicted["kind"], predicted["cause"], size)
    cell_t, cell_p = image_t * size + truth["kind"], image_p * size + predicted["kind"]
    image_sums = _sums(truth, predicted, cell_t, cell_p, len(rows) * size).reshape(len(rows), size, 4)
    seen = truth[truth["seen_as"] >= 0]
    pairs = seen["kind"].astype(np.int64) * size + seen["seen_as"]
    bin_t, bin_p = (np.searchsorted(np.square(SIZE_EDGES), side["area"], side="right") for side in (truth, predicted))
    return Statistics(
        image_sums=image_sums,
        missed=missed,
        spurious=spurious,
        mended=mended_pq(image_sums.sum(0), missed, spurious),
        confusion=np.bincount(pairs, minlength=size * size).reshape(size, size),
        score_bins=_score_bins(predicted, collector.categories),
        size_sums=_sums(truth, predicted, bin_t, bin_p, len(SIZE_EDGES) + 1),
        image_pq=np.array([row.pq for row in rows if row.pq is not None], dtype=np.float64),
        suspects=_suspects([row.file_name for row in rows], image_p, predicted, collector.categories),
    )


def _suspects(
    names: list[str], image: npt.NDArray[np.int64], predicted: npt.NDArray[Any], categories: CategorySet
) -> list[Suspect]:
    """The spurious predictions of things with a high score that have another class than the label, or no label."""
    is_thing = np.array([c.is_thing for c in categories.categories])
    causes = [CAUSES.index(name) for name in ("wrong class", "spurious")]
    wanted = is_thing[predicted["kind"]] & np.isin(predicted["cause"], causes) & (predicted["score"] >= SUSPECT_SCORE)
    chosen = np.flatnonzero(wanted)
    order = np.lexsort((-predicted["area"][chosen], -predicted["score"][chosen]))
    return [
        Suspect(
            names[image[i]],
            int(row["kind"]),
            int(row["over"]) if row["over"] >= 0 else None,
            float(row["score"]),
            int(row["area"]),
        )
        for i in chosen[order][:MAX_SUSPECTS].tolist()
        for row in (predicted[i],)
    ]


def _sums(
    truth: npt.NDArray[Any],
    predicted: npt.NDArray[Any],
    truth_cell: npt.NDArray[np.int64],
    predicted_cell: npt.NDArray[np.int64],
    num_cells: int,
) -> npt.NDArray[np.float64]:
    """float64 [num_cells, 4]: sum of IoU, TP, FP, FN of the segments in each cell."""
    hit, extra = truth["cause"] == NO_ERROR, predicted["cause"] != NO_ERROR
    columns = (
        np.bincount(truth_cell, truth["iou"], num_cells),
        np.bincount(truth_cell[hit], minlength=num_cells),
        np.bincount(predicted_cell[extra], minlength=num_cells),
        np.bincount(truth_cell[~hit], minlength=num_cells),
    )
    return np.stack([np.asarray(c, dtype=np.float64) for c in columns], axis=1)


def _score_bins(predicted: npt.NDArray[Any], categories: CategorySet) -> npt.NDArray[np.int64] | None:
    is_thing = np.array([c.is_thing for c in categories.categories])
    rows = predicted[is_thing[predicted["kind"]] & np.isfinite(predicted["score"])]
    if not len(rows):
        return None
    bins = (rows["score"] * SCORE_BINS).astype(np.int64).clip(0, SCORE_BINS - 1)
    hit = rows["cause"] == NO_ERROR
    return np.stack([np.bincount(bins[side], minlength=SCORE_BINS) for side in (hit, ~hit)])
