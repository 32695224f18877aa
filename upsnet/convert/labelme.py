"""LabelMe annotations: one JSON a picture, with polygons, rectangles, circles and painted masks."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.convert.classes import ClassOptions
from upsnet.convert.label_maps import mask_of
from upsnet.convert.layers import Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import Item, declared_size, require_folder
from upsnet.io.coco_masks import fill_polygons
from upsnet.io.files import list_files, read_json
from upsnet.io.images import IMAGE_SUFFIXES, list_images, open_image, require_own_stems

LARGEST = 1e9
"""No coordinate is larger; nor is one infinite, or not a number."""
WITHOUT_AREA = frozenset({"point", "points", "line", "linestrip"})


class LabelMe:
    """A folder of LabelMe's JSON files.

    Shapes of one label that share a group_id are one instance. Points and lines have no area: they are left aside and
    counted. LabelMe shows pictures as their EXIF orientation says, so the truth lies on the upright picture.

    Args:
        annotations: folder of the JSON files.
        options: what the user says about classes; labels without a classes file get ids in alphabetical order.
        images: folder of the pictures; by default each is where its JSON says, or beside it.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = True

    def __init__(self, annotations: Path, options: ClassOptions, images: Path | None = None) -> None:
        require_folder(annotations, "LabelMe annotations")
        files = list_files(annotations, {".json"})
        if not files:
            raise FileNotFoundError(f"{annotations}: no JSON file, expected LabelMe's")
        documents = {path: self._document(path) for path in files}
        labels = {
            shape["label"]
            for document in documents.values()
            for shape in document["shapes"]
            if shape["shape_type"] not in WITHOUT_AREA
        }
        self.classes = options.resolve([(None, label) for label in sorted(labels)], str(annotations))
        self.items = []
        for number, (path, document) in enumerate(documents.items(), start=1):
            name = PureWindowsPath(document["imagePath"])  # takes both kinds of slashes
            places = [path.parent / name.name]
            if not name.is_absolute() and not name.root:  # a folder of another machine
                places.insert(0, path.parent / name.as_posix())
            if images is not None:
                places = [images / name.name]
            picture = next((place for place in places if place.is_file()), None)
            if picture is None:
                raise FileNotFoundError(
                    f"{places[0]}: no such image, which {path} names; give its folder with --images"
                )
            self.items.append(Item(picture, picture.name, number, (path, document)))
        require_own_stems((f"{item.path} (of {item.annotation[0]})", item.name) for item in self.items)
        known = {item.path.resolve() for item in self.items}
        folder = images or annotations
        found = list_files(folder, IMAGE_SUFFIXES) if folder.is_dir() else []
        self.left_out = [p for p in (list_images(folder) if found else []) if p.resolve() not in known]

    def _document(self, path: Path) -> dict[str, Any]:
        """What is needed of a file; the embedded picture is not kept."""
        document = read_json(path)
        shapes = document.get("shapes") if isinstance(document, dict) else None
        if not isinstance(shapes, list) or not isinstance(document.get("imagePath"), str):
            raise ValueError(f"{path}: no 'shapes' or no 'imagePath', expected a file of LabelMe")
        for number, shape in enumerate(shapes):
            if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not _are_points(shape):
                raise ValueError(f"{path}: shape {number} lacks a label or points (x, y), expected a file of LabelMe")
            shape["shape_type"] = str(shape.get("shape_type") or "polygon")  # old files lack it
        return {key: document.get(key) for key in ("imagePath", "imageHeight", "imageWidth", "shapes")}

    def read(self, item: Item, picture: Picture) -> Layers:
        """Draws the shapes of one picture."""
        path, document = item.annotation
        size = declared_size(document["imageHeight"], document["imageWidth"], picture.upright, str(path))
        if size not in (picture.stored, picture.upright):
            return Layers(size, [])
        masks: dict[Any, tuple[str, npt.NDArray[np.bool_]]] = {}
        skipped: Counter[str] = Counter()
        for number, shape in enumerate(document["shapes"]):
            kind, label = shape["shape_type"], shape["label"]
            if kind in WITHOUT_AREA:
                skipped[kind] += 1
                continue
            where = f"{path}: shape {number} ({label})"
            self.classes.channel(label, where)
            try:
                mask = _draw(shape, size)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            group = shape.get("group_id")
            if not isinstance(group, int | str | None):
                raise ValueError(f"{where}: group_id {group!r}, expected a number")
            key = ("shape", number) if group is None else ("group", group)
            other, before = masks.get(key, (label, None))
            if other != label:
                raise ValueError(f"{where}: group_id {group} is {other!r} too, expected one label in a group; mend one")
            masks[key] = (label, mask if before is None else mask | before)
        regions = [Region.of(self.classes.channel(label, str(path)), mask) for label, mask in masks.values()]
        return Layers(size, regions, skipped=skipped)


def _are_points(shape: dict[str, Any]) -> bool:
    points = shape.get("points")
    return isinstance(points, list) and all(
        isinstance(p, list) and len(p) == 2 and all(isinstance(v, int | float) and abs(v) < LARGEST for v in p)
        for p in points
    )


def _draw(shape: dict[str, Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    kind, points = shape["shape_type"], shape["points"]
    if kind in ("polygon", "oriented_rectangle"):
        return fill_polygons([[value for point in points for value in point]], size)
    if kind in ("rectangle", "circle", "mask") and len(points) != 2:
        raise ValueError(f"{kind} of {len(points)} points, expected 2; draw it again")
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points
        return fill_polygons([[x1, y1, x2, y1, x2, y2, x1, y2]], size)
    if kind == "circle":
        return fill_circle(tuple(points[0]), math.dist(*points), size)
    if kind == "mask":
        return _paste(shape, size)
    raise ValueError(f"shape type {kind!r}, expected polygon, rectangle, circle or mask; draw it as one of these")


def fill_circle(center: tuple[float, float], radius: float, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The pixels whose centres lie in a circle (x, y), as a mask [H, W]."""
    y, x = np.ogrid[: size[0], : size[1]]
    return np.asarray((x + 0.5 - center[0]) ** 2 + (y + 0.5 - center[1]) ** 2 <= radius**2)


def _paste(shape: dict[str, Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A painted mask: a PNG in base64, with its upper left corner at the first point."""
    text = shape.get("mask")
    try:
        data = base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except binascii.Error as error:
        raise ValueError(f"mask: cannot be read ({error})") from None
    with open_image(io.BytesIO(data), name="mask") as image:
        mask = mask_of(image)
    left, top = (round(value) for value in shape["points"][0])
    height, width = mask.shape
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError(f"mask of {width} x {height} at ({left}, {top}), expected it inside {size[1]} x {size[0]}")
    canvas = np.zeros(size, dtype=bool)
    canvas[top : top + height, left : left + width] = mask
    return canvas
