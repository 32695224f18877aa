"""COCO-panoptic JSON files, checked, with one annotation per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.io.annotation import (
    Annotation,
    ImageFile,
    SegmentColumns,
    SegmentFault,
    pack_segments,
    require_panoptic,
    segment_faults,
)
from upsnet.io.files import name_fault, read_json
from upsnet.io.packed import Annotations, ImageFiles
from upsnet.io.panoptic_png import read_panoptic_png
from upsnet.json_values import ImageId, image_id, match_image_ids, whole_number
from upsnet.ops.id_maps import rows_of_ids
from upsnet.text import shown

MAX_SIDE = 1_000_000
"""Pixels a side of an image at most."""


def image_files(path: Path, rows: Any) -> ImageFiles:
    """The pictures that the `images` of a COCO JSON names, by their ids; `path` is named in errors.

    Raises:
        ValueError: it is no list of objects, an object lacks a field, or an id stands twice.
    """
    _require_rows(path, "images", rows)
    images = ImageFiles()
    for row in rows:
        try:
            key, image = read_image_row(row)
        except ValueError as error:
            raise ValueError(f"{path}: image {shown(row.get('file_name', row.get('id')))} {error}") from None
        if key in images:
            raise ValueError(f"{path}: image id {shown(key)} appears twice in 'images', expected once")
        images.append(key, image)
    return images


def read_image_row(row: dict[str, Any]) -> tuple[ImageId, ImageFile]:
    """The id and the image of a row of `images`.

    Raises:
        ValueError: a value is missing or of another kind; the message lists all of them.
    """
    key, name = image_id(row.get("id")), row.get("file_name")
    height, width = whole_number(row.get("height")), whole_number(row.get("width"))
    faults = []
    for field, value, expected in (
        ("id", key, "a whole number of 64 bits or a text"),
        ("file_name", name if isinstance(name, str) else None, "a text"),
        ("height", height, f"a whole number from 1 to {MAX_SIDE}"),
        ("width", width, f"a whole number from 1 to {MAX_SIDE}"),
    ):
        if row.get(field) is None:
            faults.append(f"lacks {field}")
        elif value is None:
            faults.append(f"{field} is {shown(row[field])}, expected {expected}")
    if isinstance(name, str) and (fault := name_fault(name)) is not None:
        faults.append(f"has a file name that {fault}, expected a relative path below its folder")
    if height is not None and width is not None and not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        faults.append(f"has size {height} x {width}, expected 1 to {MAX_SIDE} a side")
    if faults or key is None or height is None or width is None:
        raise ValueError("; ".join(faults))
    return key, ImageFile(row["file_name"], height, width)


def read_annotation_row(row: dict[str, Any]) -> tuple[str, SegmentColumns]:
    """The PNG's name and the segments of a row of `annotations`, after `pack_segments`.

    Raises:
        ValueError: a value is missing or of another kind; the message lists all of them.
    """
    name, columns = row.get("file_name"), row.get("segments_info")
    faults = []
    if name is None:
        faults.append("lacks file_name")
    elif not isinstance(name, str):
        faults.append(f"file_name is {shown(name)}, expected a text")
    elif (fault := name_fault(name)) is not None:
        faults.append(f"has a file name that {fault}, expected a relative path below its folder")
    if not isinstance(columns, SegmentColumns):
        faults.append("lacks segments_info, expected a list of objects")
    if faults or not isinstance(name, str) or not isinstance(columns, SegmentColumns):
        raise ValueError("; ".join(faults))
    return name, columns


def _require_rows(path: Path, key: str, rows: Any) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: '{key}' is no list of objects, expected a COCO-panoptic JSON")


class PanopticJson:
    """A COCO-panoptic JSON file, checked, with one annotation per image.

    Args:
        path: the JSON file.
        png_dir: folder of its PNGs; by default the JSON's path without `.json`.
        truth: the ground truth, if this file holds predictions for it. Its categories and images replace those of the
            file, and an image id of the file may be written in another way (`match_image_ids`).
        problems: if given, faults of single annotations are added to it instead of raised, and the reader goes on: a
            segment of an unknown category stays in its row, a segment with a bad id and a second annotation of an
            image leave, as does an annotation without its fields or of an image that the ground truth does not have.

    Attributes:
        annotations: image id -> annotation; images: image id -> picture. The JSON's own rows are not kept.

    Raises:
        FileNotFoundError, ValueError: the file or a part of it is missing or contradicts itself, or predictions have no
            image or no category of the ground truth.
    """

    def __init__(
        self,
        path: Path,
        png_dir: Path | None = None,
        *,
        truth: PanopticJson | None = None,
        problems: list[str] | None = None,
    ) -> None:
        self.categories: CategorySet
        self.images: ImageFiles
        self.path = path
        self._truth, self._problems = truth, problems
        self._png_names: set[str] = set()
        self._unknown_categories: dict[str, tuple[int, str]] = {}
        self.png_dir = png_dir or path.with_suffix("")
        document = read_json(path, pack_segments)
        needed = ["annotations"] if truth is not None else ["annotations", "images", "categories"]
        absent = [key for key in needed if not isinstance(document, dict) or key not in document]
        if absent:
            raise ValueError(f"{path}: no {', '.join(absent)}, expected a COCO-panoptic JSON")
        rows = document["annotations"]
        require_panoptic(path, rows)
        if truth is not None:
            self.categories, self.images = truth.categories, truth.images
        else:
            self.categories = CategorySet.from_json(document["categories"], source=str(path))
            self.images = image_files(path, document["images"])
        _require_rows(path, "annotations", rows)
        self.annotations = Annotations()
        self._read_annotations(rows)
        if not self.png_dir.is_dir():
            raise FileNotFoundError(f"{self.png_dir}: no such folder of panoptic PNGs (for {path})")

    def _read_annotations(self, rows: list[dict[str, Any]]) -> None:
        ids = [image_id(row.get("image_id")) for row in rows]
        matched = match_image_ids((key for key in ids if key is not None), self.images)
        unknown = [key for key in ids if key is not None and key not in matched]
        if unknown and self._truth is not None:
            self._report_unknown_images(unknown, len(rows), bool(matched))
        for row, key in zip(rows, ids, strict=True):
            if key is not None and key in matched:
                self._add(row, matched[key])
            elif key is None or self._truth is None:
                self._fault(f"annotation {_name(row)} {self._image_fault(row)}")
        self._report_unknown_categories()

    def _fault(self, text: str) -> None:
        if self._problems is None:
            raise ValueError(f"{self.path}: {text}")
        self._problems.append(f"{self.path}: {text}")

    def _image_fault(self, row: dict[str, Any]) -> str:
        if row.get("image_id") is None:
            return "lacks image_id"
        return f"has image_id {shown(row['image_id'])}, expected one of 'images' (the first is {self._first_image()})"

    def _first_image(self) -> str:
        return shown(next(iter(self.images), None))

    def _report_unknown_images(self, unknown: list[ImageId], count: int, some_are_known: bool) -> None:
        assert self._truth is not None
        if not some_are_known:
            raise ValueError(
                f"{self.path}: none of its {count} annotations is for an image of {self._truth.path}: the first "
                f"image_id is {shown(unknown[0])} here and {self._first_image()} there, expected the same ids"
            )
        self._fault(
            f"{len(unknown)} of {count} annotations are for images that {self._truth.path} does not have, the first "
            f"has image_id {shown(unknown[0])}: they are not scored"
        )

    def _add(self, row: dict[str, Any], key: ImageId) -> None:
        """Adds the annotation of an image, without its bad segments; or reports why it cannot be used."""
        try:
            name, columns = read_annotation_row(row)
        except ValueError as error:
            self._fault(f"annotation {_name(row)} {error}")
            return
        if key in self.annotations:
            self._fault(f"image {shown(key)} has two annotations, expected one")
            return
        if name in self._png_names:
            self._fault(f"PNG {shown(name)} belongs to two annotations, expected one PNG for each image")
            return
        self._png_names.add(name)
        if faults := segment_faults(columns, self.categories.channels):
            columns = self._without_faults(name, columns, faults)
        channels = map(self.categories.channels.get, columns.categories)
        self.annotations.append(key, Annotation.of(name, columns, channels))

    def _without_faults(self, name: str, columns: SegmentColumns, faults: list[SegmentFault]) -> SegmentColumns:
        """Reports faults of segments; leaves out segments without a usable id."""
        without_id = {fault.at for fault in faults if fault.key == "id"}
        for fault in faults:
            if fault.key == "score" and self._truth is None:
                continue  # a ground truth needs no score
            if fault.key == "category_id" and self._problems is not None:
                category, number = (column[fault.at] for column in (columns.categories, columns.ids))
                first = f"segment {shown(number)} of {shown(name)}"
                count, first = self._unknown_categories.get(shown(category), (0, first))
                self._unknown_categories[shown(category)] = (count + 1, first)
            else:
                self._fault(f"annotation {shown(name)}: {fault.text}")
        return columns.take(at for at in range(len(columns.ids)) if at not in without_id)

    def _report_unknown_categories(self) -> None:
        """Reports the categories that `_without_faults` has collected, one line each.

        Raises:
            ValueError: no segment has a known category.
        """
        unknown, known = self._unknown_categories, list(self.categories.channels)
        if not unknown:
            return
        if not any(len(annotation.classes) for annotation in self.annotations.values()):
            count = sum(count for count, _ in unknown.values())
            raise ValueError(
                f"{self.path}: none of its {count} segments has a category of the ground truth: the first category_id "
                f"is {next(iter(unknown))} here and {known[0]} there, expected the same ids"
            )
        for category, (count, first) in unknown.items():
            self._fault(
                f"category_id {category} is not among the {len(known)} categories of the ground truth; segments with "
                f"it count as void: {count}, the first is {first}"
            )

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


def _name(row: dict[str, Any]) -> str:
    """How errors name an annotation."""
    return shown(row.get("file_name", row.get("image_id")))
