"""One truth PNG against one predicted PNG, with every contradiction between files, JSON and pixels named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.io.annotation import ODD_AREA, Annotation
from upsnet.io.images import read_image
from upsnet.io.panoptic_json import PanopticJson
from upsnet.io.panoptic_png import read_panoptic_png
from upsnet.metrics.boundary import boundary_iou
from upsnet.metrics.image_scores import ImageScores
from upsnet.metrics.instance_ap import ImageInstances, mask_rows
from upsnet.metrics.matching import Matching, SegmentTable, match_counts
from upsnet.ops.id_maps import IntArray, count_pairs, rows_of_ids


@dataclass(frozen=True)
class ImagePair:
    """What the pictures of an image are made of.

    Attributes:
        truth_map, truth, predicted_map, predicted: see `match_segments`.
        scores: [m], of the predicted segments, 0..1, or None.
        picture: gives the photograph, uint8 RGB, which is resized to the maps; or None.
    """

    truth_map: IntArray
    truth: SegmentTable
    predicted_map: IntArray
    predicted: SegmentTable
    scores: npt.NDArray[np.floating] | None = None
    picture: Callable[[], npt.NDArray[np.uint8]] | None = None


class ImageReport(Protocol):
    """Receives every scored image, in addition to the metrics. `report.collector.ReportCollector` implements it."""

    def describe(self, file_name: str, found: Matching, scores: npt.NDArray[np.floating] | None, /) -> Any:
        """Summarises a matched image; called in worker processes.

        Args:
            file_name: of the image.
            found: its matching.
            scores: [m], of the predicted segments, 0..1, NaN where there is none; or None.

        Returns:
            A summary that can be pickled.
        """
        ...

    def add(self, key: Any, row: Any, /) -> None:
        """Takes the summary `row` of the image with the id `key`; called in the main process."""
        ...

    def illustrate(self, read: Callable[[Any], ImagePair], /) -> list[str]:
        """Draws the images that the report shows.

        Args:
            read: returns the maps of an image id.

        Returns:
            One line for each image file that cannot be read.
        """
        ...


@dataclass
class PairResult:
    """What is kept of a pair.

    Attributes:
        image_id: as in the truth's JSON.
        problems: one line each.
        scores: None where the truth cannot be read; the image then counts nowhere.
        instances: for AP; report: what `describe` returned; None where they are not asked for.
    """

    image_id: int | str
    problems: list[str] = field(default_factory=list)
    scores: ImageScores | None = None
    instances: ImageInstances | None = None
    report: Any = None


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
        describe: summarises a matched image (`ImageReport.describe`).
    """

    truth: PanopticJson
    predicted: PanopticJson
    boundary: bool = False
    detections: bool = False
    truth_masks: bool = False
    describe: Callable[[str, Matching, npt.NDArray[np.floating] | None], Any] | None = None
    buffers: dict[int, npt.NDArray[np.int32]] = field(default_factory=dict, repr=False)

    def __call__(self, image_id: int | str) -> PairResult:
        """Scores an annotated image of the truth."""
        result = PairResult(image_id)
        sides = self._sides(image_id, result.problems)
        if sides is None:
            return result
        (truth, true_ids), (predicted, ids) = sides
        tables = _tables(truth, predicted)
        counts = count_pairs(true_ids, truth.known, ids, predicted.known)
        for source, segments, pixels, own in (
            (self.truth, truth, np.add.reduce(counts, 1), true_ids),
            (self.predicted, predicted, np.add.reduce(counts, 0), ids),
        ):
            if not _agree(segments, pixels):
                result.problems += _contradictions(source, segments, pixels, own)
        inter = _unlisted_is_void(counts)
        if self.boundary:
            limit = boundary_iou(true_ids, truth.known[1:], ids, predicted.known[1:])
            result.scores = ImageScores.of(match_counts(inter, *tables), self.truth.categories, limit)
        else:
            result.scores = ImageScores.of_counts(inter, *tables, self.truth.categories)
        result.scores = result.scores.named(self.truth.images.file_name(image_id), true_ids.shape)
        if self.detections:
            masks = _things(truth, true_ids, self.truth.categories) if self.truth_masks else []
            found_masks = _things(predicted, ids, self.truth.categories)
            result.instances = ImageInstances(image_id, true_ids.shape, masks, found_masks)
        if self.describe is not None:
            file_name = self.truth.images[image_id].file_name
            result.report = self.describe(file_name, match_counts(inter, *tables), _scores(predicted))
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
        name = self.truth.images[image_id].file_name
        picture = None if image_dir is None else partial(read_image, image_dir / name, apply_exif=False)
        truth, predicted = (segments for segments, _ in sides)
        tables = _tables(truth, predicted)
        return ImagePair(maps[0], tables[0], maps[1], tables[1], _scores(predicted), picture)

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
        truth = self.truth.annotations[image_id]
        if ids is None:
            return (truth, true_ids), (truth.without_segments(), np.zeros_like(true_ids))
        return (truth, true_ids), (self.predicted.annotations[image_id], ids)

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


_Side = tuple[Annotation, npt.NDArray[np.int32]]
"""The segments of an image, and its ids int32 [H, W] as in the PNG."""


def _tables(truth: Annotation, predicted: Annotation) -> tuple[SegmentTable, SegmentTable]:
    """Both sides as the matching wants them: a prediction knows no crowd."""
    return SegmentTable(truth.classes, truth.is_crowd), SegmentTable.of(predicted.classes)


def _scores(predicted: Annotation) -> npt.NDArray[np.float64]:
    """float64 [m] of the predicted segments, NaN where the JSON gives none."""
    return np.full(len(predicted.classes), np.nan) if predicted.scores is None else predicted.scores


def _agree(segments: Annotation, pixels: npt.NDArray[np.int64]) -> bool:
    """Whether the PNG has the ids and areas of the JSON; `pixels` [n + 2] of ids without a row, void, each row."""
    said, found = segments.areas, pixels[2:]
    return not pixels[0] and bool((((said == found) | (said == -1)) & (found > 0)).all())


def _contradictions(
    source: PanopticJson, segments: Annotation, pixels: npt.NDArray[np.int64], ids: npt.NDArray[np.int32]
) -> list[str]:
    """What `_agree` denies, in words; an area that the JSON does not give contradicts nothing."""
    lines: list[str] = []
    path = source.png_dir / segments.file_name
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
        stated = "an area that is no number" if said == ODD_AREA else f"area {said}"
        text = f"has {stated}, its pixels are {area}" if area else "has no pixel"
        if area == 0 or said not in (area, -1):
            lines.append(f"{source.path}: segment {number} of {path.name} {text}")
    return lines


def _things(segments: Annotation, ids: npt.NDArray[np.int32], categories: CategorySet) -> list[dict[str, Any]]:
    """The things, as rows of COCO's instance format."""
    columns = (segments.known[1:], segments.classes, segments.is_crowd, _scores(segments))
    rows = [
        {"id": number, "category_id": categories[channel].id, "iscrowd": crowd}
        | ({} if np.isnan(score) else {"score": score})
        for number, channel, crowd, score in zip(*(column.tolist() for column in columns), strict=True)
        if categories[channel].is_thing
    ]
    return mask_rows(ids, rows)


def _png(source: PanopticJson, image_id: int | str) -> str:
    """Path of a PNG; a plain string, since making a `Path` takes a hundredth of the time that scoring does."""
    return f"{source.png_dir}/{source.annotations.file_name(image_id)}"


def _unlisted_is_void(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[n + 2, m + 2] with ids without a row in row and column 0 -> [n + 1, m + 1] with those in void."""
    counts[1] += counts[0]
    counts[:, 1] += counts[:, 0]
    return counts[1:, 1:]
