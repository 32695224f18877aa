"""`per_image.json`: the scores and the segments of each image. Other programs can compute all other scores from it.

| key | content |
| --- | --- |
| `format` | 2. Earlier versions wrote a list without a format number; it is called format 1 |
| `categories` | id, name and isthing of each class |
| `images` | one object for each image, each on its own line |

An image has `image_id`, `file_name`, `height`, `width`; its own `pq`, `sq`, `rq` (means over the `n` classes in it,
percent, null if no segment counts), `tp`, `fp`, `fn`; and the segments behind them: `matched` with rows [category id,
area, IoU], `missed` and `spurious` with rows [category id, area, cause of the error]. An area is the number of pixels
of the true segment; in `spurious`, of the prediction. Crowds are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upsnet.categories import CategorySet
from upsnet.io.files import atomic_path, read_json
from upsnet.io.panoptic_json import MAX_SIDE
from upsnet.json_values import image_id, number, whole_number
from upsnet.metrics.error_causes import CAUSES, NO_ERROR
from upsnet.metrics.image_scores import ImageScores
from upsnet.metrics.score_table import MATCHED, MISSED, SPURIOUS, ScoreTable
from upsnet.metrics.slices import ImageFacts
from upsnet.text import shown

FORMAT = 2
KINDS = (("matched", MATCHED), ("missed", MISSED), ("spurious", SPURIOUS))
LIMITS = {**dict.fromkeys(("pq", "sq", "rq"), 100), **dict.fromkeys(("n", "tp", "fp", "fn"), MAX_SIDE**2)}
"""Scores and counts of an image, and the largest value of each."""


def segment_lists(scores: ImageScores, categories: CategorySet) -> dict[str, list[list[Any]]]:
    """`matched`, `missed` and `spurious` of an image."""
    own = scores.segments
    found: dict[str, list[list[Any]]] = {name: [] for name, _ in KINDS}
    columns = (own.classes.tolist(), own.areas.tolist(), own.ious.tolist(), own.causes.tolist())
    for row, (channel, area, iou, cause) in enumerate(zip(*columns, strict=True)):
        name = "matched" if cause == NO_ERROR else "missed" if row < own.num_true else "spurious"
        found[name].append([categories[channel].id, area, iou if cause == NO_ERROR else CAUSES[cause]])
    return found


def write_per_image(path: Path, document: dict[str, Any]) -> None:
    """Writes the file atomically, one line for each image."""
    rows = ",\n  ".join(json.dumps(row) for row in document["images"])
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in document.items() if key != "images")
    with atomic_path(path) as temporary:
        temporary.write_text(f'{{\n{head} "images": [\n  {rows}\n ]\n}}\n')


@dataclass(frozen=True)
class Evaluation:
    """The images of an evaluation folder.

    Attributes:
        folder: the folder, which contains `per_image.json`.
        metrics: contents of `metrics.json`; None if there is no such file.
        rows: image id -> `pq`, `sq`, `rq`, `n`, `tp`, `fp`, `fn` of the image.
        facts: image id -> name and size; empty in format 1.
        categories: the classes; None in format 1.
        segments: image id -> columns kind, area, iou, outcome, cause; empty in format 1.
    """

    folder: Path
    metrics: dict[str, Any] | None
    rows: dict[int | str, dict[str, float | None]]
    facts: dict[int | str, ImageFacts]
    categories: CategorySet | None
    segments: dict[int | str, np.ndarray]

    def table(self, keys: list[int | str]) -> ScoreTable:
        """The segments of the images in the order of `keys`; the file has format 2."""
        parts = [self.segments[key] for key in keys]
        image = np.repeat(np.arange(len(keys)), [part.shape[1] for part in parts])
        kind, area, iou, outcome, cause = np.concatenate([np.zeros((5, 0)), *parts], axis=1)
        whole = (column.astype(np.int64) for column in (kind, area, outcome, cause))
        kind, area, outcome, cause = whole
        return ScoreTable(len(keys), image, kind, area, iou, outcome, cause)


def read_evaluation(folder: Path) -> Evaluation:
    """Reads a folder that `upsnet evaluate --output` wrote, of any format.

    Raises:
        FileNotFoundError, ValueError: a file is missing or cannot be used; the message names it and the row.
    """
    path = folder / "per_image.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, expected a folder that `upsnet evaluate --output {folder}` wrote for panoptic "
            "predictions"
        )
    document = read_json(path)
    has_metrics = (folder / "metrics.json").is_file()
    metrics = read_json(folder / "metrics.json") if has_metrics else None
    if has_metrics and not isinstance(metrics, dict):
        raise ValueError(f"{folder / 'metrics.json'}: not a JSON object, expected a file that `upsnet evaluate` wrote")
    if isinstance(document, list):
        return Evaluation(folder, metrics, _scores(path, _rows(path, document)), {}, None, {})
    if not isinstance(document, dict) or "format" not in document:
        raise ValueError(f"{path}: no format number, expected a file that `upsnet evaluate` wrote")
    if document["format"] != FORMAT:
        raise ValueError(
            f"{path}: format {shown(document['format'])}, expected 1 to {FORMAT}; update upsnet to read it"
        )
    categories = CategorySet.from_json(document.get("categories", []), source=str(path))
    rows = _rows(path, document.get("images"))
    facts = {key: _facts(path, key, row) for key, row in rows.items()}
    segments = {key: _segments(path, key, row, categories) for key, row in rows.items()}
    return Evaluation(folder, metrics, _scores(path, rows), facts, categories, segments)


def _rows(path: Path, images: Any) -> dict[int | str, dict[str, Any]]:
    if not isinstance(images, list):
        raise ValueError(f"{path}: no list of images, expected a file that `upsnet evaluate` wrote")
    found: dict[int | str, dict[str, Any]] = {}
    for position, row in enumerate(images):
        key = image_id(row.get("image_id")) if isinstance(row, dict) else None
        if key is None or any(name not in row for name in LIMITS):
            raise ValueError(f"{path}: row {position} of `images` lacks image_id or one of {', '.join(LIMITS)}")
        if key in found:
            raise ValueError(f"{path}: image {shown(key)} appears twice, expected once")
        found[key] = row
    return found


def _scores(path: Path, rows: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, float | None]]:
    scores = {key: {name: number(row[name]) for name in LIMITS} for key, row in rows.items()}
    for key, own in scores.items():
        for name, value in own.items():
            is_sound = value is None if rows[key][name] is None else value is not None and 0 <= value <= LIMITS[name]
            if not is_sound:
                raise ValueError(
                    f"{path}: image {shown(key)}: {name} is {shown(rows[key][name])}, expected null or a number from 0 "
                    f"to {LIMITS[name]}"
                )
    return scores


def _facts(path: Path, key: int | str, row: dict[str, Any]) -> ImageFacts:
    name, height, width = row.get("file_name"), whole_number(row.get("height")), whole_number(row.get("width"))
    if not isinstance(name, str) or height is None or width is None:
        raise ValueError(f"{path}: image {shown(key)} lacks file_name, height or width")
    if not (0 <= height <= MAX_SIDE and 0 <= width <= MAX_SIDE):
        raise ValueError(f"{path}: image {shown(key)} has size {height} x {width}, expected sides up to {MAX_SIDE}")
    return ImageFacts(key, name, (height, width))


def _segments(path: Path, key: int | str, row: dict[str, Any], categories: CategorySet) -> np.ndarray:
    """Columns kind, area, iou, outcome, cause, float64 [5, k]."""
    codes = {name: code for code, name in enumerate(CAUSES)}
    columns = []
    for name, outcome in KINDS:
        try:
            for category, area, last in row[name]:
                iou, cause = (last, NO_ERROR) if outcome == MATCHED else (0.0, codes[last])
                columns.append((categories.channels[category], area, iou, outcome, cause))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}: image {shown(key)}: `{name}` is missing or has a row other than [category id, area, "
                "IoU or cause of the error]"
            ) from None
    try:
        found = np.array(columns, dtype=np.float64).reshape(-1, 5).T
        is_sound = bool(((found[1] >= 0) & (found[1] <= MAX_SIDE**2) & (found[2] >= 0) & (found[2] <= 1)).all())
    except (TypeError, ValueError, OverflowError):
        is_sound = False
    if not is_sound:
        raise ValueError(
            f"{path}: image {shown(key)} has an area or an IoU out of range, expected a number of pixels, and 0 to 1"
        )
    return found
