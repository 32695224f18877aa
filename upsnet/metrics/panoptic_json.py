"""Scores existing COCO-panoptic files, truth against predictions, without a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from upsnet.data.coco import PanopticJson
from upsnet.files import read_image
from upsnet.metrics.panoptic_quality import PanopticQuality, SegmentTable, match_segments
from upsnet.metrics.report.collector import ImagePair, ImageRow, ReportCollector


def evaluate_files(
    truth_json: Path,
    predicted_json: Path,
    truth_dir: Path | None = None,
    predicted_dir: Path | None = None,
    *,
    report: ReportCollector | None = None,
    image_dir: Path | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """Scores every annotated image of the truth; predictions for other images are left aside.

    Args:
        truth_json, predicted_json: COCO-panoptic JSON files.
        truth_dir, predicted_dir: folders of their PNGs; by default the JSON's path without `.json`.
        report: takes every image; image_dir: folder of the photographs for it.
        progress: show a bar.

    Returns:
        The contents of `metrics.json`, and one line for each segment whose JSON area is not its number of pixels
        (the pixels count).

    Raises:
        FileNotFoundError, ValueError: an image has no prediction, a PNG and its JSON disagree, or the sizes differ;
            the message names the file.
    """
    truth = PanopticJson(truth_json, truth_dir)
    if image_dir is not None:
        _require_photographs(truth, image_dir)
    predicted = PanopticJson(predicted_json, predicted_dir, truth.categories, truth.images)
    missing = [row["file_name"] for image_id, row in truth.annotations.items() if image_id not in predicted.annotations]
    if missing:
        raise ValueError(
            f"{predicted_json}: no prediction for {len(missing)} of {len(truth.annotations)} images, "
            f"the first is {missing[0]}"
        )
    quality = PanopticQuality(truth.categories)
    reports: list[str] = []
    for image_id in tqdm(truth.annotations, desc="evaluate", disable=not progress, leave=False):
        maps, tables = [], []
        for source in (truth, predicted):
            classes, is_crowd, rows = source.segments(image_id)
            ids = source.segment_map(image_id)
            areas = np.bincount(ids.ravel(), minlength=len(rows) + 1)[1:]
            name = source.annotations[image_id]["file_name"]
            for row, area in zip(rows, areas.tolist(), strict=True):
                if row.get("area", area) != area:
                    reports.append(
                        f"{source.path}: segment {row['id']} of {name} has area {row['area']}, its pixels are {area}"
                    )
                if area == 0 and source is predicted:
                    raise ValueError(
                        f"{source.path}: segment id {row['id']} has no pixel in {name}, expected at least one"
                    )
            maps.append(ids)
            tables.append(SegmentTable.of(classes, is_crowd if source is truth else None))
        try:
            quality.update(image_id, maps[0], tables[0], maps[1], tables[1])
        except ValueError as error:
            raise ValueError(f"{predicted.png_dir / predicted.annotations[image_id]['file_name']}: {error}") from None
        if report is not None:
            found = match_segments(maps[0], tables[0], maps[1], tables[1])
            report.add(image_id, ImageRow.of(truth.images[image_id]["file_name"], found, _scores(predicted, image_id)))
    if report is not None:
        report.illustrate(partial(_read_pair, truth, predicted, image_dir))
    return {"panoptic": quality.compute(), "semantic": None, "instance": None}, reports


def _scores(predicted: PanopticJson, image_id: int | str) -> npt.NDArray[np.float64]:
    rows = predicted.annotations[image_id]["segments_info"]
    return np.array([row.get("score", np.nan) for row in rows], dtype=np.float64)


def _read_pair(truth: PanopticJson, predicted: PanopticJson, image_dir: Path | None, image_id: int | str) -> ImagePair:
    """Reads an image again, for the pictures of the report."""
    tables = [SegmentTable.of(*truth.segments(image_id)[:2]), SegmentTable.of(predicted.segments(image_id)[0])]
    name = truth.images[image_id]["file_name"]
    return ImagePair(
        truth.segment_map(image_id),
        tables[0],
        predicted.segment_map(image_id),
        tables[1],
        _scores(predicted, image_id),
        None if image_dir is None else partial(read_image, image_dir / name, apply_exif=False),
    )


def _require_photographs(truth: PanopticJson, folder: Path) -> None:
    """Asks before the long work, not after it."""
    names = [row["file_name"] for row in truth.images.values() if row["id"] in truth.annotations]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{folder / absent[0]}: no such photograph ({len(absent)} of {len(names)} are missing)")
