"""A data set in COCO panoptic layout as its files are: the JSON read with every fault named and stepped over."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.doctor.checks import Problem
from upsnet.io.annotation import Annotation, ImageFile, SegmentColumns, pack_segments, require_panoptic
from upsnet.io.files import name_fault, read_json
from upsnet.io.panoptic_json import image_faults
from upsnet.io.panoptic_png import MAX_ID

ImageId = int | str
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
        usable_categories: numbers of the rows of `categories` that can be used.
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
    usable_categories: set[int] = field(default_factory=set)

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
    for row in document["annotations"]:
        _read_annotation(row, files)
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
    if isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value):
        return [v if abs(v) < 1e9 else float("nan") for v in value]
    return [float("nan")] * 4


def _categories(rows: list[Any], source: Path, problems: list[Problem]) -> tuple[CategorySet, set[int]]:
    """The rows that can be used, the first of each id and name, and their numbers."""
    usable: list[dict[str, Any]] = []
    numbers: set[int] = set()
    for number, row in enumerate(rows):
        try:
            category = CategorySet.from_json([row], source="category")[0]
        except (ValueError, TypeError, AttributeError) as error:
            text = str(error).removeprefix("category: ")
            problems.append(Problem("category-field", source.name, f"row {number}: {text}"))
            continue
        twice = [key for key in ("id", "name") if any(getattr(category, key) == other[key] for other in usable)]
        problems += [Problem(f"category-{key}-twice", source.name, f"{getattr(category, key)!r}") for key in twice]
        if not twice:
            usable.append({**row, "id": category.id, "name": category.name})
            numbers.add(number)
    return CategorySet.from_json(usable, source=str(source)), numbers


def _read_images(rows: list[Any], files: CocoFiles) -> None:
    for number, row in enumerate(rows):
        values = row if isinstance(row, dict) else {}
        if faults := image_faults(values):
            name = str(values.get("file_name", f"image {number}"))
            files.problems.append(Problem("json-row", name, f"image {'; '.join(faults)}"))
            continue
        if values["id"] in files.images:
            files.problems.append(Problem("image-id-twice", values["file_name"], f"id {values['id']}"))
        files.images[values["id"]] = ImageFile(values["file_name"], values["height"], values["width"])


def _read_annotation(row: Any, files: CocoFiles) -> None:
    values = row if isinstance(row, dict) else {}
    key, name, columns = values.get("image_id"), values.get("file_name"), values.get("segments_info")
    if (
        not isinstance(key, int | str)
        or not isinstance(name, str)
        or name_fault(name) is not None
        or not isinstance(columns, SegmentColumns)
    ):
        text = "annotation lacks image_id, file_name or segments_info"
        files.problems.append(Problem("json-row", str(name or f"annotation of {key}"), text))
    elif key not in files.images:
        files.problems.append(Problem("annotation-without-image", name, f"image_id {key}"))
    elif key in files.annotations:
        files.problems.append(Problem("annotation-twice", name, f"image_id {key}"))
    else:
        if name in files.png_names:
            files.problems.append(Problem("png-named-twice", name, f"image_id {key}"))
        files.png_names.add(name)
        good = list(_good_ids(name, columns, files))
        channels = [files.categories.channels.get(columns.categories[at]) for at in good]
        boxes = np.array(values[BOXES], dtype=np.float32).reshape(-1, 4)[good]
        files.annotations[key] = Annotation.of(name, columns.take(good), channels)
        files.boxes[key] = boxes[[channel is not None for channel in channels]]


def _good_ids(name: str, columns: SegmentColumns, files: CocoFiles) -> Iterator[int]:
    """Which segments have an id of their own; what else is wrong with a segment is noted."""
    seen = set()
    for at, (number, category) in enumerate(zip(columns.ids, columns.categories, strict=True)):
        if not isinstance(number, int) or not 0 < number <= MAX_ID or number in seen:
            files.problems.append(Problem("segment-id", name, f"id {number}"))
            continue
        seen.add(number)
        if category not in files.categories.channels:
            files.problems.append(Problem("segment-category", name, f"segment {number}: category_id {category}"))
        yield at


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
