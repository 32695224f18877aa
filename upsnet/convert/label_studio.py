"""Label Studio's JSON, as its export "JSON" writes it.

Brushes, ellipses, polygons and rectangles become objects. Key points, relations, and answers about the image or a
region have no area; they are skipped and counted. Any other result is a mistake.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from upsnet.categories.category_set import is_name
from upsnet.convert.classes import ClassOptions
from upsnet.convert.drawing import LARGEST, box_around, ellipse_box, fill_ellipse, rectangle, rotate
from upsnet.convert.export_files import (
    annotation_files,
    find_image,
    image_folders,
    images_left_out,
    kind_of,
    require_kind,
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
from upsnet.io.files import read_json
from upsnet.io.images import IMAGE_SUFFIXES
from upsnet.json_values import image_id, number
from upsnet.text import shown

WITH_AREA = frozenset({"brushlabels", "ellipselabels", "polygonlabels", "rectanglelabels"})
WITHOUT_AREA = frozenset({
    "choices", "datetime", "hypertextlabels", "keypoint", "keypointlabels", "number", "pairwise", "paragraphlabels",
    "ranker", "rating", "relation", "taxonomy", "textarea", "timelinelabels", "timeserieslabels",
})  # fmt: skip
LABELS = "labels"
"""Type of a result that gives a label to a region. The shape of the region is another result with the same id."""
UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
"""Label Studio puts it before the name of a file that is uploaded."""
UPLOADS = "upload"
"""Folder of uploaded files in an address, which ends in upload/PROJECT/PREFIX-NAME."""
Size = tuple[int, int]


@dataclass(frozen=True)
class _Task:
    """A task with the annotation that counts.

    Attributes:
        path: of the JSON; id: of the task.
        names: that its image may have.
        results: of the annotation, each shape with its labels; None if nobody annotated the image.
        count: annotations that were submitted.
    """

    path: Path
    id: int | str
    names: list[str]
    results: list[dict[str, Any]] | None
    count: int

    def __str__(self) -> str:
        return f"{self.path}: task {shown(self.id)}"

    def shapes(self) -> list[dict[str, Any]]:
        """The results that have an area, or may have one."""
        return [result for result in self.results or () if not _has_no_area(result)]


class LabelStudio:
    """One or several JSON files of Label Studio.

    Of several annotations of a task, the one marked as ground truth counts, else the one that was updated last.
    Cancelled annotations and predictions do not count. Label Studio rotates images as their EXIF orientation says.

    Args:
        annotations: the JSON files, or a folder with such files.
        images: folders of the images; by default `images` beside the JSON, or its own folder. A task names its image
            by a path or an address; only the name of the file counts if the folders have no such path.
        options: what the user says about classes; labels without a classes file get ids in alphabetical order.
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
        files = annotation_files(annotations, ".json", "the export 'JSON' of Label Studio")
        self.mistakes = Mistakes(tolerance.bad)
        finder = ImageFinder(image_folders(images, files), tolerance)
        tasks: list[_Task] = []
        for path in files:
            with self.mistakes.of_file():
                for place, row in enumerate(_rows(path), start=1):
                    with self.mistakes.of(f"{path}: task {shown(row.get('id', f'in row {place}'))}"):
                        tasks.append(_task(path, row, place))
        used = {label for task in tasks for shape in task.shapes() for label in _labels(shape)[:1]}
        labels = {label for label in used if is_name(label)}
        source = str(files[0]) if len(files) == 1 else f"{len(files)} JSON files of Label Studio"
        self.classes = options.resolve([(None, label) for label in sorted(labels)], source)
        self.notes = options.notes(labels) + _notes(tasks)
        items, unannotated = [], []
        for task in tasks:
            with self.mistakes.of(str(task)):
                found = find_image(finder, task.names, str(task))
                if found is not None and task.results is None:
                    unannotated.append(found[0])
                elif found is not None:
                    items.append(Item(*found, task.id, task, bool(task.shapes())))
        finder.require_all(self.mistakes)
        self.items = with_own_ids(with_own_names(items, source))
        left_out = [*images_left_out(finder.folders, self.items), *unannotated]
        self.left_out = list({path.absolute(): path for path in left_out}.values())

    def read(self, item: Item, picture: Picture) -> Layers:
        """Draws the results of one image."""
        task: _Task = item.annotation
        shapes = task.shapes()
        size = picture.upright
        first = next((shape for shape in shapes if _kind(shape) in WITH_AREA), None)
        if first is not None:
            height, width = (first.get(f"original_{side}") for side in ("height", "width"))
            size = declared_size(height, width, size, f"{task}: result {_name(first)}")
        if size not in (picture.stored, picture.upright):
            return Layers(size, [])
        skipped = Counter(_kind(result) for result in task.results or () if _has_no_area(result))
        mistakes = Mistakes(self.mistakes.are_skipped)
        regions = []
        for shape in shapes:
            kind, labels = _kind(shape), _labels(shape)
            where = f"{task}: result {_name(shape)}, {kind} {shown(labels[0] if labels else None)}"
            with mistakes.of(where, _box(shape, size)):
                require_kind(kind, WITH_AREA)
                if not labels:
                    raise ValueError("no label, expected one; choose it, or delete the shape")
                rotation = shape.get("image_rotation")
                if rotation is not None and number(rotation) != 0:
                    raise ValueError(
                        f"image_rotation {shown(rotation)}, expected 0: it was drawn on an image that was rotated in "
                        "Label Studio; rotate the file instead and draw it again"
                    )
                if declared_size(shape.get("original_height"), shape.get("original_width"), size, "image") != size:
                    raise ValueError(f"made for an image of another size, expected {size[1]} x {size[0]} as the others")
                regions.append(Region.of(self.classes.channel(labels[0]), _draw(shape, size)))
        return Layers(size, regions, skipped=skipped, mistakes=mistakes.lines, unknown=mistakes.unknown)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The tasks of a file."""
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: {shown(rows)}, expected a list of tasks as in the export 'JSON' of Label Studio")
    if any("annotations" not in row and "annotation_id" in row for row in rows):
        raise ValueError(f"{path}: an export 'JSON-MIN' of Label Studio, expected 'JSON'; export again in that format")
    return rows


def _task(path: Path, row: dict[str, Any], place: int) -> _Task:
    annotations, data = row.get("annotations"), row.get("data")
    if not isinstance(annotations, list) or not isinstance(data, dict):
        raise ValueError("no list 'annotations' or no 'data', expected the export 'JSON' of Label Studio")
    if not all(isinstance(annotation, dict) for annotation in annotations):
        raise ValueError(f"annotations {shown(annotations)}, expected objects with 'result'")
    submitted = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    results = sorted(submitted, key=_rank)[-1].get("result") if submitted else None
    if submitted and (not isinstance(results, list) or not all(isinstance(result, dict) for result in results)):
        raise ValueError(f"result {shown(results)}, expected a list of objects")
    task_id = image_id(row.get("id"))
    if results is not None:
        results = _with_labels(results)
    for result in results or ():
        _compact(result)
    return _Task(path, place if task_id is None else task_id, _image_names(data), results, len(submitted))


def _rank(annotation: dict[str, Any]) -> tuple[bool, str]:
    """Larger for the annotation that counts; times are text that sorts by time."""
    updated = annotation.get("updated_at") or annotation.get("created_at")
    return annotation.get("ground_truth") is True, updated if isinstance(updated, str) else ""


def _with_labels(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives each shape the labels of its region.

    `<Labels>` beside `<Polygon>` writes two results with the id of the region, one of type `polygon` and one of type
    `labels`. They become one of type `polygonlabels`, as `<PolygonLabels>` writes it.
    """
    with_shape = {_region_id(result) for result in results if _kind(result) != LABELS} - {None}
    labels: dict[str | None, list[Any]] = defaultdict(list)
    joined = []
    for result in results:
        if _kind(result) == LABELS and _region_id(result) in with_shape:
            labels[_region_id(result)] += _labels(result)
    for result in results:
        kind, value = f"{_kind(result)}labels", result.get("value")
        if kind in WITH_AREA and isinstance(value, dict):
            joined.append({**result, "type": kind, "value": {**value, kind: labels[_region_id(result)]}})
        elif _kind(result) != LABELS or _region_id(result) not in with_shape:
            joined.append(result)
    return joined


def _region_id(result: dict[str, Any]) -> str | None:
    found = result.get("id")
    return found if isinstance(found, str) else None


def _compact(result: dict[str, Any]) -> None:
    """Makes run lengths bytes, which need less memory than a list; other values stay for `_draw` to refuse."""
    value = result.get("value")
    code = value.get("rle") if isinstance(value, dict) else None
    if isinstance(code, list) and all(type(byte) is int and 0 <= byte < 256 for byte in code):
        value["rle"] = bytes(code)  # type: ignore[index]


def _image_names(data: dict[str, Any]) -> list[str]:
    """The names that an image may have in its folder: `data` holds a path or an address of it.

    Raises:
        ValueError: `data` names no image.
    """
    for value in (data.get("image"), *data.values()):
        paths = [PurePosixPath(name.replace("\\", "/")) for name in (_paths(value) if isinstance(value, str) else [])]
        paths = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
        if paths:
            originals = [path.with_name(path.name[9:]) for path in paths if _has_prefix(path)]
            return list(dict.fromkeys(str(path) for path in [*paths, *originals]))
    raise ValueError(f"data {shown(data)}, expected the name of an image file")


def _has_prefix(path: PurePosixPath) -> bool:
    """Whether a name begins with the prefix of an upload.

    Eight digits without a letter are a prefix only in the address of an upload, where every name has one. Elsewhere
    they are a date, or the number of a frame.
    """
    found = UPLOAD_PREFIX.match(path.name)
    return found is not None and (UPLOADS in path.parts[:-1] or not found[0][:-1].isdecimal())


def _paths(value: str) -> list[str]:
    """A path as it is, and the path in an address: in `d` of its query for local files, else as its path."""
    try:
        parts = urlsplit(value)
        return [value, *parse_qs(parts.query).get("d", []), unquote(parts.path)]
    except ValueError:  # an address with a damaged host
        return [value]


def _notes(tasks: Sequence[_Task]) -> list[str]:
    notes = []
    several = sum(task.count > 1 for task in tasks)
    if several:
        notes.append(
            f"{several} tasks have several annotations: the one marked as ground truth counts, else the one that was "
            "updated last"
        )
    with_labels = sum(len(_labels(shape)) > 1 for task in tasks for shape in task.shapes())
    if with_labels:
        notes.append(f"{with_labels} shapes have several labels: the first one counts")
    return notes


def _kind(result: dict[str, Any]) -> str:
    return kind_of(result.get("type"))


def _has_no_area(result: dict[str, Any]) -> bool:
    """Whether a result has surely no area. Only the label of a region of an image tells the size of the image."""
    kind = _kind(result)
    return kind in WITHOUT_AREA or (kind == LABELS and "original_width" not in result)


def _name(result: dict[str, Any]) -> str:
    return shown(result.get("id"))


def _labels(shape: dict[str, Any]) -> list[str]:
    value = shape.get("value")
    labels = value.get(_kind(shape)) if isinstance(value, dict) else None
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []


def _percent(value: dict[str, Any], key: str, length: int) -> float:
    """A coordinate in pixels."""
    found = number(value.get(key))
    if found is None or abs(found) >= LARGEST / length:
        raise ValueError(f"{key} {shown(value.get(key))}, expected a number (percent of the image)")
    return found / 100 * length


def _outline(shape: dict[str, Any], size: Size) -> list[float]:
    """x1, y1, x2, y2, ... of a polygon, a rectangle, the rectangle around an ellipse, or the image of a brush."""
    value, kind, (height, width) = shape["value"], _kind(shape), size
    if kind == "brushlabels":
        return rectangle(0, 0, width, height)
    if kind == "ellipselabels":
        return ellipse_box(*_ellipse(value, size))
    if kind == "rectanglelabels":
        left, top = _percent(value, "x", width), _percent(value, "y", height)
        right, bottom = left + _percent(value, "width", width), top + _percent(value, "height", height)
        return rotate(rectangle(left, top, right, bottom), (left, top), _rotation(value))
    points = value.get("points")
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise ValueError(f"points {shown(points)}, expected a list of [x, y]")
    corners = [{"x": x, "y": y} for x, y in points]
    return [c for corner in corners for c in (_percent(corner, "x", width), _percent(corner, "y", height))]


def _ellipse(value: dict[str, Any], size: Size) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Centre, radii and rotation; the documentation calls the centre the upper left corner, the program does not."""
    center = _percent(value, "x", size[1]), _percent(value, "y", size[0])
    return center, (_percent(value, "radiusX", size[1]), _percent(value, "radiusY", size[0])), _rotation(value)


def _rotation(value: dict[str, Any]) -> float:
    found = number(value.get("rotation") or 0)
    if found is None or abs(found) >= LARGEST:
        raise ValueError(f"rotation {shown(value.get('rotation'))}, expected a number (degrees)")
    return found


def _box(shape: dict[str, Any], size: Size) -> Box | None:
    if _kind(shape) not in WITH_AREA:
        return (0, 0, *size)  # it may be anywhere
    try:
        return box_around(_outline(shape, size), size) if isinstance(shape.get("value"), dict) else None
    except ValueError:
        return None


def _draw(shape: dict[str, Any], size: Size) -> npt.NDArray[np.bool_]:
    value, kind = shape["value"], _kind(shape)
    if kind == "ellipselabels":
        return fill_ellipse(*_ellipse(value, size), size)
    if kind != "brushlabels":
        return fill_polygons([_outline(shape, size)], size)
    code = value.get("rle")
    if value.get("format") != "rle" or not isinstance(code, bytes):
        raise ValueError(
            f"brush of format {shown(value.get('format'))}, expected 'rle' with a list of numbers 0 to 255"
        )
    return decode_brush(code, size)


def decode_brush(code: bytes, size: Size) -> npt.NDArray[np.bool_]:
    """The mask [H, W] of a brush: the pixels that are not transparent.

    The code is a stream of bits, the highest of each byte first. It holds the bytes R, G, B, A of all pixels, row by
    row. A head gives their number (32 bits), the bits of a value less 1 (5), and four sizes less 1 (4 each). Blocks
    follow: a bit that tells whether one value is repeated, which of the four sizes counts (2 bits), the number of
    values less 1 (so many bits), then the one value, or all values.

    Args:
        code: the bytes.
        size: (H, W) of the image.

    Raises:
        ValueError: the code is damaged, or is for an image of another size.
    """
    bits = _Bits(code)
    total, width = bits.read(32), bits.read(5) + 1
    if total != 4 * size[0] * size[1] or width != 8:
        raise ValueError(
            f"brush of {total} values of {width} bits, expected {4 * size[0] * size[1]} of 8 (4 for each of "
            f"{size[1]} x {size[0]} pixels)"
        )
    sizes = [bits.read(4) + 1 for _ in range(4)]
    values = np.zeros(total, dtype=np.uint8)
    done = 0
    while done < total:
        head = bits.read(3)
        count = bits.read(sizes[head & 3]) + 1
        if count > total - done:
            raise ValueError("brush is damaged: it has more values than the image")
        values[done : done + count] = bits.read(8) if head & 4 else bits.read_bytes(count)
        done += count
    return np.asarray(values.reshape(*size, 4)[..., 3] > 0)


class _Bits:
    """Numbers from a stream of bits, the highest bit first."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        self.place = 0

    def read(self, count: int) -> int:
        """A number of `count` bits."""
        start, end = self._advance(count)
        word = int.from_bytes(self.code[start >> 3 : (end + 7) >> 3], "big")
        return (word >> (-end & 7)) & ((1 << count) - 1)

    def read_bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """So many numbers of 8 bits."""
        start, end = self._advance(8 * count)
        bits = np.unpackbits(np.frombuffer(self.code[start >> 3 : (end + 7) >> 3], dtype=np.uint8))
        return np.packbits(bits[start & 7 : (start & 7) + 8 * count])

    def _advance(self, count: int) -> tuple[int, int]:
        start = self.place
        self.place += count
        if self.place > 8 * len(self.code):
            raise ValueError("brush is cut off")
        return start, self.place
