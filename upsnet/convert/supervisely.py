"""Supervisely's projects: `meta.json`, and for each data set a folder `ann` of JSON files and a folder `img`.

Bitmaps, polygons and rectangles become objects. Points, lines and graphs have no area; they are skipped and counted.
Any other figure is a mistake.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from upsnet.categories.category_set import is_name
from upsnet.convert.classes import ClassOptions
from upsnet.convert.drawing import LARGEST, box_around, join, paste_png, rectangle
from upsnet.convert.export_files import as_list, find_image, images_left_out, kind_of, require_kind
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
from upsnet.io.coco_masks import require_near
from upsnet.io.files import list_files, read_json
from upsnet.json_values import number, whole_number
from upsnet.text import shown

WITH_AREA = frozenset({"bitmap", "multipolygon", "polygon", "rectangle"})
WITHOUT_AREA = frozenset({"graph", "line", "point"})
"""Figures, and shapes of classes in meta.json."""
Size = tuple[int, int]


class Supervisely:
    """A project of Supervisely, or one of its data sets.

    Objects of one class that share an `instance` (a binding) are one instance. Later objects are drawn above earlier
    ones. The coordinates of an export are whole numbers that name pixels, so that the pixels of an outline belong to
    the object; fractions, which the server stores, count from the corner of the image.

    Args:
        annotations: folder of the project, or of a data set in it.
        images: folders of the images; by default each is in `img` beside the `ann` of its JSON.
        options: what the user says about classes. All classes of meta.json that may have an area are classes.
        tolerance: what is left out instead of stopping.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = False

    def __init__(
        self,
        annotations: Path | Sequence[Path],
        images: Sequence[Path],
        options: ClassOptions,
        tolerance: Tolerance = STRICT,
    ) -> None:
        self.mistakes = Mistakes(tolerance.bad)
        labels: dict[str, None] = {}
        documents: dict[Path, dict[str, Any]] = {}
        projects = as_list(annotations)
        for project in projects:
            require_folder(project, "a Supervisely project")
            labels |= dict.fromkeys(_classes(project))
            for folder in _folders(project):
                for path in list_files(folder, {".json"}):
                    with self.mistakes.of_file():
                        documents[path] = _document(path)
        rows = (row for document in documents.values() for row in document["objects"])
        used = {_label(row) for row in rows if _kind(row) not in WITHOUT_AREA}
        labels = dict.fromkeys(label for label in [*labels, *sorted(used)] if is_name(label))
        source = ", ".join(map(str, projects))
        self.classes = options.resolve([(None, label) for label in labels], source)
        self.notes = options.notes(labels)
        items = []
        finders: dict[Path, ImageFinder] = {}
        for row, (path, document) in enumerate(documents.items(), start=1):
            folders = list(images) or [path.parent.parent / "img"]
            if folders[0] not in finders:
                finders[folders[0]] = ImageFinder(folders, tolerance)
            finder = finders[folders[0]]
            with self.mistakes.of(str(path)):
                found = find_image(finder, [path.stem], str(path))
                if found is not None:
                    has_objects = any(_kind(shape) not in WITHOUT_AREA for shape in document["objects"])
                    items.append(Item(*found, row, (path, document), has_objects))
        for finder in finders.values():
            finder.require_all(self.mistakes)
        self.items = with_own_names(items, source)
        self.left_out = images_left_out([f for finder in finders.values() for f in finder.folders], self.items)

    def read(self, item: Item, picture: Picture) -> Layers:
        """Draws the objects of one image."""
        path, document = item.annotation
        declared = document["size"]
        size = declared_size(declared.get("height"), declared.get("width"), picture.stored, str(path))
        if size not in (picture.stored, picture.upright):
            return Layers(size, [])
        skipped: Counter[str] = Counter()
        mistakes = Mistakes(self.mistakes.are_skipped)
        objects: dict[Any, list[Region]] = defaultdict(list)
        for row, shape in enumerate(document["objects"], start=1):
            kind, label = _kind(shape), _label(shape)
            if kind in WITHOUT_AREA:
                skipped[kind] += 1
                continue
            with mistakes.of(f"{path}: object {row}, {kind} {shown(label)}", _box(shape, size)):
                require_kind(kind, WITH_AREA)
                region = Region.of(self.classes.channel(label), _draw(shape, size))
                group = shape.get("instance")
                if not isinstance(group, str | int | None):
                    raise ValueError(f"instance {shown(group)}, expected a text")
                key = row if group is None else (label, group)
                objects[key] = [*objects.pop(key, []), region]  # an object is as high as its highest part
        regions = [join(parts) for parts in objects.values()]
        return Layers(size, regions, skipped=skipped, mistakes=mistakes.lines, unknown=mistakes.unknown)


def _classes(project: Path) -> list[str]:
    """The classes of a project that may have an area, in its order."""
    path = next((p for p in (project / "meta.json", project.parent / "meta.json") if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{project / 'meta.json'}: no such file, expected the folder of a Supervisely project")
    meta = read_json(path)
    rows = meta.get("classes") if isinstance(meta, dict) else None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get("title"), str) for r in rows):
        raise ValueError(f"{path}: no list 'classes' of objects with a title, expected meta.json of Supervisely")
    return [row["title"] for row in rows if kind_of(row.get("shape")) not in WITHOUT_AREA]


def _folders(project: Path) -> list[Path]:
    """The folders of annotations of all data sets, also of data sets in data sets."""
    found = sorted(path for path in project.rglob("ann") if path.is_dir())
    if not found:
        raise FileNotFoundError(f"{project}: no folder 'ann' in it, expected a Supervisely project")
    return found


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path)
    objects = document.get("objects") if isinstance(document, dict) else None
    if not isinstance(objects, list) or not all(isinstance(shape, dict) for shape in objects):
        raise ValueError(f"{path}: no list 'objects', expected an annotation of Supervisely")
    if not isinstance(document.get("size"), dict):
        raise ValueError(f"{path}: size {shown(document.get('size'))}, expected an object with height and width")
    return {"size": document["size"], "objects": objects}


def _kind(shape: dict[str, Any]) -> str:
    return kind_of(shape.get("geometryType"))


def _label(shape: dict[str, Any]) -> str:
    label = shape.get("classTitle")
    return label if isinstance(label, str) else ""


def _points(values: Any) -> list[float]:
    """x1, y1, x2, y2, ... of a list of points."""
    if not isinstance(values, list) or not all(isinstance(point, list) and len(point) == 2 for point in values):
        raise ValueError(f"points {shown(values)}, expected a list of [x, y]")
    found = [number(value) for point in values for value in point]
    if not all(value is not None and abs(value) < LARGEST for value in found):
        raise ValueError(f"points {shown(values)}, expected numbers")
    return [value for value in found if value is not None]


def _part(shape: dict[str, Any], key: str) -> dict[str, Any]:
    part = shape.get(key)
    if not isinstance(part, dict):
        raise ValueError(f"{key} {shown(part)}, expected an object")
    return part


def _rings(shape: dict[str, Any]) -> list[tuple[list[float], list[list[float]]]]:
    """The outline of each part of a polygon, and the outlines of its holes."""
    parts = [_part(shape, "points")] if _kind(shape) == "polygon" else shape.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"parts {shown(parts)}, expected a list of objects with 'exterior'")
    rings = []
    for part in parts:
        holes = part.get("interior", [])
        if not isinstance(holes, list):
            raise ValueError(f"interior {shown(holes)}, expected a list of outlines")
        rings.append((_points(part.get("exterior")), [_points(hole) for hole in holes]))
    return rings


def _corners(shape: dict[str, Any]) -> list[float]:
    """left, top, right, bottom of a rectangle; the last two are exclusive."""
    points = _points(_part(shape, "points").get("exterior"))
    if len(points) != 4:
        raise ValueError(f"rectangle of {len(points) // 2} points, expected 2; draw it again")
    (left, right), (top, bottom) = sorted(points[0::2]), sorted(points[1::2])
    names_pixels = all(value.is_integer() for value in points)
    return [left, top, right + names_pixels, bottom + names_pixels]


def _origin(shape: dict[str, Any]) -> tuple[int, int]:
    values = _part(shape, "bitmap").get("origin")
    found = [whole_number(value) for value in values] if isinstance(values, list) else []
    if len(found) != 2 or found[0] is None or found[1] is None or min(found[0], found[1]) < 0:
        raise ValueError(f"origin {shown(values)}, expected [x, y] of the upper left pixel")
    return found[0], found[1]


def _box(shape: dict[str, Any], size: Size) -> Box | None:
    if _kind(shape) not in WITH_AREA:
        return (0, 0, *size)  # it may be anywhere
    try:
        if _kind(shape) == "bitmap":
            outline = rectangle(*_origin(shape), size[1], size[0])
        elif _kind(shape) == "rectangle":
            outline = rectangle(*_corners(shape))
        else:
            outline = [value for exterior, _ in _rings(shape) for value in exterior]
            outline += [value + 1 for value in outline]
        return box_around(outline, size)
    except ValueError:
        return None


def _draw(shape: dict[str, Any], size: Size) -> npt.NDArray[np.bool_]:
    if _kind(shape) == "bitmap":
        return paste_png(_part(shape, "bitmap").get("data"), _origin(shape), size, _mask_of, name="bitmap")
    mask = np.zeros(size, dtype=bool)
    if _kind(shape) == "rectangle":
        left, top, right, bottom = _corners(shape)
        require_near([left, top, right, bottom], size, "rectangle")
        # The pixels whose centres lie in the rectangle.
        first_row, last_row, first_column, last_column = (
            max(math.ceil(value - 0.5), 0) for value in (top, bottom, left, right)
        )
        mask[first_row:last_row, first_column:last_column] = True
    else:
        for exterior, holes in _rings(shape):
            part = _fill(exterior, size)
            for hole in holes:
                part &= ~_fill(hole, size)
            mask |= part
    return mask


def _fill(outline: list[float], size: Size) -> npt.NDArray[np.bool_]:
    """The pixels in an outline and on it."""
    if len(outline) < 6:
        raise ValueError(f"polygon of {len(outline) // 2} points, expected at least 3; draw it again, or delete it")
    require_near(outline, size, "polygon")
    last = np.array([size[1], size[0]])
    pixels = np.floor(np.array(outline).reshape(-1, 2))
    pixels = np.where(pixels == last, last - 1, pixels).astype(np.int32)  # the far edge of the image has no pixel
    canvas = np.zeros(size, dtype=np.uint8)
    cv2.fillPoly(canvas, [pixels], (1,))
    return canvas > 0


def _mask_of(image: Image.Image) -> npt.NDArray[np.bool_]:
    """The mask [h, w] of a bitmap: its alpha channel; without one, what is not black."""
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    pixels = np.asarray(image.convert("RGBA"))
    return np.asarray(pixels[..., 3] > 0 if has_alpha else pixels[..., :3].any(axis=2))
