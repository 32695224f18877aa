"""Pascal VOC's segmentation: maps of instances and of classes in the colours of a palette.

CVAT's export "Segmentation mask 1.1" has the same folders, and a `labelmap.txt` that tells the colours of the classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from upsnet.categories import IGNORE_LABEL
from upsnet.convert.classes import Classes, ClassOptions
from upsnet.convert.export_files import SPLITS, as_list, images_left_out, notes_of_shared_images, read_text, split_of
from upsnet.convert.id_pngs import BORDER_COLOR, IdPngs
from upsnet.convert.layers import VOID, Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import STRICT, ImageFinder, Item, Mistakes, Tolerance, require_folder, with_own_names
from upsnet.io.files import list_files, name_fault
from upsnet.io.images import open_image
from upsnet.text import shown

NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The classes of VOC; their values are 1 to 20."""
LABELMAP = "labelmap.txt"
IMAGE_SETS = Path("ImageSets", "Segmentation")
COLOR = re.compile(r"([0-9]{1,3}),([0-9]{1,3}),([0-9]{1,3})")


class Voc(IdPngs):
    """A folder with `JPEGImages`, `SegmentationObject` and `SegmentationClass`, as VOC and CVAT write it.

    A `labelmap.txt` names the classes and their colours; without one the values are VOC's 20 classes, or those of a
    classes file. Black or value 0 is the background. The border around objects (255) is void. The lists of images in
    `ImageSets/Segmentation` give the splits.

    Args:
        annotations: the folder.
        images: folders of the images; by default `JPEGImages`.
        options: what the user says about classes.
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
        roots = as_list(annotations)
        if len(roots) != 1:
            raise ValueError(f"{len(roots)} folders of annotations, expected one with SegmentationObject in it")
        root = roots[0]
        self.mistakes = Mistakes(tolerance.bad)
        instances, semantic = (_maps(root / name) for name in ("SegmentationObject", "SegmentationClass"))
        self.classes, self.notes = _classes(root, options, next(iter(semantic.values()), None))
        photos = root / "JPEGImages"
        finder = ImageFinder(images or [photos if photos.is_dir() else root], tolerance)
        members = _splits(root / IMAGE_SETS, instances)
        self.notes += notes_of_shared_images(members, str(root / IMAGE_SETS))
        split_of_stem = {stem: split for split in reversed(members) for stem in members[split]}
        items = []
        for row, stem in enumerate(sorted(instances | semantic), start=1):
            with self.mistakes.of(str(root)):
                if stem not in instances or stem not in semantic:
                    lacking = "SegmentationClass" if stem in instances else "SegmentationObject"
                    raise ValueError(f"no {lacking}/{stem}.png, expected one; add it, or remove the image from the set")
                found = finder.find_stem(stem, str(instances[stem]))
                if found is not None:
                    maps = (instances[stem], semantic[stem])
                    items.append(Item(*found, row, maps, split=split_of_stem.get(stem)))
        finder.require_all(self.mistakes)
        self.items = with_own_names(items, str(root))
        self.left_out = images_left_out(finder.folders, self.items)

    def read(self, item: Item, picture: Picture) -> Layers:
        """Cuts the instances out of the maps of one image; the background does not fill void pixels of the map."""
        layers = super().read(item, picture)
        void = np.isin(np.asarray(layers.semantic), (IGNORE_LABEL, VOID))
        for region in layers.regions:
            region.window(void)[region.mask] = False
        return replace(layers, regions=[*layers.regions, Region.of(IGNORE_LABEL, void)])


def _maps(folder: Path) -> dict[str, Path]:
    """The maps of a folder by their path in it without the suffix."""
    require_folder(folder, "maps")
    paths = (path for path in sorted(folder.rglob("*.png")) if not path.name.startswith(".") and path.is_file())
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def _classes(root: Path, options: ClassOptions, first_map: Path | None) -> tuple[Classes, list[str]]:
    """The classes with their values in the maps, and what the user should know of them."""
    path = root / LABELMAP
    if path.is_file():
        in_colors = first_map is None or not _is_grey(first_map)
        named = [(value, name) for value, name in _labelmap(path, in_colors=in_colors) if value]
        classes = options.resolve([(None, name) for _, name in named], str(path))
    else:
        in_colors, named = False, list(enumerate(NAMES, start=1))
        classes = options.resolve(named, str(root))
    values: dict[int, int] = {}
    if options.file is None or path.is_file():
        for value, name in named:
            with suppress(ValueError):  # no class of the classes file: an error only if a map has the value
                channel = classes.channel(name)
                values[value] = VOID if channel == IGNORE_LABEL else channel
    else:
        values, in_colors = classes.values, classes.in_colors
    background = IGNORE_LABEL if classes.background is None else classes.background
    values = {0: background} | ({BORDER_COLOR: VOID} if in_colors else {}) | values
    return replace(classes, values=values, in_colors=in_colors), options.notes(name for _, name in named)


def _is_grey(path: Path) -> bool:
    """Whether a map holds numbers, not colours or a palette of colours."""
    with open_image(path, what="a map", streamed=True) as image:
        return image.mode in ("1", "L") or image.mode.startswith("I")


def _labelmap(path: Path, *, in_colors: bool) -> list[tuple[int, str]]:
    """The value of each class in the maps, and its name; the value of the background is 0.

    Args:
        path: the file. A line is `name:r,g,b:parts:actions`; a class without a colour has that of its number in VOC.
        in_colors: give colours, as R + 256 G + 65536 B; else the number of each line, from 0.

    Raises:
        ValueError: a line is of another form, or a colour or a name appears twice.
    """
    found: dict[int, str] = {}
    rows = ((row, line.strip()) for row, line in enumerate(read_text(path).splitlines(), start=1))
    lines = [(row, line) for row, line in rows if line and not line.startswith("#")]
    for number, (row, line) in enumerate(lines):
        name, *rest = line.rsplit(":", 3)
        text = rest[0].replace(" ", "") if len(rest) == 3 else "none"
        color = COLOR.fullmatch(text)
        parts = [int(part) for part in color.groups()] if color is not None else []
        if not name or (text and (not parts or max(parts) > 255)):
            raise ValueError(f"{path}: line {row}: {shown(line)}, expected name:r,g,b::")
        value = number
        if in_colors:
            value = parts[0] | parts[1] << 8 | parts[2] << 16 if parts else _color(number)
        if value in found or name in found.values():
            raise ValueError(f"{path}: line {row}: {shown(line)} has the name or the colour of an earlier line")
        found[value] = name
    return list(found.items())


def _color(number: int) -> int:
    """The colour of a number in VOC's palette, as R + 256 G + 65536 B.

    The bits of the number go to red, green and blue in turn, the lowest ones to the highest bits of these.
    """
    return sum((number >> bit & 1) << (7 - bit // 3 + 8 * (bit % 3)) for bit in range(24))


def _splits(folder: Path, maps: Mapping[str, Path]) -> dict[str, list[str]]:
    """The images with a map that the lists in a folder give to each split, in the order of `SPLITS`.

    Raises:
        ValueError: a list is not text, or a line is no path.
    """
    members: dict[str, list[str]] = {split: [] for split in SPLITS}
    for path in list_files(folder, {".txt"}) if folder.is_dir() else []:
        split = split_of(path.stem)
        if split is not None:
            members[split] += [stem for stem in _listed(path) if stem in maps]
    return members


def _listed(path: Path) -> list[str]:
    stems = [stem for line in read_text(path).splitlines() if (stem := line.strip())]
    for stem in stems:
        if (fault := name_fault(stem)) is not None:
            raise ValueError(f"{path}: {shown(stem)} {fault}, expected the name of an image without its suffix")
    return stems
