"""One truth PNG against one predicted PNG, with every contradiction between files, JSON and pixels named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.data.categories import CategorySet
from upsnet.data.coco import PanopticJson
from upsnet.data.panoptic_png import read_panoptic_png
from upsnet.metrics.boundary import boundary_iou
from upsnet.metrics.image_scores import ImageScores
from upsnet.metrics.instance_ap import ImageInstances, mask_rows
from upsnet.metrics.matching import SegmentTable, match_counts
from upsnet.ops.id_maps import count_pairs


@dataclass
class PairResult:
    """What is kept of a pair.

    Attributes:
        image_id: as in the truth's JSON.
        problems: one line each.
        scores: None where the truth cannot be read; the image then counts nowhere.
        instances: for AP, where that is asked for.
    """

    image_id: int | str
    problems: list[str] = field(default_factory=list)
    scores: ImageScores | None = None
    instances: ImageInstances | None = None


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
    """

    truth: PanopticJson
    predicted: PanopticJson
    boundary: bool = False
    detections: bool = False
    truth_masks: bool = False
    buffers: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict, repr=False)

    def __call__(self, image_id: int | str) -> PairResult:
        """Scores an annotated image of the truth."""
        result = PairResult(image_id)
        true_ids = self._read(0, image_id, result.problems)
        if true_ids is None:
            return result
        ids = self._read(1, image_id, result.problems) if image_id in self.predicted.annotations else None
        if ids is not None and ids.shape != true_ids.shape:
            path = _png(self.predicted, image_id)
            result.problems.append(f"{path}: prediction has size {ids.shape}, expected {true_ids.shape} as the truth")
            ids = None
        truth = _Side.of(self.truth, image_id, true_ids, with_crowds=True)
        if ids is None:
            predicted = _Side.empty(self.predicted, truth)
        else:
            predicted = _Side.of(self.predicted, image_id, ids, with_crowds=False)
        counts = count_pairs(truth.ids, truth.known, predicted.ids, predicted.known)
        result.problems += truth.problems(counts.sum(1)) + predicted.problems(counts.sum(0))
        found = match_counts(_unlisted_is_void(counts), truth.table, predicted.table)
        limit = None
        if self.boundary:
            limit = boundary_iou(truth.ids, truth.known[1:], predicted.ids, predicted.known[1:])
        categories = self.truth.categories
        result.scores = ImageScores.of(found, categories, limit)
        if self.detections:
            result.instances = ImageInstances(
                image_id,
                true_ids.shape,
                truth.masks(categories) if self.truth_masks else [],
                [row for row in predicted.masks(categories) if "score" in row],
            )
        return result

    def _read(self, side: int, image_id: int | str, problems: list[str]) -> npt.NDArray[np.int32] | None:
        """A map of the truth (side 0) or the prediction (1); it is good until the next one of its side."""
        try:
            ids = read_panoptic_png(_png((self.truth, self.predicted)[side], image_id), self.buffers.get(side))
        except (OSError, ValueError) as error:
            problems.append(str(error))
            return None
        if side not in self.buffers or ids.size > self.buffers[side].size:
            self.buffers[side] = ids.reshape(-1)
        return ids


@dataclass(frozen=True)
class _Side:
    """The truth or the prediction of an image.

    Attributes:
        source, image_id: which JSON, which image of it.
        ids: int32 [H, W], as in the PNG.
        rows: of known categories, and their table; known: int32 [n + 1], 0 and their ids; unknown: ids of other rows.
    """

    source: PanopticJson
    image_id: int | str
    ids: npt.NDArray[np.int32]
    rows: list[dict[str, Any]]
    table: SegmentTable
    known: npt.NDArray[np.int32]
    unknown: list[int]

    @classmethod
    def of(cls, source: PanopticJson, image_id: int | str, ids: npt.NDArray[np.int32], *, with_crowds: bool) -> _Side:
        rows, channels, unknown = source.annotations[image_id]["segments_info"], source.categories.channels, []
        classes = [channels.get(row["category_id"], -1) for row in rows]
        if -1 in classes:
            unknown = [row["id"] for row, channel in zip(rows, classes, strict=True) if channel < 0]
            rows = [row for row, channel in zip(rows, classes, strict=True) if channel >= 0]
            classes = [channel for channel in classes if channel >= 0]
        crowds = [bool(row.get("iscrowd")) for row in rows] if with_crowds else None
        known = np.array([0, *[row["id"] for row in rows]], dtype=np.int32)
        return cls(source, image_id, ids, rows, SegmentTable.of(classes, crowds), known, unknown)

    @classmethod
    def empty(cls, source: PanopticJson, other: _Side) -> _Side:
        """A prediction without segments."""
        known = np.zeros(1, dtype=np.int32)
        return cls(source, other.image_id, np.zeros_like(other.ids), [], SegmentTable.of([]), known, [])

    def problems(self, pixels: npt.NDArray[np.int64]) -> list[str]:
        """Contradictions between JSON and PNG; `pixels` [n + 2] of ids without a row, of void, and of each row."""
        areas = pixels[2:].tolist()
        if (
            not pixels[0]
            and 0 not in areas
            and all(r.get("area", a) == a for r, a in zip(self.rows, areas, strict=True))
        ):
            return []
        lines, path = [], Path(_png(self.source, self.image_id))
        stray = np.setdiff1d(self.ids, np.concatenate([self.known, np.array(self.unknown, dtype=np.int32)]))
        if len(stray):
            lines.append(
                f"{path}: segment id {', '.join(map(str, stray[:5].tolist()))} is not in {self.source.path}, "
                "expected every id of the PNG (but 0) there"
            )
        for row, area in zip(self.rows, areas, strict=True):
            text = f"has area {row.get('area')}, its pixels are {area}" if area else "has no pixel"
            if area == 0 or row.get("area", area) != area:
                lines.append(f"{self.source.path}: segment {row['id']} of {path.name} {text}")
        return lines

    def masks(self, categories: CategorySet) -> list[dict[str, Any]]:
        """The things, as rows of COCO's instance format."""
        things = [row for row in self.rows if categories[categories.channels[row["category_id"]]].is_thing]
        return mask_rows(self.ids, things)


def _png(source: PanopticJson, image_id: int | str) -> str:
    """Path of a PNG; a plain string, since making a `Path` takes a hundredth of the time that scoring does."""
    return f"{source.png_dir}/{source.annotations[image_id]['file_name']}"


def _unlisted_is_void(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[n + 2, m + 2] with ids without a row in row and column 0 -> [n + 1, m + 1] with those in void."""
    counts[1] += counts[0]
    counts[:, 1] += counts[:, 0]
    return counts[1:, 1:]
