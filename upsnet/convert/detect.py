"""Recognises annotation formats, to tell a user which command converts a file or a folder."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upsnet.convert.export_files import split_of
from upsnet.io.files import list_visible, read_json
from upsnet.io.images import IMAGE_SUFFIXES

MAX_ENTRIES = 20_000
"""Files and folders that are looked at."""
MAX_DEPTH = 4
MAX_JSON_BYTES = 2**20
"""A larger JSON is recognised by its first keys."""
MAX_LABELME_TRIED = 3
IMAGES = "IMAGES"
"""Stands for the folder of the images, where it cannot be guessed."""


@dataclass(frozen=True)
class Found:
    """Annotations that were recognised.

    Attributes:
        form: the subcommand of `upsnet convert`; None if no conversion is needed or possible.
        what: a description of what was found.
        options: the options of the subcommand.
        has_splits: the annotations have splits, which are kept.
    """

    form: str | None
    what: str
    options: tuple[str, ...] = ()
    has_splits: bool = False

    def command(self) -> str:
        """A command line that converts it."""
        split = () if self.has_splits else ("--split-val", "0.2")
        return shlex.join(["upsnet", "convert", str(self.form), *self.options, *split, "--output", "OUTPUT"])


def detect(path: Path) -> list[Found]:
    """Recognises the annotations in a file or below a folder.

    Args:
        path: the file or folder.

    Returns:
        What was found, the most certain first.

    Raises:
        FileNotFoundError: it does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file():
        found = _of_file(path)
        return [found] if found is not None else []
    return _of_folder(path)


def _of_file(path: Path) -> Found | None:
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return Found(None, f"{path}: an archive; unpack it, and name the folder")
    if suffix in (".yaml", ".yml"):
        if re.search(r"^names\s*:", _head(path), re.MULTILINE) is None:
            return None
        return Found("yolo", "YOLO data set", ("--annotations", str(path)), has_splits=True)
    if suffix == ".xml":
        return _of_xml(path)
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _of_json(path)
    return None


def _of_xml(path: Path) -> Found | None:
    head = _head(path)
    if "<annotations" in head:
        return Found("cvat", "CVAT for images 1.1", ("--annotations", str(path), "--images", IMAGES))
    if "<annotation" in head and "<bndbox" in head:
        return Found(None, f"{path}: Pascal VOC boxes, which have no masks; export segmentation masks or polygons")
    return None


def _of_json(path: Path) -> Found | None:
    if path.stat().st_size > MAX_JSON_BYTES:
        kind = _kind_of_large_json(_head(path, 2**16))
    else:
        try:
            kind = _kind_of_json(read_json(path))
        except (OSError, ValueError):
            return None
    if kind == "panoptic":
        return Found(None, f"{path}: a COCO panoptic JSON, which needs no conversion; name it in a config")
    if kind == "coco":
        images = () if _has_images(path.parent) else ("--images", IMAGES)
        return Found("coco", "COCO instance annotations", ("--annotations", str(path), *images))
    if kind == "label-studio":
        return Found("label-studio", "Label Studio tasks", ("--annotations", str(path), "--images", IMAGES))
    if kind == "labelme":
        return Found("labelme", "LabelMe annotations", ("--annotations", str(path.parent)))
    return None


def _kind_of_json(document: Any) -> str | None:
    if isinstance(document, list):
        tasks = [row for row in document[:5] if isinstance(row, dict)]
        return "label-studio" if any("annotations" in task or "completions" in task for task in tasks) else None
    if not isinstance(document, dict):
        return None
    if "shapes" in document and "imagePath" in document:
        return "labelme"
    rows = document.get("annotations")
    if isinstance(rows, list) and "images" in document:
        return "panoptic" if any(isinstance(row, dict) and "segments_info" in row for row in rows[:5]) else "coco"
    return None


def _kind_of_large_json(head: str) -> str | None:
    if '"shapes"' in head and '"imagePath"' in head:
        return "labelme"
    if '"segments_info"' in head:
        return "panoptic"
    if head.lstrip().startswith("[") and '"annotations"' in head:
        return "label-studio"
    return "coco" if '"images"' in head or '"annotations"' in head else None


def _of_folder(folder: Path) -> list[Found]:
    files, folders = _contents(folder)
    found = [
        *_yolo(folder, files, folders),
        *_coco(files),
        *_one_per_kind(_of_xml(path) for path in files if path.suffix.lower() == ".xml"),
        *_supervisely(files),
        *_voc(folders),
        *_label_files(files),
    ]
    return found or _masks(folder, folders)


def _yolo(folder: Path, files: list[Path], folders: list[Path]) -> list[Found]:
    for path in files:
        if path.suffix in (".yaml", ".yml") and (found := _of_file(path)) is not None:
            return [found]
    labels = [path for path in folders if path.name == "labels" or path.parent.name == "labels"]
    if any(_first_number_line(path) for path in labels):
        options = ("--annotations", str(folder), "--classes", "CLASSES")
        return [Found("yolo", "YOLO labels without a data.yaml", options, has_splits=True)]
    return []


def _coco(files: list[Path]) -> list[Found]:
    """COCO JSONs; those of one name, such as Roboflow's, in one command."""
    by_name: dict[str, list[Path]] = {}
    others = []
    for path in files:
        is_coco = path.suffix == ".json" and (found := _of_json(path)) is not None
        if is_coco and found is not None and found.form == "coco":
            by_name.setdefault(path.name, []).append(path)
        elif is_coco and found is not None and found.form is None:
            others.append(found)
    results = []
    for paths in by_name.values():
        images = () if all(_has_images(path.parent) for path in paths) else ("--images", IMAGES)
        has_splits = len(paths) > 1 and all(split_of(path.parent.name) for path in paths)
        options = ("--annotations", *map(str, paths), *images)
        results.append(Found("coco", "COCO instance annotations", options, has_splits))
    return results + others[:1]


def _supervisely(files: list[Path]) -> list[Found]:
    for path in files:
        if path.name == "meta.json" and any(other.parent.name == "ann" for other in files):
            return [Found("supervisely", "Supervisely project", ("--annotations", str(path.parent)))]
    return []


def _voc(folders: list[Path]) -> list[Found]:
    for path in folders:
        if path.name == "SegmentationObject" and (path.parent / "SegmentationClass").is_dir():
            images = () if (path.parent / "JPEGImages").is_dir() else ("--images", IMAGES)
            has_splits = (path.parent / "ImageSets" / "Segmentation").is_dir()
            return [Found("voc", "Pascal VOC segmentation", ("--annotations", str(path.parent), *images), has_splits)]
    return []


def _label_files(files: list[Path]) -> list[Found]:
    """Folders of LabelMe files, and Label Studio's JSON."""
    found: dict[Any, Found] = {}
    tried: dict[Path, int] = {}
    for path in files:
        if path.suffix != ".json" or tried.get(path.parent, 0) >= MAX_LABELME_TRIED:
            continue
        tried[path.parent] = tried.get(path.parent, 0) + 1
        one = _of_json(path)
        if one is not None and one.form in ("labelme", "label-studio"):
            found.setdefault((one.form, one.options[1]), one)
    return list(found.values())


def _masks(folder: Path, folders: list[Path]) -> list[Found]:
    """Mask files: folders STEM/images and STEM/masks, or a folder of masks beside one of images."""
    masks = [path for path in folders if path.name.lower() in ("masks", "mask", "instances")]
    bundles = [path for path in masks if (path.parent / "images").is_dir() and path.parent.parent == folder]
    if len(bundles) > 1 and all(path.name == "masks" for path in bundles):
        return [Found("masks", "a folder of masks for each image", ("--images", str(folder), "--label", "NAME"))]
    for path in masks:
        beside = [other for other in folders if other.parent == path.parent and other != path and _has_images(other)]
        images = str(beside[0]) if beside else IMAGES
        return [Found("masks", "mask files", ("--images", images, "--masks", str(path)))]
    return []


def _one_per_kind(found: Iterator[Found | None]) -> list[Found]:
    kinds: dict[Any, Found] = {}
    for one in found:
        if one is not None:
            kinds.setdefault(one.form, one)
    return list(kinds.values())


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and folders below a folder, images excepted, breadth first."""
    files: list[Path] = []
    folders: list[Path] = [folder]
    level = [folder]
    for _ in range(MAX_DEPTH):
        deeper: list[Path] = []
        for path in itertools.chain.from_iterable(list_visible(place) for place in level):
            if len(files) + len(folders) + len(deeper) > MAX_ENTRIES:
                return files, folders
            if path.is_dir():
                deeper.append(path)
            elif path.suffix.lower() not in IMAGE_SUFFIXES | {".txt"}:
                files.append(path)
        folders += deeper
        level = deeper
    return files, folders


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in itertools.islice(folder.iterdir(), 1000))


def _first_number_line(folder: Path) -> bool:
    """Whether the first text file that is not empty begins with a number."""
    for path in itertools.islice((p for p in list_visible(folder) if p.suffix == ".txt"), 20):
        words = _head(path, 200).split()
        if words:
            return words[0].isdecimal() and len(words) > 1
    return False


def _head(path: Path, length: int = 4096) -> str:
    try:
        with path.open("rb") as file:
            return file.read(length).decode("utf-8", "replace")
    except OSError:
        return ""
