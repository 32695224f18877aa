"""YOLO's segmentation: a text file for each image, with one polygon in a line.

A line is `class x1 y1 x2 y2 ...`: the number of the class, and points in fractions of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from upsnet.convert.classes import ClassOptions
from upsnet.convert.drawing import box_around
from upsnet.convert.export_files import SPLITS, as_list, find_image, notes_of_shared_images, read_text, split_of
from upsnet.convert.layers import Box, Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import STRICT, ImageFinder, Item, Mistakes, Tolerance, require_folder, with_own_names
from upsnet.io.coco_masks import fill_polygons
from upsnet.io.files import list_files, name_fault
from upsnet.io.images import IMAGE_SUFFIXES
from upsnet.json_values import number, whole_number
from upsnet.text import cut, parse_yaml, shown

CONFIG_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAMES_FILE = "classes.txt"
SLACK = 0.01
"""So far outside of 0 to 1 may a coordinate be; programs round, and let outlines run over the edge."""
LIST_SUFFIX = ".txt"
NUMBERS_OF_A_BOX = 5
MAX_PATH = 2000
"""Characters of a path in data.yaml at most."""
SHOWN_PLACES = 6
"""Places where a folder was looked for, in errors."""


@dataclass(frozen=True)
class _Image:
    """An image, its name in the data set, its label file, which need not exist, and its split."""

    path: Path
    name: str
    labels: Path
    split: str | None


@dataclass(frozen=True)
class _Place:
    """A folder of images, or a text file with paths of images, and its split."""

    path: Path
    split: str | None = None


@dataclass(frozen=True)
class _Lacking:
    """An entry of data.yaml that does not exist.

    Attributes:
        key: `train`, `val` or another name of a split.
        text: the path there.
        tried: where it was looked for.
    """

    key: str
    text: str
    tried: Sequence[Path]

    def name(self) -> str:
        return f"{self.key} {shown(self.text)}"

    def is_list(self) -> bool:
        return PurePosixPath(self.text).suffix.lower() == LIST_SUFFIX

    def __str__(self) -> str:
        places = [cut(repr(str(path)), 200) for path in self.tried[:SHOWN_PLACES]]
        more = f" and {len(self.tried) - SHOWN_PLACES} more" if len(self.tried) > SHOWN_PLACES else ""
        return f"{self.name()} does not exist (tried {', '.join(places)}{more})"


class Yolo:
    """A data set of YOLO-seg.

    The label file of an image is where its path leads with `images` replaced by `labels`, or beside it. An image with
    an empty label file, or without one, shows no object. Ultralytics measures and shows images as their EXIF
    orientation says, so that the fractions are of the upright image.

    An entry of `data.yaml` is a path below its `path`, or else below the folder of the file. If neither exists, the
    ends of the entry are tried below that folder, because programs write paths of other machines. An image of two
    splits counts for the first one.

    Args:
        annotations: `data.yaml`, or a folder with `data.yaml`, or with `images` and `labels`, or with a folder for each
            split that has these. Without `data.yaml` a file `classes.txt` must name the classes, one in a line.
        images: folders of the images, if they are not where `annotations` says.
        options: what the user says about classes. All names of data.yaml are classes, in its order.
        tolerance: what is left out instead of stopping; `missing` also leaves out `train` and `val` of `data.yaml` if
            their folders do not exist. `test` is always left out then.

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
        root, config_path = _config_path(annotations)
        config = _read_config(config_path) if config_path is not None else {}
        self.source = config_path or root
        self.labels = _names(self.source, config) if config_path is not None else _names_file(root)
        self.classes = options.resolve([(None, name) for name in dict.fromkeys(self.labels.values())], str(self.source))
        self.notes = options.notes(self.labels.values())
        self.mistakes = Mistakes(tolerance.bad)
        self.left_out: list[Path] = []
        finder = ImageFinder(list(images) or [root], tolerance)
        places, lacking = self._places(root, config)
        lacking = [entry for entry in lacking if entry.is_list() or not images]  # `images` replaces the folders
        required = [entry for entry in lacking if split_of(entry.key) != "test"]
        if required and not tolerance.missing:
            raise FileNotFoundError(
                f"{self.source}: {'; '.join(map(str, required))}; correct the paths there, or leave such splits out "
                "with --skip-missing"
            )
        self.notes += [f"{self.source}: {entry.name()} does not exist and is left out" for entry in lacking]
        found = self._find(root, places, images, finder)
        if not found and not finder.missing:
            reason = f"; {'; '.join(map(str, lacking))}" if lacking else ""
            raise FileNotFoundError(f"{self.source}: no image found, expected folders 'images' and 'labels'{reason}")
        finder.missing += _without_image(found, self.source)
        finder.require_all(self.mistakes)
        self.items = with_own_names(self._items(found), str(self.source))

    def _places(self, root: Path, config: Mapping[str, Any]) -> tuple[list[_Place], list[_Lacking]]:
        """Where the images of all splits are, and the entries of `data.yaml` that do not exist."""
        names = [name for names in SPLITS.values() for name in names]
        named = {name: config[name] for name in names if config.get(name)}
        base = config.get("path") or ""
        if not isinstance(base, str):
            raise ValueError(f"{self.source}: path {shown(base)}, expected a folder, in quotes if it is a number")
        places: list[_Place] = []
        lacking: list[_Lacking] = []
        for name, value in named.items():
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) and text.strip() for text in values):
                raise ValueError(f"{self.source}: {name} {shown(value)}, expected a path, or a list of paths")
            for text in values:
                tried = _candidates(text, root, base)
                path = next(filter(_exists, tried), None)
                if path is None:
                    lacking.append(_Lacking(name, text, tried))
                else:
                    places.append(_Place(path, split_of(name)))
        if not named:
            folders = [(name, path) for name in names for path in (root / "images" / name, root / name / "images")]
            places = [_Place(path, split_of(name)) for name, path in folders if path.is_dir()]
            if not places and (root / "images").is_dir():
                places = [_Place(root / "images")]
        return places, lacking

    def _find(self, root: Path, places: Sequence[_Place], images: Sequence[Path], finder: ImageFinder) -> list[_Image]:
        """The images of the places, each once. Folders of images that the user gives replace the folders there."""
        if images:
            lists = [place for place in places if place.path.is_file()]
            places = lists or [_Place(folder) for folder in images]
        found: dict[Path, _Image] = {}
        members: dict[str, set[Path]] = {}
        for place in places:
            for image in self._listed(place, root, finder) if place.path.is_file() else _in(place, root):
                path = image.path.resolve()
                found.setdefault(path, image)
                if image.split is not None:
                    members.setdefault(image.split, set()).add(path)
        self.notes += notes_of_shared_images(members, str(self.source))
        return list(found.values())

    def _listed(self, place: _Place, root: Path, finder: ImageFinder) -> Iterator[_Image]:
        """The images that a text file names, one in a line."""
        for row, line in enumerate(read_text(place.path).splitlines(), start=1):
            text = line.strip()
            if not text:
                continue
            with self.mistakes.of(f"{place.path}: line {row}"):
                tried = [*_candidates(text, place.path.parent), *_candidates(text, root)]
                path = next((path for path in tried if _exists(path) and path.is_file()), None)
                name = _below_images(PurePosixPath(text.replace("\\", "/")))
                found = (path, name) if path is not None else find_image(finder, [text, name], str(place.path))
                if found is not None:
                    labels, (first, *rest) = _label_file(path or root / text, name, root), PurePosixPath(name).parts
                    is_split = bool(rest) and place.split is not None and split_of(first) == place.split
                    yield _Image(found[0], "/".join(rest) if is_split else name, labels, place.split)

    def _items(self, images: Sequence[_Image]) -> list[Item]:
        """Reads all label files once, to see which images show an object and that they hold polygons."""
        items = []
        boxes, polygons, files, first = 0, 0, 0, ""
        for row, image in enumerate(images, start=1):
            with self.mistakes.of_file():
                counts = [len(line.split()) for line in _label_lines(image.labels)]
                files += image.labels.is_file()
                if NUMBERS_OF_A_BOX in counts:
                    first = first or f"{image.labels}: line {counts.index(NUMBERS_OF_A_BOX) + 1}"
                boxes += counts.count(NUMBERS_OF_A_BOX)
                polygons += sum(count not in (0, NUMBERS_OF_A_BOX) for count in counts)
                items.append(Item(image.path, image.name, row, image.labels, any(counts), image.split))
        if boxes and not polygons:
            raise ValueError(
                f"{first}: 5 numbers are a box, as in all {boxes} lines, expected polygons of 7 or more; export for "
                "segmentation, not for detection"
            )
        if items and not files:
            raise FileNotFoundError(f"{images[0].labels}: no such label file, nor one of any other image")
        return items

    def read(self, item: Item, picture: Picture) -> Layers:
        """Draws the polygons of one image."""
        path, size = item.annotation, picture.upright
        mistakes = Mistakes(self.mistakes.are_skipped)
        regions = []
        for row, line in enumerate(_label_lines(path), start=1):
            values = line.split()
            if values:
                with mistakes.of(f"{path}: line {row}", _box(values[1:], size)):
                    regions.append(self._region(values, size))
        return Layers(size, regions, mistakes=mistakes.lines, unknown=mistakes.unknown)

    def _region(self, values: Sequence[str], size: tuple[int, int]) -> Region:
        label = self.labels.get(-1 if (row := whole_number(values[0])) is None else row)
        if label is None:
            known = cut(", ".join(f"{row} {name}" for row, name in self.labels.items()), 200)
            raise ValueError(f"class {shown(values[0])}, expected a number of {self.source} ({known})")
        if len(values) == NUMBERS_OF_A_BOX:
            raise ValueError(f"5 numbers are a box, expected a polygon of 7 or more; draw {shown(label)} as a polygon")
        if len(values) % 2 == 0:
            raise ValueError(f"{len(values) - 1} coordinates, expected pairs x y")
        fractions = [number(text) for text in values[1:]]
        for text, fraction in zip(values[1:], fractions, strict=True):
            if fraction is None:
                raise ValueError(f"{shown(text)}, expected a number")
            if not -SLACK <= fraction <= 1 + SLACK:
                raise ValueError(
                    f"coordinate {shown(text)}, expected 0 to 1 (fractions of the image's width and height, not pixels)"
                )
        return Region.of(self.classes.channel(label), fill_polygons([_pixels(fractions, size)], size))


def _pixels(fractions: Sequence[float | None], size: tuple[int, int]) -> list[float]:
    sides = (size[1], size[0])
    return [(fraction or 0.0) * sides[place % 2] for place, fraction in enumerate(fractions)]


def _box(values: Sequence[str], size: tuple[int, int]) -> Box | None:
    """The pixels that a polygon or a box (centre, width and height) may touch."""
    fractions = [number(text) for text in values]
    if not all(fraction is not None and abs(fraction) <= 2 for fraction in fractions) or len(fractions) < 2:
        return None
    if len(fractions) == NUMBERS_OF_A_BOX - 1:
        x, y, width, height = (fraction or 0.0 for fraction in fractions)
        fractions = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return box_around(_pixels(fractions, size), size)


def _config_path(annotations: Path | Sequence[Path]) -> tuple[Path, Path | None]:
    """The folder of the data set, and its data.yaml if it has one."""
    paths = as_list(annotations)
    if len(paths) != 1:
        raise ValueError(f"{len(paths)} annotations, expected one data.yaml or one folder")
    path = paths[0]
    if path.is_dir():
        return path, next((path / name for name in CONFIG_NAMES if (path / name).is_file()), None)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected data.yaml or a folder")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ValueError(f"{path}: expected data.yaml, or a folder with 'images' and 'labels'")
    return path.parent, path


def _read_config(path: Path) -> Mapping[str, Any]:
    document = parse_yaml(read_text(path), source=str(path))
    if not isinstance(document, dict):
        raise ValueError(f"{path}: {shown(document)}, expected a mapping with 'names' as in data.yaml of YOLO")
    return document


def _names(path: Path, config: Mapping[str, Any]) -> dict[int, str]:
    """Number -> name of each class.

    Raises:
        ValueError: there are no names, or one is no text.
    """
    names = config.get("names")
    rows = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(rows, dict) or not rows:
        raise ValueError(f"{path}: names {shown(names)}, expected a list of the names of the classes")
    found: dict[int, str] = {}
    for key, name in rows.items():
        row = whole_number(key)
        if row is None or row < 0 or not isinstance(name, str | int) or isinstance(name, bool):
            raise ValueError(f"{path}: names: {shown(key)}: {shown(name)}, expected a number and a text in quotes")
        found[row] = str(name)
    if config.get("nc") is not None and whole_number(config["nc"]) != len(found):
        raise ValueError(f"{path}: nc {shown(config['nc'])}, expected {len(found)}, the number of 'names'")
    return dict(sorted(found.items()))


def _names_file(root: Path) -> dict[int, str]:
    """Number -> name of each class, from a file with one name in a line."""
    path = next((p for p in (root / NAMES_FILE, root / "labels" / NAMES_FILE) if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{root / CONFIG_NAMES[0]}: no such file, nor {NAMES_FILE}; one of them must name the classes"
        )
    names = [line.strip() for line in read_text(path).splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise ValueError(f"{path}: expected the name of a class in each line")
    return dict(enumerate(names))


def _label_lines(path: Path) -> list[str]:
    """The lines of a label file, which need not exist."""
    return read_text(path).splitlines() if path.is_file() else []


def _candidates(text: str, root: Path, base: str = "") -> list[Path]:
    """Where a path of data.yaml may lead, the most certain place first.

    Args:
        text: the path, of POSIX or of Windows. Roboflow writes `../train/images` where `train/images` is right.
        root: folder of data.yaml.
        base: `path` of data.yaml.

    Returns:
        The path below `base`, the path below `root`, then its ends below `root`, the longest first.
    """
    if len(text) + len(base) > MAX_PATH:
        return []
    folder, path = (Path(part.replace("\\", "/")) for part in (base, text))
    whole = PureWindowsPath(base) / PureWindowsPath(text)  # takes both kinds of slashes
    names = [part for part in whole.parts if part not in ("..", ".", whole.anchor)]
    # An end of one name, as `images`, may be that of another split.
    ends = [root.joinpath(*names[start:]) for start in range(max(len(names) - 1, 1))]
    return list(dict.fromkeys([root / folder / path, root / path, *ends]))


def _exists(path: Path) -> bool:
    """Whether there is a folder or a file. A path that the system refuses, as too long or as private, is none."""
    try:
        return path.is_dir() or path.is_file()
    except (OSError, ValueError):
        return False


def _below_images(path: PurePosixPath) -> str:
    """The part of a path after its last folder `images`; its last part if there is none, or if it leaves the folder."""
    parts = path.parts
    rows = [row for row, part in enumerate(parts[:-1]) if part == "images"]
    below = str(PurePosixPath(*parts[rows[-1] + 1 :])) if rows else path.name
    return path.name if name_fault(below) is not None else below


def _label_file(image: Path, name: str, root: Path) -> Path:
    """Where the label file of an image is, or would be; `name` is its path in a folder of images."""
    parts = list(image.parts)
    rows = [row for row, part in enumerate(parts[:-1]) if part == "images"]
    places = [image, root / "labels" / name, root / name]
    if rows:
        parts[rows[-1]] = "labels"
        places.insert(0, Path(*parts))
    files = [place.with_suffix(".txt") for place in places]
    return next((file for file in files if file.is_file()), files[0])


def _in(place: _Place, root: Path) -> Iterator[_Image]:
    """The images in a folder and in its folders."""
    require_folder(place.path, "images")
    for path in sorted(place.path.rglob("*")):
        name = path.relative_to(place.path)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not any(p.startswith(".") for p in name.parts):
            yield _Image(path, name.as_posix(), _label_file(path, name.as_posix(), root), place.split)


def _without_image(images: Sequence[_Image], source: Path) -> list[str]:
    """A line for each label file in a folder `labels` that belongs to no image."""
    files = {image.labels for image in images}
    folders = sorted({file.parent for file in files if "labels" in file.parts})
    found = [path for folder in folders if folder.is_dir() for path in list_files(folder, {".txt"})]
    return [
        f"{path}: a label file without an image, which {source} should have"
        for path in found
        if path not in files and path.name != NAMES_FILE
    ]
