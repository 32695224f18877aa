"""COCO instance annotations (polygons, run lengths, crowds), with or without maps of stuff."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np

from upsnet.categories import IGNORE_LABEL
from upsnet.convert.classes import ClassOptions
from upsnet.convert.export_files import split_of
from upsnet.convert.label_maps import read_class_map
from upsnet.convert.layers import VOID, Box, Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import (
    STRICT,
    ImageFinder,
    Item,
    Mistakes,
    Tolerance,
    declared_size,
    require_folder,
    with_own_ids,
    with_own_names,
)
from upsnet.io.coco_masks import mask_of, outlines
from upsnet.io.files import read_json
from upsnet.json_values import ImageId, crowd_flag, flag, image_id, match_image_ids, number, whole_number
from upsnet.text import cut, shown

Crowds = Literal["objects", "crowds"]
"""What an annotation with `iscrowd: 1` becomes."""

MIN_ODD_CROWDS = 3
MAX_CROWD_SHARE = 0.1
"""Crowds of one piece that are at least so many, and a larger share of a class than this, are probably objects: in
COCO, one annotation in 86 is a crowd."""
MAX_EXAMINED = 50
"""Crowds of a class whose pieces are counted."""


@dataclass(frozen=True)
class _Row:
    """An annotation: its row in the JSON, the label of its category, the JSON, and what is wrong with the category."""

    values: dict[str, Any]
    label: str
    path: Path
    fault: str | None = None

    def where(self, image: str) -> str:
        return f"{self.path}: annotation {shown(self.values.get('id'))} of {image}"


class CocoInstances:
    """One or several COCO instance JSONs.

    Categories are things, except those that the options call stuff. A category keeps its id unless a classes file gives
    another; classes of several files are matched by name. An image of the JSON without an annotation shows no object.

    Args:
        annotations: the JSONs.
        images: folders of the images; by default the folder of each JSON.
        options: what the user says about classes.
        tolerance: what is left out instead of stopping.
        semantic: folder of maps of classes, STEM.png for the image STEM.*. Their things lie beneath everything: they
            are void where no instance covers them.
        crowds: what annotations with `iscrowd: 1` are. None: crowds, unless they look like objects.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = False

    def __init__(
        self,
        annotations: Sequence[Path],
        images: Sequence[Path],
        options: ClassOptions,
        tolerance: Tolerance = STRICT,
        *,
        semantic: Path | None = None,
        crowds: Crowds | None = None,
    ) -> None:
        self.semantic, self.crowds = semantic, crowds
        self.left_out: list[Path] = []
        self.mistakes = Mistakes(tolerance.bad)
        if semantic is not None:
            require_folder(semantic, "maps of classes")
        labels: dict[str, int | None] = {}
        self.notes: list[str] = []
        items: list[Item] = []
        for path in annotations:
            finder = ImageFinder(images or [path.parent], tolerance)
            document = _read(path)
            names = self._labels(path, document)
            for key, name in names.items():
                labels.setdefault(name, None if key in labels.values() else key)  # an id of another file's class
            split = split_of(path.parent.name) if len(annotations) > 1 else None
            items += [replace(item, split=split) for item in self._items(path, document, names, finder)]
            finder.require_all(self.mistakes)
        self.source = str(annotations[0])
        self.classes = options.resolve([(key, name) for name, key in labels.items()], self.source)
        self.notes = [*dict.fromkeys(self.notes), *options.notes(labels)]
        self.items = with_own_ids(with_own_names(items, self.source))
        self._require_pixels()
        if crowds is None:
            self._require_true_crowds()

    def _labels(self, path: Path, document: Mapping[str, list[dict[str, Any]]]) -> dict[int, str]:
        """Category id -> name, without the group of classes that Roboflow lists first and no annotation uses."""
        rows = []
        for row in document["categories"]:
            key, name = whole_number(row.get("id")), row.get("name")
            if key is None or not isinstance(name, str):
                raise ValueError(
                    f"{path}: category with id {shown(row.get('id'))} and name {shown(name)}, expected a whole number "
                    "and a text"
                )
            rows.append((key, name, row.get("supercategory")))
        used = {whole_number(row.get("category_id")) for row in document["annotations"]}
        groups = {group for _, _, group in rows}
        names: dict[int, str] = {}
        for key, name, group in rows:
            others = [other for other, other_name, _ in rows if other != key and other_name == name]
            is_group = group in (None, "none", "") and name in groups
            if key not in used and (is_group or any(other in used for other in others)):
                self.notes.append(f"category {key} {name!r} of {path.name} has no annotation and was left out")
                continue
            if key in names or name in names.values():
                raise ValueError(
                    f"{path}: category {shown(name)} or its id {key} appears twice, expected each once; rename one, or "
                    "remove it"
                )
            names[key] = name
        if not names:
            raise ValueError(f"{path}: no category, expected one at least")
        return names

    def _items(
        self, path: Path, document: Mapping[str, list[dict[str, Any]]], names: dict[int, str], finder: ImageFinder
    ) -> list[Item]:
        """The images of a JSON that exist, with their annotations."""
        images: dict[ImageId, dict[str, Any]] = {}
        for row in document["images"]:
            key = image_id(row.get("id"))
            with self.mistakes.of(f"{path}: image {shown(row.get('file_name'))}"):
                if key is None or not isinstance(row.get("file_name"), str):
                    raise ValueError(f"id {shown(row.get('id'))}, expected a file_name and an id")
                if key in images:
                    raise ValueError(f"id {shown(key)} appears twice in 'images', expected once")
                images[key] = row
        grouped = self._grouped(path, document["annotations"], images, names)
        items = []
        for key, row in images.items():
            found = finder.find(row["file_name"], str(path))
            if found is not None:
                rows = grouped.get(key, [])
                sides = row.get("height"), row.get("width")
                items.append(Item(found[0], found[1], key, (path, *sides, rows), is_annotated=bool(rows)))
        return items

    def _grouped(
        self, path: Path, annotations: list[dict[str, Any]], images: Mapping[ImageId, Any], names: dict[int, str]
    ) -> dict[ImageId, list[_Row]]:
        keys = [image_id(row.get("image_id")) for row in annotations]
        matched = match_image_ids([key for key in keys if key is not None], images.keys())
        grouped: dict[ImageId, list[_Row]] = defaultdict(list)
        for row, key in zip(annotations, keys, strict=True):
            with self.mistakes.of(f"{path}: annotation {shown(row.get('id'))}"):
                if key is None or key not in matched:
                    raise ValueError(f"image_id {shown(row.get('image_id'))}, expected one of 'images'")
                category = whole_number(row.get("category_id"))
                if category is not None and category in names:
                    grouped[matched[key]].append(_Row(row, names[category], path))
                    continue
                listed = cut(", ".join(map(str, names)), 100)
                fault = f"category_id {shown(row.get('category_id'))}, expected one of 'categories' ({listed})"
                if not self.mistakes.are_skipped:
                    raise ValueError(fault)
                grouped[matched[key]].append(_Row(row, "", path, fault))
        return grouped

    def _rows(self) -> list[tuple[Item, _Row]]:
        return [(item, row) for item in self.items for row in item.annotation[3] if row.fault is None]

    def _require_pixels(self) -> None:
        """Checks that coordinates are pixels and not fractions of the image.

        Raises:
            ValueError: no coordinate of the polygons is above 1.
        """
        largest, example = 0.0, None
        for item, row in self._rows():
            for value in _coordinates(row.values.get("segmentation")):
                largest, example = max(largest, value), example or row.where(item.name)
            if largest > 1:
                return
        if example is not None and largest > 0:
            raise ValueError(
                f"{example}: all polygons of the file have coordinates of 0 to {largest:g}, expected pixels: they are "
                "fractions of the image; multiply them by width and height, or export YOLO and use "
                "`upsnet convert yolo`"
            )

    def _require_true_crowds(self) -> None:
        """Checks that `iscrowd: 1` does not mark objects: CVAT and datumaro set it for every brush mask.

        Raises:
            ValueError: too many crowds of a class are of one piece.
        """
        crowds: dict[str, list[tuple[Item, _Row]]] = defaultdict(list)
        total: dict[str, int] = defaultdict(int)
        for item, row in self._rows():
            total[row.label] += 1
            if flag(row.values.get("iscrowd")):
                crowds[row.label].append((item, row))
        for label, rows in crowds.items():
            if len(rows) < MIN_ODD_CROWDS or len(rows) <= MAX_CROWD_SHARE * total[label]:
                continue
            examined = rows[:MAX_EXAMINED]
            of_one_piece = sum(_is_one_piece(item, row) for item, row in examined)
            if of_one_piece >= MIN_ODD_CROWDS and of_one_piece > len(examined) / 2:
                raise ValueError(
                    f"{self.source}: {len(rows)} of {total[label]} annotations of {label!r} have iscrowd 1, and "
                    f"{of_one_piece} of the first {len(examined)} are of one piece, like objects (CVAT marks every "
                    "brush mask so); say what they are with --crowds objects or --crowds crowds"
                )

    def read(self, item: Item, picture: Picture) -> Layers:
        """Draws the annotations of one image."""
        path, height, width, rows = item.annotation
        size = declared_size(height, width, picture.stored, f"{path}: image {item.name}")
        if size not in (picture.stored, picture.upright):  # before anything is drawn on a wrong size
            return Layers(size, [])
        mistakes = Mistakes(self.mistakes.are_skipped)
        regions = []
        for row in rows:
            with mistakes.of(row.where(item.name), _box(row.values.get("bbox"))):
                regions.append(self._region(row, size))
        layers = Layers(
            size,
            regions,
            mistakes=mistakes.lines,
            unknown=mistakes.unknown,
            is_size_declared=height is not None and width is not None,
        )
        return layers if self.semantic is None else self._with_stuff(layers, item)

    def _with_stuff(self, layers: Layers, item: Item) -> Layers:
        assert self.semantic is not None
        path = self.semantic / PurePosixPath(item.name).with_suffix(".png")
        semantic = read_class_map(path, self.classes)
        if semantic.shape != layers.size:
            height, width = layers.size
            raise ValueError(
                f"{path}: {semantic.shape[1]} x {semantic.shape[0]}, expected {width} x {height} as {item.path}"
            )
        semantic[(semantic >= self.classes.categories.num_stuff) & (semantic != VOID)] = IGNORE_LABEL
        return replace(layers, semantic=semantic)

    def _region(self, row: _Row, size: tuple[int, int]) -> Region:
        if row.fault is not None:
            raise ValueError(row.fault)
        channel = self.classes.channel(row.label)
        segmentation = row.values.get("segmentation")
        is_box = segmentation is None or (segmentation == [] and _has_area(row.values.get("bbox")))
        if is_box and channel != IGNORE_LABEL:
            raise ValueError(
                "no segmentation, expected polygons or run lengths; export masks instead of boxes, or leave the "
                "object out with --skip-bad"
            )
        is_crowd = crowd_flag(row.values.get("iscrowd")) and self.crowds != "objects"
        return Region.of(channel, mask_of(segmentation or [], size), is_crowd=is_crowd)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a COCO instance JSON."""
    document = read_json(path)
    if isinstance(document, dict) and _is_panoptic(document.get("annotations")):
        raise ValueError(
            f"{path}: a COCO panoptic JSON, which needs no conversion; name it as annotation_file in a config"
        )
    for key in ("images", "annotations", "categories"):
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: no list {key!r}, expected a COCO instance JSON")
    found: dict[str, list[dict[str, Any]]] = document
    return found


def _is_panoptic(annotations: Any) -> bool:
    rows = annotations if isinstance(annotations, list) else []
    return any(isinstance(row, dict) and "segments_info" in row for row in rows)


def _coordinates(segmentation: Any) -> list[float]:
    """The coordinates in a segmentation of polygons; of anything else none."""
    try:
        return [value for polygon in outlines(segmentation) for value in polygon]
    except ValueError:
        return []


def _is_one_piece(item: Item, row: _Row) -> bool:
    """Whether the mask of an annotation is one connected piece. What cannot be read is reported later."""
    height, width = whole_number(item.annotation[1]), whole_number(item.annotation[2])
    if height is None or width is None or height * width > 2**28:
        return False
    try:
        mask = mask_of(row.values.get("segmentation"), (height, width))
    except ValueError:
        return False
    return cv2.connectedComponents(mask.astype(np.uint8))[0] == 2  # the other one is the background


def _has_area(bbox: Any) -> bool:
    """Whether a `bbox` is larger than a pixel: then its object is one without a mask, and not one without pixels."""
    sides = [number(side) for side in bbox[2:]] if isinstance(bbox, list) and len(bbox) == 4 else []
    return len(sides) == 2 and all(side is not None and side > 1 for side in sides)


def _box(value: Any) -> Box | None:
    """A `bbox` [x, y, width, height] as whole pixels."""
    values = [number(v) for v in value] if isinstance(value, list) and len(value) == 4 else [None]
    if any(v is None or abs(v) > 1e9 for v in values):
        return None
    left, top, width, height = (v for v in values if v is not None)
    return int(top), int(left), int(top + height) + 1, int(left + width) + 1
