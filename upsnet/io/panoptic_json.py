"""COCO-panoptic JSON files, checked, with one annotation per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.io.annotation import Annotation, ImageFile, SegmentColumns, pack_segments, require_panoptic
from upsnet.io.files import name_fault, read_json
from upsnet.io.packed import Annotations, ImageFiles
from upsnet.io.panoptic_png import MAX_ID, read_panoptic_png
from upsnet.ops.id_maps import rows_of_ids
from upsnet.text import shown

MAX_SIDE = 1_000_000
"""Pixels a side of an image at most."""
IMAGE_FIELDS: dict[str, Any] = {"id": int | str, "file_name": str, "height": int, "width": int}


def image_files(path: Path, rows: Any) -> ImageFiles:
    """The pictures that the `images` of a COCO JSON names, by their ids; `path` is named in errors.

    Raises:
        ValueError: it is no list of objects, an object lacks a field, or an id stands twice.
    """
    _require_rows(path, "images", rows)
    images = ImageFiles()
    for row in rows:
        if faults := image_faults(row):
            name = shown(row.get("file_name", row.get("id")))
            raise ValueError(f"{path}: image {name} {'; '.join(faults)}")
        if row["id"] in images:
            raise ValueError(f"{path}: image id {shown(row['id'])} appears twice in 'images', expected once")
        images.append(row["id"], ImageFile(row["file_name"], row["height"], row["width"]))
    return images


def image_faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row of `images`; nothing for a row that can be used."""
    faults = []
    for key, kind in IMAGE_FIELDS.items():
        value = row.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = {int: "a whole number", str: "a text"}.get(kind, "a number or a text")
            faults.append(f"lacks {key}" if value is None else f"{key} is {shown(value)}, expected {expected}")
    if faults:
        return faults
    if not all(0 < row[key] <= MAX_SIDE for key in ("height", "width")):
        faults.append(f"has size {shown(row['height'])} x {shown(row['width'])}, expected 1 to {MAX_SIDE} a side")
    if isinstance(row["id"], int) and abs(row["id"]) >= 2**63:
        faults.append(f"id {shown(row['id'])}, expected a number of 64 bits")
    if (fault := name_fault(row["file_name"])) is not None:
        faults.append(f"has a file name that {fault}, expected a relative path below its folder")
    return faults


def _require_rows(path: Path, key: str, rows: Any) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: '{key}' is no list of objects, expected a COCO-panoptic JSON")


class PanopticJson:
    """A COCO-panoptic JSON file, checked, with one annotation per image.

    Args:
        path: the JSON file.
        png_dir: folder of its PNGs; by default the JSON's path without `.json`.
        categories: the classes to use instead of the file's own.
        images: the image rows to use instead of the file's own; annotations of other images are left aside.
        problems: if given, faults of single annotations are added to it instead of raised, and the reader goes on: a
            segment of an unknown category stays in its row, a segment with a bad id and a second annotation of an
            image leave, as does an annotation without its fields.

    Attributes:
        annotations: image id -> annotation; images: image id -> picture. The JSON's own rows are not kept.

    Raises:
        FileNotFoundError, ValueError: the file or a part of it is missing or contradicts itself.
    """

    def __init__(
        self,
        path: Path,
        png_dir: Path | None = None,
        categories: CategorySet | None = None,
        images: ImageFiles | None = None,
        problems: list[str] | None = None,
    ) -> None:
        self.path = path
        self._problems = problems
        self._png_names: set[str] = set()
        self.png_dir = png_dir or path.with_suffix("")
        document = read_json(path, pack_segments)
        needed = {"annotations": True, "images": images is None, "categories": categories is None}
        absent = [key for key in needed if needed[key] and (not isinstance(document, dict) or key not in document)]
        if absent:
            raise ValueError(f"{path}: no {', '.join(absent)}, expected a COCO-panoptic JSON")
        require_panoptic(path, document["annotations"])
        self.categories = categories or CategorySet.from_json(document["categories"], source=str(path))
        self.images = image_files(path, document["images"]) if images is None else images
        _require_rows(path, "annotations", document["annotations"])
        self.annotations = Annotations()
        for row in document["annotations"]:
            if images is not None and _key(row) not in images:
                continue
            annotation = self._checked(row)
            if annotation is not None:
                self.annotations.append(row["image_id"], annotation)
        if not self.png_dir.is_dir():
            raise FileNotFoundError(f"{self.png_dir}: no such folder of panoptic PNGs (for {path})")

    def _fault(self, text: str) -> None:
        if self._problems is None:
            raise ValueError(f"{self.path}: {text}")
        self._problems.append(f"{self.path}: {text}")

    def _checked(self, row: dict[str, Any]) -> Annotation | None:
        """An annotation without its bad segments, None if it cannot be used."""
        name = row.get("file_name", row.get("image_id"))
        is_named = isinstance(row.get("file_name"), str)
        if _key(row) not in self.images or not is_named or "segments_info" not in row:
            self._fault(f"annotation {shown(name)} needs file_name, segments_info and an image_id of 'images'")
            return None
        if (fault := name_fault(row["file_name"])) is not None:
            self._fault(f"annotation {shown(name)}: the file name {fault}, expected a relative path below its folder")
            return None
        if row["image_id"] in self.annotations:
            self._fault(f"image {row['image_id']} has two annotations, expected one")
            return None
        if row["file_name"] in self._png_names:
            self._fault(f"PNG {shown(name)} belongs to two annotations, expected one PNG for each image")
            return None
        self._png_names.add(row["file_name"])
        columns: SegmentColumns = row["segments_info"]
        channels = self.categories.channels
        seen, kept = {0}, []
        for at, (number, category) in enumerate(zip(columns.ids, columns.categories, strict=True)):
            if category not in channels:
                self._fault(
                    f"segment {shown(number)} of {shown(name)} has category_id {shown(category)}, not among the "
                    f"{len(channels)} categories"
                )
            if not isinstance(number, int) or number in seen or not 0 < number <= MAX_ID:
                self._fault(
                    f"segment id {shown(number)} of {shown(name)} is missing, appears twice, or is not 1 to {MAX_ID} "
                    "(0 is void)"
                )
                continue
            seen.add(number)
            kept.append(at)
        if len(kept) < len(columns.ids):
            columns = columns.take(kept)
        return Annotation.of(row["file_name"], columns, map(channels.get, columns.categories))

    def segments(self, image_id: int | str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Semantic channel and crowd flag of each segment of an image."""
        annotation = self.annotations[image_id]
        return annotation.classes.copy(), annotation.is_crowd.copy()

    def segment_map(self, image_id: int | str) -> npt.NDArray[np.int32]:
        """The PNG of an image, with ids replaced by row + 1 of `segments` (0 = void).

        Raises:
            ValueError: the PNG holds an id that the JSON does not.
        """
        return self.map_of(self.annotations[image_id])

    def map_of(self, annotation: Annotation) -> npt.NDArray[np.int32]:
        """The same of an annotation."""
        path = self.png_dir / annotation.file_name
        ids = read_panoptic_png(path)
        rows = rows_of_ids(ids, annotation.known)
        if not rows.all():
            listed = ", ".join(str(i) for i in np.unique(ids[rows == 0])[:5])
            raise ValueError(
                f"{path}: segment id {listed} is not in {self.path}, expected every id of the PNG (but 0) there"
            )
        rows -= 1
        return rows


def _key(row: dict[str, Any]) -> Any:
    """The image of an annotation, None for what cannot name one."""
    return row["image_id"] if isinstance(row.get("image_id"), int | str) else None
