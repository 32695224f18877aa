"""CVAT's own XML, as its export "CVAT for images 1.1" writes it.

Boxes, ellipses, masks and polygons become objects. Points, lines, skeletons and tags have no area; they are skipped
and counted. Any other shape is a mistake.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
import numpy.typing as npt

from upsnet.categories.category_set import is_name
from upsnet.convert.classes import ClassOptions
from upsnet.convert.drawing import LARGEST, box_around, ellipse_box, fill_ellipse, join, rectangle, rotate
from upsnet.convert.export_files import (
    annotation_files,
    find_image,
    image_folders,
    images_left_out,
    kind_of,
    require_kind,
    split_of,
)
from upsnet.convert.layers import Box, Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import (
    STRICT,
    ImageFinder,
    Item,
    Mistakes,
    Tolerance,
    declared_size,
    with_own_ids,
    with_own_names,
)
from upsnet.io.coco_masks import fill_polygons
from upsnet.io.files import name_fault, read_bytes
from upsnet.json_values import number, whole_number
from upsnet.text import shown

WITH_AREA = frozenset({"box", "ellipse", "mask", "polygon"})
WITHOUT_AREA = frozenset({"points", "polyline", "skeleton", "tag"})
"""Shapes, and types of labels. A label without a type, or of type `any`, may have an area."""


@dataclass
class _Image:
    """An `image` element: its attributes, and the name and attributes of each shape in it."""

    attributes: dict[str, str]
    shapes: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def has_objects(self) -> bool:
        return any(kind not in WITHOUT_AREA for kind, _ in self.shapes)

    def has_order(self) -> bool:
        """Whether one shape is drawn above another because of its z_order."""
        return len({values.get("z_order", "0") for kind, values in self.shapes if kind in WITH_AREA}) > 1


class Cvat:
    """One or several XML files of CVAT.

    Shapes of one label that share a group_id are one instance. CVAT draws a shape with a larger z_order above others,
    and of equal ones the later; the regions come in this order. CVAT rotates images as their EXIF orientation says;
    versions before 2022 did not, which the size in the XML tells.

    Args:
        annotations: the XML files, or a folder with such files.
        images: folders of the images; by default `images` beside the XML, or its own folder.
        options: what the user says about classes. All labels of the project are classes, in its order.
        tolerance: what is left out instead of stopping.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = True

    def __init__(
        self,
        annotations: Path | Sequence[Path],
        images: Sequence[Path],
        options: ClassOptions,
        tolerance: Tolerance = STRICT,
    ) -> None:
        files = annotation_files(annotations, ".xml", "'CVAT for images 1.1'")
        self.mistakes = Mistakes(tolerance.bad)
        finder = ImageFinder(image_folders(images, files), tolerance)
        labels: dict[str, None] = {}
        parsed: list[tuple[Path, _Image]] = []
        for path in files:
            with self.mistakes.of_file():
                document = _Document(path)
                labels |= dict.fromkeys(document.labels)
                parsed += [(path, image) for image in document.images]
        shapes = (shape for _, image in parsed for shape in image.shapes)
        used = {values.get("label", "") for kind, values in shapes if kind not in WITHOUT_AREA}
        labels = dict.fromkeys(label for label in [*labels, *sorted(used)] if is_name(label))
        source = str(files[0]) if len(files) == 1 else f"{len(files)} XML files of CVAT"
        self.classes = options.resolve([(None, label) for label in labels], source)
        self.notes = options.notes(labels)
        with_order = sum(image.has_order() for _, image in parsed)
        if with_order:
            self.notes.append(
                f"z_order differs in {with_order} images: CVAT draws the larger one on top, as --overlap later does"
            )
        items = [item for path, image in parsed for item in self._items(path, image, finder)]
        finder.require_all(self.mistakes)
        self.items = with_own_ids(with_own_names(items, source))
        self.left_out = images_left_out(finder.folders, self.items)

    def _items(self, path: Path, image: _Image, finder: ImageFinder) -> list[Item]:
        """The item of an image; none if the image is missing or its element has a mistake."""
        name, subset = image.attributes.get("name", ""), image.attributes.get("subset", "")
        with self.mistakes.of(str(path)):
            # The export of a project has a folder for each subset.
            names = [f"{subset}/{name}", name] if subset and name_fault(subset) is None else [name]
            found = find_image(finder, names, str(path))
            if found is not None:
                image_id = whole_number(image.attributes.get("id")) or 0
                return [Item(*found, image_id, (path, image), image.has_objects(), split_of(subset))]
        return []

    def read(self, item: Item, picture: Picture) -> Layers:
        """Draws the shapes of one image."""
        path, image = item.annotation
        where = f"{path}: image {shown(item.name)}"
        width, height = image.attributes.get("width"), image.attributes.get("height")
        size = declared_size(height, width, picture.upright, where)
        if size not in (picture.stored, picture.upright):
            return Layers(size, [])
        skipped: Counter[str] = Counter()
        mistakes = Mistakes(self.mistakes.are_skipped)
        drawn: list[tuple[int, Any, Region]] = []
        for row, (kind, values) in enumerate(image.shapes, start=1):
            if kind in WITHOUT_AREA:
                skipped[kind] += 1
                continue
            label = values.get("label", "")
            with mistakes.of(f"{where}: shape {row}, {kind} {shown(label)}", _box(kind, values, size)):
                require_kind(kind, WITH_AREA)
                region = Region.of(self.classes.channel(label), _draw(kind, values, size))
                group = _whole(values, "group_id", 0)
                drawn.append((_whole(values, "z_order", 0), (label, group) if group else row, region))
        drawn.sort(key=lambda shape: shape[0])
        objects: dict[Any, list[Region]] = defaultdict(list)
        for _, key, region in drawn:
            objects[key] = [*objects.pop(key, []), region]  # an object is as high as its highest part
        regions = [join(parts) for parts in objects.values()]
        return Layers(size, regions, skipped=skipped, mistakes=mistakes.lines, unknown=mistakes.unknown)


class _Document:
    """Reads one XML file.

    A document type declaration is refused where it begins: without one no entity can be declared, so that none grows
    when it is expanded and none names another file.

    Attributes:
        labels: that may have an area, in the order of the project.
        images: the images.

    Raises:
        FileNotFoundError, ValueError: missing or not of this format; the message names the file.
    """

    def __init__(self, path: Path) -> None:
        self.labels: list[str] = []
        self.images: list[_Image] = []
        self._open: list[str] = []
        self._label: dict[str, list[str]] = defaultdict(list)
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.CharacterDataHandler = self._text
        parser.EndElementHandler = self._end
        try:
            parser.Parse(read_bytes(path), True)
        except expat.ExpatError as error:
            raise ValueError(f"{path}: not valid XML ({error})") from None
        except (ValueError, LookupError) as error:  # of the handlers, or an encoding that Python does not know
            raise ValueError(f"{path}: {error}") from None

    def _refuse(self, *_: Any) -> None:
        raise ValueError("has a DOCTYPE, expected XML of CVAT, which has none")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._open and name != "annotations":
            raise ValueError(f"root element {shown(name)}, expected 'annotations' as in 'CVAT for images 1.1'")
        if len(self._open) == 1:
            if name == "track":
                raise ValueError("has tracks, which 'CVAT for video' writes; export as 'CVAT for images 1.1'")
            if name == "image":
                self.images.append(_Image(attributes))
        elif len(self._open) == 2 and self._open[1] == "image":
            self.images[-1].shapes.append((kind_of(name), attributes))
        self._open.append(name)

    def _text(self, text: str) -> None:
        if self._open[-3:-1] == ["labels", "label"]:
            self._label[self._open[-1]].append(text)

    def _end(self, name: str) -> None:
        self._open.pop()
        if name == "label" and self._open[1:2] == ["meta"] and self._open[-1] == "labels":
            label, kind = ("".join(self._label[key]).strip() for key in ("name", "type"))
            if label and kind not in WITHOUT_AREA:
                self.labels.append(label)
            self._label.clear()


def _outline(kind: str, values: dict[str, str]) -> list[float]:
    """x1, y1, x2, y2, ... of a polygon, a box, or the rectangle around a mask or an ellipse."""
    if kind == "polygon":
        pairs = [pair.split(",") for pair in values.get("points", "").split(";")]
        points = [number(text) for pair in pairs for text in pair]
        if any(len(pair) != 2 for pair in pairs) or not all(p is not None and abs(p) < LARGEST for p in points):
            raise ValueError(f"points {shown(values.get('points'))}, expected x,y;x,y;...")
        return [point for point in points if point is not None]
    if kind == "mask":
        x, y = _whole(values, "left"), _whole(values, "top")
        return rectangle(x, y, x + _whole(values, "width"), y + _whole(values, "height"))
    if kind == "ellipse":
        return ellipse_box(*_ellipse(values))
    left, top, right, bottom = (_number(values, key) for key in ("xtl", "ytl", "xbr", "ybr"))
    center = ((left + right) / 2, (top + bottom) / 2)
    return rotate(rectangle(left, top, right, bottom), center, _number(values, "rotation", "0"))


def _box(kind: str, values: dict[str, str], size: tuple[int, int]) -> Box | None:
    if kind not in WITH_AREA:
        return (0, 0, *size)  # it may be anywhere
    try:
        return box_around(_outline(kind, values), size)
    except ValueError:
        return None


def _draw(kind: str, values: dict[str, str], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    if kind == "mask":
        return _mask(values, size)
    if kind == "ellipse":
        return fill_ellipse(*_ellipse(values), size)
    return fill_polygons([_outline(kind, values)], size)


def _ellipse(values: dict[str, str]) -> tuple[tuple[float, float], tuple[float, float], float]:
    x, y, radius_x, radius_y = (_number(values, key) for key in ("cx", "cy", "rx", "ry"))
    return (x, y), (radius_x, radius_y), _number(values, "rotation", "0")


def _mask(values: dict[str, str], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A painted mask: run lengths of its box, row by row, of pixels off and on in turn, beginning with off."""
    left, top, width, height = (_whole(values, key) for key in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[1] or top + height > size[0]:
        raise ValueError(
            f"mask of {width} x {height} at ({left}, {top}), expected it inside the image of {size[1]} x {size[0]}"
        )
    runs = [whole_number(text.strip()) for text in values.get("rle", "").split(",")]
    lengths = [run for run in runs if run is not None and run >= 0]
    if len(lengths) < len(runs) or sum(lengths) != width * height:
        raise ValueError(
            f"rle {shown(values.get('rle'))}, expected run lengths that add up to {width} x {height} pixels"
        )
    mask = np.zeros(size, dtype=bool)
    pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    mask[top : top + height, left : left + width] = pixels.reshape(height, width)
    return mask


def _number(values: dict[str, str], key: str, default: str | None = None) -> float:
    found = number(values.get(key, default))
    if found is None or abs(found) >= LARGEST:
        raise ValueError(f"{key} {shown(values.get(key))}, expected a number")
    return found


def _whole(values: dict[str, str], key: str, default: int | None = None) -> int:
    found = whole_number(values.get(key, default))
    if found is None or abs(found) >= LARGEST:
        raise ValueError(f"{key} {shown(values.get(key))}, expected a whole number")
    return found
