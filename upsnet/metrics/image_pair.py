"""One truth PNG against one predicted PNG, with every contradiction between files, JSON and pixels named."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.data.coco import PanopticJson
from upsnet.data.panoptic_png import read_panoptic_png
from upsnet.files import read_image
from upsnet.metrics.boundary import boundary_iou
from upsnet.metrics.image_scores import ImageScores
from upsnet.metrics.instance_ap import ImageInstances, mask_rows
from upsnet.metrics.matching import SegmentTable, match_counts
from upsnet.metrics.report.collector import ImagePair, ImageRow
from upsnet.ops.id_maps import count_pairs, rows_of_ids


@dataclass
class PairResult:
    """What is kept of a pair.

    Attributes:
        image_id: as in the truth's JSON.
        problems: one line each.
        scores: None where the truth cannot be read; the image then counts nowhere.
        instances: for AP, report: for the report, where they are asked for.
    """

    image_id: int | str
    problems: list[str] = field(default_factory=list)
    scores: ImageScores | None = None
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
    segments: tuple[dict[int | str, _Segments], ...] = field(init=False, repr=False)
    buffers: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        truth = {i: _Segments.of(self.truth, i, with_crowds=True) for i in self.truth.annotations}
        predicted = {i: _Segments.of(self.predicted, i, with_crowds=False) for i in self.predicted.annotations}
        object.__setattr__(self, "segments", (truth, predicted))

    def __call__(self, image_id: int | str) -> PairResult:
        """Scores an annotated image of the truth."""
        result = PairResult(image_id)
        sides = self._sides(image_id, result.problems)
        if sides is None:
            return result
        (truth, true_ids), (predicted, ids) = sides
        counts = count_pairs(true_ids, truth.known, ids, predicted.known)
        for source, segments, pixels, own in (
            (self.truth, truth, np.add.reduce(counts, 1), true_ids),
            (self.predicted, predicted, np.add.reduce(counts, 0), ids),
        ):
            if not segments.agree(pixels):
                result.problems += _contradictions(source, image_id, segments, pixels, own)
        found = match_counts(_unlisted_is_void(counts), truth.table, predicted.table)
        limit = None
        if self.boundary:
            limit = boundary_iou(true_ids, truth.known[1:], ids, predicted.known[1:])
        result.scores = ImageScores.of(found, self.truth.categories, limit)
        if self.detections:
            masks = _things(self.truth, image_id, true_ids) if self.truth_masks else []
            found_masks = _things(self.predicted, image_id, ids) if image_id in self.predicted.annotations else []
            result.instances = ImageInstances(image_id, true_ids.shape, masks, found_masks)
        if self.report:
            name = self.truth.images[image_id]["file_name"]
            result.report = ImageRow.of(name, found, self._scores(image_id, predicted))
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
        maps = [rows_of_ids(ids, segments.known[1:]) for segments, ids in sides]
        name = self.truth.images[image_id]["file_name"]
        picture = None if image_dir is None else partial(read_image, image_dir / name, apply_exif=False)
        truth, predicted = (segments for segments, _ in sides)
        return ImagePair(maps[0], truth.table, maps[1], predicted.table, self._scores(image_id, predicted), picture)

    def _sides(self, image_id: int | str, problems: list[str]) -> tuple[_Side, _Side] | None:
        """Truth and prediction of an image; None where the truth cannot be read."""
        true_ids = self._read(0, image_id, problems)
        if true_ids is None:
            return None
        ids = self._read(1, image_id, problems) if image_id in self.predicted.annotations else None
        if ids is not None and ids.shape != true_ids.shape:
            path = _png(self.predicted, image_id)
            problems.append(f"{path}: prediction has size {ids.shape}, expected {true_ids.shape} as the truth")
            ids = None
        truth = (self.segments[0][image_id], true_ids)
        if ids is None:
            return truth, (_Segments.none(), np.zeros_like(true_ids))
        return truth, (self.segments[1][image_id], ids)

    def _scores(self, image_id: int | str, predicted: _Segments) -> npt.NDArray[np.float64]:
        """float64 [m] of the predicted segments, NaN where the JSON gives none."""
        rows = self.predicted.annotations[image_id]["segments_info"] if len(predicted.table.classes) else []
        known = [row for row in rows if row["category_id"] in self.predicted.categories.channels]
        return np.array([row.get("score", np.nan) for row in known], dtype=np.float64)

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


@dataclass(frozen=True, slots=True)
class _Segments:
    """The JSON rows of an image, as arrays.

    Attributes:
        known: int32 [n + 1], 0 and the ids of the rows whose category is known; table: those rows.
        areas: int64 [n], as the JSON says, -1 where it says nothing.
        unknown: ids of the other rows.
    """

    known: npt.NDArray[np.int32]
    table: SegmentTable
    areas: npt.NDArray[np.int64]
    unknown: list[int]

    @classmethod
    def of(cls, source: PanopticJson, image_id: int | str, *, with_crowds: bool) -> _Segments:
        channels, every = source.categories.channels, source.annotations[image_id]["segments_info"]
        rows = [row for row in every if row["category_id"] in channels]
        crowds = [with_crowds and bool(row.get("iscrowd")) for row in rows]
        table = SegmentTable.of([channels[row["category_id"]] for row in rows], crowds)
        unknown = [row["id"] for row in every if row["category_id"] not in channels]
        known = np.array([0, *[row["id"] for row in rows]], dtype=np.int32)
        return cls(known, table, np.array([row.get("area", -1) for row in rows], dtype=np.int64), unknown)

    @classmethod
    def none(cls) -> _Segments:
        """No segment."""
        return cls(np.zeros(1, dtype=np.int32), SegmentTable.of([]), np.zeros(0, dtype=np.int64), [])

    def agree(self, pixels: npt.NDArray[np.int64]) -> bool:
        """Whether the PNG has the ids and areas of the JSON; `pixels` [n + 2] of ids without a row, void, each row."""
        said, found = self.areas, pixels[2:]
        return not pixels[0] and bool((((said == found) | (said < 0)) & (found > 0)).all())


_Side = tuple[_Segments, npt.NDArray[np.int32]]
"""The rows of an image, and its ids int32 [H, W] as in the PNG."""


def _contradictions(
    source: PanopticJson,
    image_id: int | str,
    segments: _Segments,
    pixels: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int32],
) -> list[str]:
    """What `_Segments.agree` denies, in words; an area that the JSON does not give contradicts nothing."""
    lines: list[str] = []
    path = Path(_png(source, image_id))
    listed = np.concatenate([segments.known, np.array(segments.unknown, dtype=np.int32)])
    stray = np.setdiff1d(ids, listed) if pixels[0] else listed[:0]
    if len(stray):
        lines.append(
            f"{path}: segment id {', '.join(map(str, stray[:5].tolist()))} is not in {source.path}, "
            "expected every id of the PNG (but 0) there"
        )
    for number, area, said in zip(
        segments.known[1:].tolist(), pixels[2:].tolist(), segments.areas.tolist(), strict=True
    ):
        text = f"has area {said}, its pixels are {area}" if area else "has no pixel"
        if area == 0 or said not in (area, -1):
            lines.append(f"{source.path}: segment {number} of {path.name} {text}")
    return lines


def _things(source: PanopticJson, image_id: int | str, ids: npt.NDArray[np.int32]) -> list[dict[str, Any]]:
    """The things, as rows of COCO's instance format."""
    things = {category.id for category in source.categories.categories if category.is_thing}
    return mask_rows(
        ids, [row for row in source.annotations[image_id]["segments_info"] if row["category_id"] in things]
    )


def _png(source: PanopticJson, image_id: int | str) -> str:
    """Path of a PNG; a plain string, since making a `Path` takes a hundredth of the time that scoring does."""
    return f"{source.png_dir}/{source.annotations[image_id]['file_name']}"


def _unlisted_is_void(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[n + 2, m + 2] with ids without a row in row and column 0 -> [n + 1, m + 1] with those in void."""
    counts[1] += counts[0]
    counts[:, 1] += counts[:, 0]
    return counts[1:, 1:]
