"""Panoptic quality of a data set (Kirillov et al. 2019, sec. 4), and what is reported beside it.

Matching is in `matching.py`, the sums of an image in `image_scores.py`: PQ; PQ-dagger, which drops the threshold for
stuff; Boundary PQ (`boundary.py`); intervals over the choice of images (`bootstrap.py`); PQ of parts of the data set
(`slices.py`); which classes are confused.

The meter scores maps in memory from any program. The prediction in this example has the form of transformers'
`post_process_panoptic_segmentation`: a map of segment ids and a list of segments.

    import numpy as np
    from upsnet.metrics import PanopticQuality, SegmentTable, dense_segments
    from upsnet.categories import CategorySet

    categories = CategorySet.from_json(
        [{"id": 0, "name": "road", "isthing": 0}, {"id": 1, "name": "car", "isthing": 1}], source="my classes"
    )
    channel = categories.channels  # category id -> class number of the meter: stuff first, then things
    meter = PanopticQuality(categories)

    # Ground truth: ids 1..n in the order of the table, 0 = void.
    truth_map, truth = np.array([[1, 1, 2, 2], [1, 1, 2, 2]]), SegmentTable.of([channel[0], channel[1]])
    output = {
        "segmentation": np.array([[7, 7, 9, 9], [7, 7, 9, -1]]),
        "segments_info": [{"id": 7, "label_id": 0, "score": 0.98}, {"id": 9, "label_id": 1, "score": 0.91}],
    }
    ids = [segment["id"] for segment in output["segments_info"]]
    predicted = SegmentTable.of([channel[segment["label_id"]] for segment in output["segments_info"]])
    meter.update("first.jpg", truth_map, truth, dense_segments(output["segmentation"], ids), predicted)

    meter.compute()["All"]["pq"]  # 87.5: road 100, car 75

To score in several processes, send `meter.rows` of each to one, call `meter.merge([rows, ...])` there, then `compute`.
The result has the same bits for any split.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from upsnet.categories import CategorySet
from upsnet.metrics.bootstrap import GROUPS, intervals
from upsnet.metrics.boundary import boundary_iou
from upsnet.metrics.image_scores import FIELDS, ImageScores, class_sums
from upsnet.metrics.matching import Matching, SegmentTable, match_counts, match_segments
from upsnet.metrics.per_image import FORMAT, segment_lists
from upsnet.metrics.pq_dagger import stuff_iou
from upsnet.metrics.score_table import ScoreTable
from upsnet.metrics.slices import Attributes, ImageFacts, partitions_of, slice_scores
from upsnet.text import shown

__all__ = [
    "ImageScores",
    "Matching",
    "PanopticQuality",
    "SegmentTable",
    "class_sums",
    "dense_segments",
    "match_counts",
    "match_segments",
]


def dense_segments(ids: Any, segment_ids: Sequence[int]) -> npt.NDArray[np.int32]:
    """Makes a map of segments whose ids are 1..m, in the order of a list; all other pixels become 0, void.

    Args:
        ids: [H, W], integers; array or tensor.
        segment_ids: the ids of the m segments, all different, in -2^31..2^31 - 1.

    Returns:
        int32 [H, W].

    Raises:
        ValueError: an id appears twice.
    """
    known = np.array(segment_ids, dtype=np.int32)
    if len(np.unique(known)) < len(known):
        raise ValueError(f"segment ids {shown(list(segment_ids))}: an id appears twice, expected each once")
    values = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids).astype(np.int64)
    order = np.argsort(known)
    place = np.searchsorted(known[order], values).clip(0, max(0, len(known) - 1))
    if not len(known):
        return np.zeros(values.shape, dtype=np.int32)
    return np.where(known[order][place] == values, order[place] + 1, 0).astype(np.int32)


class PanopticQuality:
    """Collects the scores of images (`update`, `merge`) and computes the metrics of all (`compute`, `per_image`).

    Args:
        categories: the classes.
        boundary: find Boundary PQ, too.

    Attributes:
        rows: key -> scores of an image. They can be pickled, and sent to another process.
    """

    def __init__(self, categories: CategorySet, *, boundary: bool = False) -> None:
        self.categories = categories
        self.boundary = boundary
        self.rows: dict[Any, ImageScores] = {}

    def update(
        self,
        key: int | str,
        truth_map: Any,
        truth: SegmentTable,
        predicted_map: Any,
        predicted: SegmentTable,
        file_name: str = "",
    ) -> None:
        """Adds one image. An image with the same key is replaced.

        Args:
            key: of the image, as `image_id` in `per_image`.
            truth_map, predicted_map: integers [H, W] of one size, 0 = void, i + 1 = row i of the table; both numpy
                arrays, or both tensors on one device (`dense_segments` makes them from other ids).
            truth, predicted: the segments.
            file_name: of the image, as in `per_image`.

        Raises:
            ValueError: the maps differ in size, or hold an id without a row.
        """
        found = match_segments(truth_map, truth, predicted_map, predicted)
        limit = None
        if self.boundary:
            maps = [ids.cpu().numpy() if isinstance(ids, Tensor) else ids for ids in (truth_map, predicted_map)]
            dense = [np.arange(1, len(table.classes) + 1) for table in (truth, predicted)]
            limit = boundary_iou(maps[0], dense[0], maps[1], dense[1])
        self.rows[key] = ImageScores.of(found, self.categories, limit).named(file_name, truth_map.shape)

    def merge(self, others: list[dict[Any, ImageScores]]) -> None:
        """Adds the `rows` of other processes."""
        for rows in others:
            self.rows.update(rows)

    def compute(self, attributes: Attributes | None = None) -> dict[str, Any]:
        """The `panoptic` section of `metrics.json`, in percent.

        `All`, `Things`, `Stuff` and `per_class`, where what has no segment to score is None; `pq_dagger`, the same
        groups and classes; `interval`, see `bootstrap.intervals`; `slices`, see `slices.slice_scores`; `boundary`, like
        the section itself, None unless asked for; `confusion`, true category id -> predicted category id -> number of
        matched segments. Images are summed in the order of their keys, so that any split of the images over processes
        gives the same bits.

        Args:
            attributes: of the images, for slices beside the built-in ones.

        Raises:
            ValueError: the attributes name none of the images.
        """
        keys = sorted(self.rows, key=str)
        rows = [self.rows[key] for key in keys]
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
            "slices": self._slices(keys, rows, attributes),
            "boundary": self._quality(total[:, 4:]) if self.boundary else None,
            "confusion": self._confusion(confusion.reshape(size, size)),
        }

    def per_image(self) -> dict[str, Any]:
        """The contents of `per_image.json` (see the module `per_image`), images in the order of their ids as text."""
        images = []
        for key in sorted(self.rows, key=str):
            row = self.rows[key]
            scores = [class_quality(sums) for sums in row.sums[:, :4]]
            counts = {name: sum(score[name] or 0 for score in scores) for name in ("tp", "fp", "fn")}
            facts = {"image_id": key, "file_name": row.file_name, "height": row.size[0], "width": row.size[1]}
            images.append({**facts, **group_quality(scores), **counts, **segment_lists(row, self.categories)})
        return {"format": FORMAT, "categories": self.categories.to_json(), "images": images}

    def _slices(self, keys: list[Any], rows: list[ImageScores], attributes: Attributes | None) -> dict[str, Any]:
        table = ScoreTable.of(rows)
        facts = [ImageFacts(key, row.file_name, row.size) for key, row in zip(keys, rows, strict=True)]
        return slice_scores(table, partitions_of(table, facts, self.categories, attributes), self.categories)

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
