"""One truth PNG against one predicted PNG, with every contradiction between files, JSON and pixels named."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.data.categories import CategorySet
from upsnet.data.coco import PanopticJson
from upsnet.data.panoptic_png import read_panoptic_png
from upsnet.files import read_image
from upsnet.metrics.boundary import boundary_iou
from upsnet.metrics.image_scores import ImageScores
from upsnet.metrics.instance_ap import ImageInstances, mask_rows
from upsnet.metrics.matching import SegmentTable, match_counts
from upsnet.metrics.report.collector import ImagePair, ImageRow
from upsnet.metrics.semantic_iou import ClassPixels, class_pixels
from upsnet.ops.id_maps import count_pairs, rows_of_ids


@dataclass
class PairResult:
    """What is kept of a pair.

    Attributes:
        image_id: as in the truth's JSON.
        problems: one line each.
        scores: None where the truth cannot be read; the image then counts nowhere.
        semantic: its pixels by class.
        instances: for AP, report: for the report, where they are asked for.
    """

    image_id: int | str
    problems: list[str] = field(default_factory=list)
    scores: ImageScores | None = None
    semantic: ClassPixels | None = None
    instances: ImageInstances | None = None
    report: ImageRow | None = None


@dataclass(frozen=True)
class PairScorer:
    """Scores images by their ids.

    A predicted PNG that is missing, unreadable or of another size counts as one without segments. An id without a row
    and a segment of an unknown category count as void. A predicted row without pixels is no segment; a true one is
    missed, as in the reference evaluation.

    Args:
        truth, predicted: the two JSON files, read with the same categories.
        boundary: find Boundary IoU, too.
        detections: collect scored things for AP; truth_masks: and the truth's things.
        report: describe the segments for the report.
    """

    truth: PanopticJson
    predicted: PanopticJson
    boundary: bool = False
    detections: bool = False
    truth_masks: bool = False
    report: bool = False

    def __call__(self, image_id: int | str) -> PairResult:
        """Scores an annotated image of the truth."""
        result = PairResult(image_id)
        sides = self._sides(image_id, result.problems)
        if sides is None:
            return result
        truth, predicted = sides
        counts = count_pairs(truth.ids, truth.known, predicted.ids, predicted.known)
        result.problems += truth.problems(counts.sum(1)) + predicted.problems(counts.sum(0))
        found = match_counts(_unlisted_is_void(counts), truth.table(), predicted.table(with_crowds=False))
        limit = None
        if self.boundary:
            limit = boundary_iou(truth.ids, truth.known[1:], predicted.ids, predicted.known[1:])
        categories = self.truth.categories
        result.scores = ImageScores.of(found, categories, limit)
        result.semantic = class_pixels(found, len(categories))
        if self.detections:
            result.instances = ImageInstances(
                image_id,
                truth.ids.shape,
                truth.masks(categories) if self.truth_masks else [],
                [row for row in predicted.masks(categories) if "score" in row],
            )
        if self.report:
            result.report = ImageRow.of(self.truth.images[image_id]["file_name"], found, predicted.scores())
        return result

    def pair(self, image_id: int | str, image_dir: Path | None) -> ImagePair:
        """The maps of an image that has been scored, for the pictures of the report.

        Args:
            image_id: the image.
            image_dir: folder of the photographs.

        Raises:
            ValueError: its truth has become unreadable.
        """
        problems: list[str] = []
        sides = self._sides(image_id, problems)
        if sides is None:
            raise ValueError(problems[0])
        truth, predicted = sides
        name = self.truth.images[image_id]["file_name"]
        picture = None if image_dir is None else partial(read_image, image_dir / name, apply_exif=False)
        tables = (truth.table(), predicted.table(with_crowds=False))
        return ImagePair(truth.dense(), tables[0], predicted.dense(), tables[1], predicted.scores(), picture)

    def _sides(self, image_id: int | str, problems: list[str]) -> tuple[_Side, _Side] | None:
        """Truth and prediction of an image; None where the truth cannot be read."""
        true_ids = _read(self.truth, image_id, problems)
        if true_ids is None:
            return None
        ids = _read(self.predicted, image_id, problems) if image_id in self.predicted.annotations else None
        if ids is not None and ids.shape != true_ids.shape:
            path = _png(self.predicted, image_id)
            problems.append(f"{path}: prediction has size {ids.shape}, expected {true_ids.shape} as the truth")
            ids = None
        truth = _Side.of(self.truth, image_id, true_ids)
        predicted = _Side.of(self.predicted, image_id, ids) if ids is not None else _Side.empty(self.predicted, truth)
        return truth, predicted


@dataclass(frozen=True)
class _Side:
    """The truth or the prediction of an image.

    Attributes:
        source, path: of the JSON and the PNG.
        ids: int32 [H, W], as in the PNG.
        rows: of known categories; known: int32 [n + 1], 0 and their ids; unknown: ids of the other rows.
    """

    source: PanopticJson
    path: Path
    ids: npt.NDArray[np.int32]
    rows: list[dict[str, Any]]
    known: npt.NDArray[np.int32]
    unknown: list[int]

    @classmethod
    def of(cls, source: PanopticJson, image_id: int | str, ids: npt.NDArray[np.int32]) -> _Side:
        rows, unknown = [], []
        for row in source.annotations[image_id]["segments_info"]:
            if row["category_id"] in source.categories.channels:
                rows.append(row)
            else:
                unknown.append(row["id"])
        known = np.array([0] + [row["id"] for row in rows], dtype=np.int32)
        return cls(source, _png(source, image_id), ids, rows, known, unknown)

    @classmethod
    def empty(cls, source: PanopticJson, other: _Side) -> _Side:
        """A prediction without segments."""
        return cls(source, source.path, np.zeros_like(other.ids), [], np.zeros(1, dtype=np.int32), [])

    def table(self, *, with_crowds: bool = True) -> SegmentTable:
        channels = self.source.categories.channels
        crowds = [with_crowds and bool(row.get("iscrowd", 0)) for row in self.rows]
        return SegmentTable.of([channels[row["category_id"]] for row in self.rows], crowds)

    def dense(self) -> npt.NDArray[np.int32]:
        """int32 [H, W]: 0 = void and ids without a row, i + 1 = row i."""
        return rows_of_ids(self.ids, self.known[1:])

    def scores(self) -> npt.NDArray[np.float64]:
        """float64 [n], NaN where a row has none."""
        return np.array([row.get("score", np.nan) for row in self.rows], dtype=np.float64)

    def problems(self, pixels: npt.NDArray[np.int64]) -> list[str]:
        """Contradictions between JSON and PNG; `pixels` [n + 2] of ids without a row, of void, and of each row."""
        lines = []
        if pixels[0]:
            stray = np.setdiff1d(self.ids, np.concatenate([self.known, np.array(self.unknown, dtype=np.int32)]))
            if len(stray):
                lines.append(
                    f"{self.path}: segment id {', '.join(map(str, stray[:5].tolist()))} is not in {self.source.path}, "
                    "expected every id of the PNG (but 0) there"
                )
        for row, area in zip(self.rows, pixels[2:].tolist(), strict=True):
            if area == 0:
                lines.append(f"{self.source.path}: segment id {row['id']} has no pixel in {self.path.name}")
            elif row.get("area", area) != area:
                lines.append(
                    f"{self.source.path}: segment {row['id']} of {self.path.name} has area {row['area']}, "
                    f"its pixels are {area}"
                )
        return lines

    def masks(self, categories: CategorySet) -> list[dict[str, Any]]:
        """The things, as rows of COCO's instance format."""
        things = [row for row in self.rows if categories[categories.channels[row["category_id"]]].is_thing]
        return mask_rows(self.ids, things)


def _png(source: PanopticJson, image_id: int | str) -> Path:
    return source.png_dir / source.annotations[image_id]["file_name"]


def _read(source: PanopticJson, image_id: int | str, problems: list[str]) -> npt.NDArray[np.int32] | None:
    try:
        return read_panoptic_png(_png(source, image_id))
    except (OSError, ValueError) as error:
        problems.append(str(error))
        return None


def _unlisted_is_void(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[n + 2, m + 2] with ids without a row in row and column 0 -> [n + 1, m + 1] with those in void."""
    counts[1] += counts[0]
    counts[:, 1] += counts[:, 0]
    return counts[1:, 1:]
