"""What the report remembers of each image: a few numbers per segment, and the pictures of the worst and the best."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.metrics.error_causes import NO_ERROR, Causes, find_causes
from upsnet.metrics.image_pair import ImagePair
from upsnet.metrics.panoptic_quality import Matching, match_segments
from upsnet.report.panels import PanelMaker

TRUTH = np.dtype([("kind", "i2"), ("area", "i4"), ("cause", "i1"), ("iou", "f8"), ("seen_as", "i2")])
"""A true segment that is no crowd: its class, area, cause of a miss, IoU with its match (0 without), and the class of
the prediction that has IoU > 1/2 with it whatever its class (-1 without)."""

PREDICTED = np.dtype([("kind", "i2"), ("area", "i4"), ("cause", "i1"), ("score", "f4"), ("over", "i2")])
"""A predicted segment that counts as match or false positive: its class, area, cause if it is spurious, score (NaN
without), and the class of the true segment with which it has IoU > 1/2 (-1 without)."""


@dataclass(frozen=True)
class ImageRow:
    """One image: structured arrays of `TRUTH` and `PREDICTED`."""

    file_name: str
    truth: npt.NDArray[Any]
    predicted: npt.NDArray[Any]

    @classmethod
    def of(cls, file_name: str, found: Matching, scores: npt.NDArray[np.floating] | None = None) -> ImageRow:
        """Describes a matched image; `scores` [m], 0..1, NaN where there is none."""
        causes = find_causes(found)
        return cls(file_name, _truth_rows(found, causes), _predicted_rows(found, causes, scores))

    @property
    def counts(self) -> tuple[int, int, int]:
        """TP, FP, FN."""
        fn = int((self.truth["cause"] != NO_ERROR).sum())
        return len(self.truth) - fn, int((self.predicted["cause"] != NO_ERROR).sum()), fn

    @property
    def pq(self) -> float | None:
        """PQ over all segments of the image as if they were of one class, in percent; None without segments."""
        tp, fp, fn = self.counts
        return 100 * float(self.truth["iou"].sum()) / (tp + fp / 2 + fn / 2) if tp + fp + fn else None


@dataclass(frozen=True)
class Ranked:
    """An image among the worst or the best: lowest first in the order of `rank`; without panels until they are made."""

    rank: tuple[float, float, str]
    key: Any
    panels: dict[str, bytes]


class ReportCollector:
    """Takes one image after the other; the memory it needs grows by about a kilobyte for each.

    Args:
        categories: the classes.
        num_pictures: how many of the worst and how many of the best images are shown.

    Attributes:
        rows: key -> image.
        worst, best: at most `num_pictures` each, in falling order of interest.
    """

    def __init__(self, categories: CategorySet, num_pictures: int = 8) -> None:
        if num_pictures < 0:
            raise ValueError(f"num_pictures {num_pictures} (--report-images), expected 0 or more")
        self.categories, self.num_pictures = categories, num_pictures
        self.panels = PanelMaker(categories, 2 * num_pictures)
        self.rows: dict[Any, ImageRow] = {}
        self.worst: list[Ranked] = []
        self.best: list[Ranked] = []

    def update(self, key: Any, file_name: str, pair: ImagePair, found: Matching | None = None) -> None:
        """Adds one image, and makes its pictures at once if it is among the worst or the best so far.

        Args:
            key: of its own; file_name: to be shown.
            pair: its maps.
            found: their matching, where it is known already.
        """
        found = found or match_segments(pair.truth_map, pair.truth, pair.predicted_map, pair.predicted)
        self._place(key, ImageRow.of(file_name, found, pair.scores), lambda: self._panels(pair, found))

    describe = staticmethod(ImageRow.of)

    def add(self, key: Any, row: ImageRow) -> None:
        """Adds one image whose pictures `illustrate` may make."""
        self._place(key, row, dict)

    def illustrate(self, read: Callable[[Any], ImagePair]) -> list[str]:
        """Makes the missing pictures of the images to show.

        Args:
            read: gives the maps of a key.

        Returns:
            One line for each photograph that cannot be read: its image is drawn without.
        """
        problems: list[str] = []
        made = {i.key: i.panels for part in (self.worst, self.best) for i in part}
        for key in dict.fromkeys(image.key for part in self.shown() for image in part):
            if not made[key]:
                pair = read(key)
                found = match_segments(pair.truth_map, pair.truth, pair.predicted_map, pair.predicted)
                try:
                    made[key] = self._panels(pair, found)
                except (OSError, ValueError) as error:
                    problems.append(str(error))
                    made[key] = self._panels(replace(pair, picture=None), found)
        for name in ("worst", "best"):
            setattr(self, name, [replace(image, panels=made[image.key]) for image in getattr(self, name)])
        return problems

    def _panels(self, pair: ImagePair, found: Matching) -> dict[str, bytes]:
        image = pair.picture() if pair.picture is not None else None
        return self.panels.make(image, pair.truth_map, pair.predicted_map, pair.scores, found, find_causes(found))

    def _place(self, key: Any, row: ImageRow, draw: Callable[[], dict[str, bytes]]) -> None:
        """Keeps the row, and the image if it is among the worst or the best."""
        self.rows[key] = row
        if row.pq is None:
            return
        tp, fp, fn = row.counts
        worst, best = (row.pq, -float(fp + fn), str(key)), (-row.pq, -float(tp), str(key))
        places = [(r, s) for r, s in ((worst, self.worst), (best, self.best)) if self._is_wanted(s, r)]
        panels = draw() if places else {}
        for rank, shown in places:
            bisect.insort(shown, Ranked(rank, key, panels), key=lambda r: r.rank)
            del shown[self.num_pictures :]

    def _is_wanted(self, shown: list[Ranked], rank: tuple[float, float, str]) -> bool:
        return len(shown) < self.num_pictures or (self.num_pictures > 0 and rank < shown[-1].rank)

    def merge(self, parts: Sequence[ReportCollector]) -> None:
        """Takes the images of other collectors, for example of all processes; those it has already stay once."""
        for part in parts:
            self.rows |= part.rows
        for name in ("worst", "best"):
            images = {image.key: image for part in (self, *parts) for image in getattr(part, name)}
            setattr(self, name, sorted(images.values(), key=lambda r: r.rank)[: self.num_pictures])

    def shown(self) -> tuple[list[Ranked], list[Ranked]]:
        """The worst and the best images to show; of few images, each stands in one list only."""
        count = sum(row.pq is not None for row in self.rows.values())
        return self.worst[: (count + 1) // 2], self.best[: count // 2]


def _truth_rows(found: Matching, causes: Causes) -> npt.NDArray[Any]:
    strong = (found.iou > 0.5) & ~found.truth.is_crowd[:, None]
    rows = np.zeros(len(found.truth.classes), dtype=TRUTH)
    rows["kind"], rows["area"], rows["cause"] = found.truth.classes, found.inter.sum(1)[1:], causes.truth
    rows["iou"][found.hit_truth] = found.iou[found.hit_truth, found.hit_predicted]
    rows["seen_as"] = -1
    seen, by = np.nonzero(strong)
    rows["seen_as"][seen] = found.predicted.classes[by]
    return rows[~found.truth.is_crowd]


def _predicted_rows(found: Matching, causes: Causes, scores: npt.NDArray[np.floating] | None) -> npt.NDArray[Any]:
    rows = np.zeros(len(found.predicted.classes), dtype=PREDICTED)
    rows["kind"], rows["area"], rows["cause"] = found.predicted.classes, found.inter.sum(0)[1:], causes.predicted
    rows["score"] = np.nan if scores is None else scores[: len(rows)]
    rows["over"] = -1
    true, over = np.nonzero((found.iou > 0.5) & ~found.truth.is_crowd[:, None])
    rows["over"][over] = found.truth.classes[true]
    counts = found.spurious.copy()
    counts[found.hit_predicted] = True
    return rows[counts]
