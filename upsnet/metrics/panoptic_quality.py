"""Panoptic quality of a data set (Kirillov et al. 2019, sec. 4), and what is reported beside it.

Matching is in `matching.py`, the sums of an image in `image_scores.py`: PQ; PQ-dagger, which drops the threshold for
stuff; Boundary PQ (`boundary.py`); intervals over the choice of images (`bootstrap.py`); which classes are confused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from upsnet.categories import CategorySet
from upsnet.metrics.bootstrap import GROUPS, intervals
from upsnet.metrics.boundary import boundary_iou
from upsnet.metrics.image_scores import FIELDS, ImageScores, class_sums
from upsnet.metrics.matching import Matching, SegmentTable, match_counts, match_segments
from upsnet.metrics.pq_dagger import stuff_iou

__all__ = ["ImageScores", "Matching", "PanopticQuality", "SegmentTable", "class_sums", "match_counts", "match_segments"]


class PanopticQuality:
    """Collects a few sums of each image.

    Args:
        categories: the classes.
        boundary: find Boundary PQ, too.
    """

    def __init__(self, categories: CategorySet, *, boundary: bool = False) -> None:
        self.categories = categories
        self.boundary = boundary
        self.rows: dict[Any, ImageScores] = {}

    def update(
        self, key: Any, truth_map: Any, truth: SegmentTable, predicted_map: Any, predicted: SegmentTable
    ) -> None:
        """Adds one image under a key of its own (see `match_segments`)."""
        found = match_segments(truth_map, truth, predicted_map, predicted)
        limit = None
        if self.boundary:
            maps = [ids.cpu().numpy() if isinstance(ids, Tensor) else ids for ids in (truth_map, predicted_map)]
            dense = [np.arange(1, len(table.classes) + 1) for table in (truth, predicted)]
            limit = boundary_iou(maps[0], dense[0], maps[1], dense[1])
        self.add(key, found, limit)

    def add(self, key: Any, found: Matching, limit: npt.NDArray[np.float64] | None = None) -> None:
        """Adds one matched image; `limit` is its `boundary_iou` where that is asked for."""
        self.rows[key] = ImageScores.of(found, self.categories, limit)

    def merge(self, others: list[dict[Any, ImageScores]]) -> None:
        """Takes the rows of other processes, too."""
        for rows in others:
            self.rows.update(rows)

    def compute(self) -> dict[str, Any]:
        """The `panoptic` section of `metrics.json`, in percent.

        `All`, `Things`, `Stuff` and `per_class`, where what has no segment to score is None; `pq_dagger`, the same
        groups and classes; `interval`, see
        `bootstrap.intervals`; `boundary`, like the section itself, None unless asked for; `confusion`, true
        category id -> predicted category id -> number of matched segments. Sums run in the order of the keys, so that
        any split of the images over processes gives the same bits.
        """
        rows = [self.rows[key] for key in sorted(self.rows, key=str)]
        size = len(self.categories)
        total = np.zeros((size, 2 * len(FIELDS)))
        confusion = np.zeros(size * size, dtype=np.int64)
        for row in rows:
            total[row.channels, : row.sums.shape[1]] += row.sums
            np.add.at(confusion, row.confused, 1)
        result = self._quality(total[:, :4])
        return {
            **result,
            "pq_dagger": self._dagger(result["per_class"], rows),
            "interval": intervals([(row.channels, row.sums[:, :4]) for row in rows], self.categories),
            "boundary": self._quality(total[:, 4:]) if self.boundary else None,
            "confusion": self._confusion(confusion.reshape(size, size)),
        }

    def per_image(self) -> list[dict[str, Any]]:
        """PQ, SQ and RQ of each image alone (means over the classes in it, in percent) with its TP, FP and FN.

        PQ, SQ and RQ of an image without a segment to score are None.
        """
        rows = []
        for key in sorted(self.rows, key=str):
            scores = [class_quality(row) for row in self.rows[key].sums[:, :4]]
            counts = {name: sum(score[name] or 0 for score in scores) for name in ("tp", "fp", "fn")}
            rows.append({"image_id": key, **group_quality(scores), **counts})
        return rows

    def _quality(self, total: npt.NDArray[np.float64]) -> dict[str, Any]:
        scores = [class_quality(row) for row in total]
        pairs = list(zip(self.categories.categories, scores, strict=True))
        groups = {name: group_quality(s for c, s in pairs if c.is_thing in members) for name, members in GROUPS}
        return {**groups, "per_class": {str(c.id): {"name": c.name, **s} for c, s in pairs}}

    def _dagger(self, per_class: dict[str, Any], images: list[ImageScores]) -> dict[str, Any]:
        num_stuff = self.categories.num_stuff
        values: dict[str, float | None] = {}
        for category, iou in zip(
            self.categories.categories, stuff_iou(images, len(self.categories), num_stuff), strict=False
        ):
            values[str(category.id)] = None if iou is None else 100 * iou
        for category in self.categories.categories[num_stuff:]:
            values[str(category.id)] = per_class[str(category.id)]["pq"]
        groups = {
            name: mean([values[str(c.id)] for c in self.categories.categories if c.is_thing in members])
            for name, members in GROUPS
        }
        return {**groups, "per_class": values}

    def _confusion(self, counts: npt.NDArray[np.int64]) -> dict[str, dict[str, int]]:
        names = [str(c.id) for c in self.categories.categories]
        rows: dict[str, dict[str, int]] = {}
        for true, predicted in zip(*(axis.tolist() for axis in np.nonzero(counts)), strict=True):
            rows.setdefault(names[true], {})[names[predicted]] = int(counts[true, predicted])
        return rows


def class_quality(row: npt.NDArray[np.float64]) -> dict[str, float | None]:
    """PQ, SQ and RQ in percent of one class, from its `FIELDS`, which follow them.

    They are None if the class has no segment to score. SQ is 0 if it has segments, but no match.
    """
    iou, tp, fp, fn = row.tolist()
    size = tp + fp / 2 + fn / 2
    return {
        "pq": 100 * iou / size if size else None,
        "sq": None if not size else 100 * iou / tp if tp else 0.0,
        "rq": 100 * tp / size if size else None,
        "iou": iou,
        "tp": int(tp),
        "fp": int(fp),
        "fn": int(fn),
    }


def group_quality(scores: Iterable[dict[str, float | None]]) -> dict[str, Any]:
    """Means of PQ, SQ and RQ over the classes that occur, None if none does; and their number n."""
    seen = [score for score in scores if score["pq"] is not None]
    return {**{name: mean([score[name] for score in seen]) for name in ("pq", "sq", "rq")}, "n": len(seen)}


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
