"""LabelMe annotations: one JSON per image, with polygons, rectangles, circles and painted masks.

X-AnyLabeling writes the same files, with rectangles of four corners and rotated shapes.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories.category_set import is_name
from upsnet.convert.classes import ClassOptions
from upsnet.convert.drawing import LARGEST, box_around, ellipse_box, fill_ellipse, join, paste_png, rectangle
from upsnet.convert.export_files import kind_of, require_kind
from upsnet.convert.label_maps import mask_of as mask_of_image
from upsnet.convert.layers import Box, Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import (
    STRICT,
    ImageFinder,
    Item,
    Mistakes,
    Tolerance,
    declared_size,
    require_folder,
    with_own_names,
)
from upsnet.io.coco_masks import mask_of
from upsnet.io.files import list_files, read_json
from upsnet.io.images import IMAGE_SUFFIXES
from upsnet.text import shown

POINTS = {"circle": (2,), "mask": (2,), "oriented_rectangle": (4,), "rectangle": (2, 4), "rotation": (4,)}
"""Kind of shape -> numbers of points that it may have. Rotated rectangles have four corners: `oriented_rectangle` of
LabelMe, `rotation` of X-AnyLabeling."""
WITH_AREA = frozenset({*POINTS, "polygon"})
WITHOUT_AREA = frozenset({"point", "points", "line", "linestrip"})


class LabelMe:
    """A folder of LabelMe's JSON files.

    Shapes of one label with the same group_id are one instance; shapes of different labels are different instances,
    whatever their group_id. Points and lines have no area; they are skipped and counted. Later shapes are drawn above
    earlier ones. LabelMe rotates images as their EXIF orientation says, so the ground truth lies on the upright image.

    Args:
        annotations: folder of the JSON files.
        images: folders of the images; by default each image is where its JSON says, or beside it.
        options: what the user says about classes; labels without a classes file get ids in alphabetical order.
        tolerance: what is left out instead of stopping.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = True

    def __init__(
        self, annotations: Path, images: Sequence[Path], options: ClassOptions, tolerance: Tolerance = STRICT
    ) -> None:
        require_folder(annotations, "LabelMe annotations")
        files = list_files(annotations, {".json"})
        if not files:
            raise FileNotFoundError(f"{annotations}: no JSON file, expected LabelMe's")
        self.mistakes = Mistakes(tolerance.bad)
        documents: dict[Path, dict[str, Any]] = {}
        for path in files:
            with self.mistakes.of_file():
                documents[path] = _document(path)
        labels = {
            shape["label"]
            for document in documents.values()
            for shape in document["shapes"]
            if shape["shape_type"] not in WITHOUT_AREA and is_name(shape["label"])
        }
        self.classes = options.resolve([(None, label) for label in sorted(labels)], str(annotations))
        self.notes = options.notes(labels)
        finder = ImageFinder(images or [annotations], tolerance)
        items = []
        for number, (path, document) in enumerate(documents.items(), start=1):
            image = _image_beside(path, document) if not images else None
            if image is None:
                found = finder.find(PureWindowsPath(document["imagePath"]).name, str(path))
                image = found[0] if found is not None else None
            if image is not None:
                has_objects = any(shape["shape_type"] not in WITHOUT_AREA for shape in document["shapes"])
                items.append(Item(image, image.name, number, (path, document), has_objects))
        finder.require_all(self.mistakes)
        self.items = with_own_names(items, str(annotations))
        known = {item.path.resolve() for item in self.items}
        found_images = [path for folder in finder.folders for path in list_files(folder, IMAGE_SUFFIXES)]
        self.left_out = [path for path in found_images if path.resolve() not in known]

    def read(self, item: Item, picture: Picture) -> Layers:
        """Draws the shapes of one image."""
        path, document = item.annotation
        size = declared_size(document["imageHeight"], document["imageWidth"], picture.upright, str(path))
        if size not in (picture.stored, picture.upright):
            return Layers(size, [])
        skipped: Counter[str] = Counter()
        mistakes = Mistakes(self.mistakes.are_skipped)
        objects: dict[Any, list[Region]] = defaultdict(list)
        for number, shape in enumerate(document["shapes"]):
            kind, label, group = shape["shape_type"], shape["label"], shape.get("group_id")
            if kind in WITHOUT_AREA:
                skipped[kind] += 1
                continue
            with mistakes.of(f"{path}: shape {number}, {kind} {shown(label)}", _box(shape, size)):
                require_kind(kind, WITH_AREA)
                region = Region.of(self.classes.channel(label), _draw(shape, size))
                if not isinstance(group, int | str | None):
                    raise ValueError(f"group_id {shown(group)}, expected a whole number or a text")
                key = number if group is None else (label, group)
                objects[key] = [*objects.pop(key, []), region]  # an object is as high as its highest part
        regions = [join(parts) for parts in objects.values()]
        return Layers(size, regions, skipped=skipped, mistakes=mistakes.lines, unknown=mistakes.unknown)


def _document(path: Path) -> dict[str, Any]:
    """What is needed of a file; the embedded image is not kept."""
    document = read_json(path)
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not isinstance(document.get("imagePath"), str):
        raise ValueError(f"{path}: no 'shapes' or no 'imagePath', expected a file of LabelMe")
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not _are_points(shape):
            raise ValueError(f"{path}: shape {number} lacks a label or points (x, y), expected a file of LabelMe")
        shape["shape_type"] = kind_of(shape.get("shape_type") or "polygon")  # old files lack it
    return {key: document.get(key) for key in ("imagePath", "imageHeight", "imageWidth", "shapes")}


def _image_beside(path: Path, document: dict[str, Any]) -> Path | None:
    """The image where its JSON says, or beside the JSON; None if it is in neither place."""
    name = PureWindowsPath(document["imagePath"])  # takes both kinds of slashes
    places = [path.parent / name.name]
    if not name.is_absolute() and not name.root:  # else it names a folder of another machine
        places.insert(0, path.parent / name.as_posix())
    return next((place for place in places if place.is_file()), None)


def _are_points(shape: dict[str, Any]) -> bool:
    points = shape.get("points")
    return isinstance(points, list) and all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(v, int | float) and abs(v) < LARGEST for v in p)
        for p in points
    )


def _outline(shape: dict[str, Any]) -> list[float]:
    """x1, y1, x2, y2, ... of a shape, or of the rectangle around a circle or a mask."""
    kind, points = shape["shape_type"], shape["points"]
    counts = POINTS.get(kind, (len(points),))
    if len(points) not in counts:
        raise ValueError(f"{kind} of {len(points)} points, expected {' or '.join(map(str, counts))}; draw it again")
    if kind == "circle":
        return ellipse_box(*_circle(points))
    if kind in ("mask", "rectangle") and len(points) == 2:
        (x1, y1), (x2, y2) = points
        return rectangle(x1, y1, x2, y2) if kind == "rectangle" else rectangle(x1, y1, x2 + 1, y2 + 1)
    return [value for point in points for value in point]


def _circle(points: list[list[float]]) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Centre, radii and rotation of the circle around the first point through the second."""
    center, radius = (points[0][0], points[0][1]), math.dist(*points)
    return center, (radius, radius), 0.0


def _box(shape: dict[str, Any], size: tuple[int, int]) -> Box | None:
    """The pixels that a shape may touch; of a damaged shape or an unknown kind those around its points."""
    try:
        outline = _outline(shape)
    except ValueError:
        outline = [value for point in shape["points"] for value in point]
    return box_around(outline, size)


def _draw(shape: dict[str, Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    kind, points, outline = shape["shape_type"], shape["points"], _outline(shape)
    if kind == "circle":
        return fill_ellipse(*_circle(points), size)
    if kind == "mask":  # a PNG, with its upper left corner at the first point
        corner = (round(points[0][0]), round(points[0][1]))
        return paste_png(shape.get("mask"), corner, size, mask_of_image, name="mask")
    return mask_of([outline], size)
