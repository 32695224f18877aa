"""A data set in COCO panoptic layout as its files are: the JSON read with every fault named and stepped over."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import Category, CategorySet
from upsnet.doctor.checks import Problem
from upsnet.io.annotation import Annotation, ImageFile, SegmentColumns, pack_segments, require_panoptic, segment_faults
from upsnet.io.files import read_json
from upsnet.io.panoptic_json import read_annotation_row, read_image_row
from upsnet.json_values import ImageId, image_id, match_image_ids, number
from upsnet.text import shown

BOXES = "boxes"


@dataclass
class CocoFiles:
    """The files of one split, in the order of the JSON; images and annotations that cannot be used are left out.

    Attributes:
        categories: the usable ones.
        images: by id; annotations: of those that have one.
        boxes: image id -> float32 [n, 4], (x, y, width, height) of each segment as the JSON says; NaN where it says
            nothing or nonsense.
        problems: what was found in the JSON.
        png_names: of the annotations.
        usable_categories: the rows of `categories` that can be used, by their numbers.
    """

    json_path: Path
    image_dir: Path
    png_dir: Path
    categories: CategorySet
    images: dict[ImageId, ImageFile] = field(default_factory=dict)
    annotations: dict[ImageId, Annotation] = field(default_factory=dict)
    boxes: dict[ImageId, npt.NDArray[np.float32]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    png_names: set[str] = field(default_factory=set)
    usable_categories: dict[int, Category] = field(default_factory=dict)

    @property
    def num_skipped(self) -> int:
        """Images that training does not see, for whatever reason the JSON gives."""
        return len(self.images) - len(self.annotations)


def read_coco(json_path: Path, image_dir: Path, png_dir: Path | None = None) -> CocoFiles:
    """Reads the JSON; of its segments a few dozen bytes each are kept.

    Args:
        json_path: COCO-panoptic JSON.
        image_dir: folder of the pictures.
        png_dir: folder of the PNGs; by default the JSON's path without `.json`.

    Raises:
        FileNotFoundError, ValueError: a file or folder is not there, or the JSON is no COCO-panoptic JSON at all.
    """
    document = read_json(json_path, pack_with_boxes)
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise ValueError(f"{json_path}: no list '{key}', expected a COCO-panoptic JSON")
    require_panoptic(json_path, document["annotations"])
    png_dir = png_dir or json_path.with_suffix("")
    for folder, what in ((image_dir, "pictures"), (png_dir, "id PNGs")):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of {what} (for {json_path})")
    problems: list[Problem] = []
    categories, usable = _categories(document["categories"], json_path, problems)
    files = CocoFiles(json_path, image_dir, png_dir, categories, problems=problems, usable_categories=usable)
    _read_images(document["images"], files)
    _read_annotations(document["annotations"], files)
    lacking = [image.file_name for key, image in files.images.items() if key not in files.annotations]
    problems += [Problem("image-without-annotation", name) for name in lacking]
    return files


def pack_with_boxes(row: dict[str, Any]) -> dict[str, Any]:
    """`annotation.pack_segments`, and the boxes beside the columns."""
    segments = row.get("segments_info")
    packed = pack_segments(row)
    if isinstance(packed.get("segments_info"), SegmentColumns):
        packed[BOXES] = array("f", [value for segment in segments or [] for value in _box(segment.get("bbox"))])
    return packed


def _box(value: Any) -> list[float]:
    if isinstance(value, list) and len(value) == 4:
        sides: list[Any] = value if {*map(type, value)} <= {int, float} else [number(side) for side in value]
        if None not in sides:
            return [side if abs(side) < 1e9 else float("nan") for side in sides]
    return [float("nan")] * 4


def _categories(rows: list[Any], source: Path, problems: list[Problem]) -> tuple[CategorySet, dict[int, Category]]:
    """The rows that can be used, the first of each id and name, and the same by their numbers."""
    usable: list[dict[str, Any]] = []
    found: dict[int, Category] = {}
    for index, row in enumerate(rows):
        try:
            category = CategorySet.from_json([row], source="category")[0]
        except (ValueError, TypeError, AttributeError) as error:
            text = str(error).removeprefix("category: ")
            problems.append(Problem("category-field", source.name, f"row {index}: {text}"))
            continue
        twice = [key for key in ("id", "name") if getattr(category, key) in [getattr(c, key) for c in found.values()]]
        problems += [Problem(f"category-{key}-twice", source.name, f"{getattr(category, key)!r}") for key in twice]
        if not twice:
            usable.append(row)
            found[index] = category
    return CategorySet.from_json(usable, source=str(source)), found


def _read_images(rows: list[Any], files: CocoFiles) -> None:
    for index, row in enumerate(rows):
        values = row if isinstance(row, dict) else {}
        try:
            key, image = read_image_row(values)
        except ValueError as error:
            name = str(values.get("file_name", f"image {index}"))
            files.problems.append(Problem("json-row", name, f"image {error}"))
            continue
        if key in files.images:
            files.problems.append(Problem("image-id-twice", image.file_name, f"id {key}"))
        files.images[key] = image


def _read_annotations(rows: list[Any], files: CocoFiles) -> None:
    ids = [image_id(row.get("image_id")) if isinstance(row, dict) else None for row in rows]
    matched = match_image_ids((given for given in ids if given is not None), files.images)
    for row, given in zip(rows, ids, strict=True):
        values = row if isinstance(row, dict) else {}
        try:
            name, columns = read_annotation_row(values)
            if given is None:
                raise ValueError(f"has image_id {shown(values.get('image_id'))}, expected a whole number or a text")
        except ValueError as error:
            name = str(values.get("file_name") or f"annotation of {shown(values.get('image_id'))}")
            files.problems.append(Problem("json-row", name, f"annotation {error}"))
            continue
        key, detail = matched.get(given), f"image_id {shown(given)}"
        if key is None:
            files.problems.append(Problem("annotation-without-image", name, detail))
        elif key in files.annotations:
            files.problems.append(Problem("annotation-twice", name, detail))
        else:
            if name in files.png_names:
                files.problems.append(Problem("png-named-twice", name, detail))
            files.png_names.add(name)
            _add(key, name, columns, np.array(values[BOXES], dtype=np.float32).reshape(-1, 4), files)


def _add(key: ImageId, name: str, columns: SegmentColumns, boxes: npt.NDArray[np.float32], files: CocoFiles) -> None:
    """Adds the annotation of an image, without segments that have no id of their own."""
    good = _good_rows(name, columns, files)
    columns = columns.take(good)
    channels = [files.categories.channels.get(category) for category in columns.categories]
    files.annotations[key] = Annotation.of(name, columns, channels)
    files.boxes[key] = boxes[good][[channel is not None for channel in channels]]


CHECK_OF_KEY = {"id": "segment-id", "category_id": "segment-category", "iscrowd": "segment-crowd"}
"""A score is not checked, because a ground truth needs none."""


def _good_rows(name: str, columns: SegmentColumns, files: CocoFiles) -> list[int]:
    """The rows of the segments that have an id of their own; notes what is wrong with any segment."""
    faults = segment_faults(columns, files.categories.channels)
    files.problems += [
        Problem(CHECK_OF_KEY[fault.key], name, fault.text) for fault in faults if fault.key in CHECK_OF_KEY
    ]
    without_id = {fault.at for fault in faults if fault.key == "id"}
    return [at for at in range(len(columns.ids)) if at not in without_id]


def category_differences(expected: CategorySet, found: CategorySet) -> list[str]:
    """How `found` contradicts `expected`, a line for each id."""
    lines = []
    ours = {c.id: c for c in expected.categories}
    for theirs in found.categories:
        mine = ours.pop(theirs.id, None)
        if mine is None:
            lines.append(f"id {theirs.id} ({theirs.name}) is not expected")
        elif (mine.name, mine.is_thing) != (theirs.name, theirs.is_thing):
            kinds = [f"{c.name}, {'thing' if c.is_thing else 'stuff'}" for c in (theirs, mine)]
            lines.append(f"id {theirs.id} is {kinds[0]}; expected {kinds[1]}")
    return lines + [f"id {c.id} ({c.name}) is missing" for c in ours.values()]


def unnamed_files(splits: dict[str, CocoFiles]) -> list[tuple[str, Problem]]:
    """(split, problem) for each PNG in the folders that no JSON names."""
    named: dict[Path, set[str]] = {}
    for files in splits.values():
        names = {str(PurePosixPath(row.file_name)) for row in files.annotations.values()}
        named.setdefault(files.png_dir.resolve(), set()).update(names)
    found = []
    for split, files in splits.items():
        folder = files.png_dir.resolve()
        if folder in named:
            names = named.pop(folder)
            there = (path.relative_to(files.png_dir) for path in files.png_dir.rglob("*.png"))
            visible = {path.as_posix() for path in there if not any(part.startswith(".") for part in path.parts)}
            found += [(split, Problem("file-unnamed", name)) for name in sorted(visible - names)]
    return found
