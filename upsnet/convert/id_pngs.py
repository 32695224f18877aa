"""Two maps per image: which instance a pixel belongs to, and of which class it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from upsnet.categories import IGNORE_LABEL
from upsnet.convert.classes import ClassOptions
from upsnet.convert.label_maps import LOSSY, MAP_SUFFIXES, distinct, read_class_map, read_numbers
from upsnet.convert.layers import VOID, Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import STRICT, Item, Mistakes, Tolerance, images_by_stem, require_folder
from upsnet.io.files import list_files
from upsnet.ops.id_maps import segment_geometry

MAX_INSTANCES = 65_536
BORDER = 255
"""Instance id of pixels between objects, in VOC's maps."""
BORDER_COLOR = 224 | 224 << 8 | 192 << 16
"""The same in maps that were saved in the colours of VOC's palette."""


class IdPngs:
    """Folders of images, of instance maps and of class maps; files of one image share their stem.

    An instance is the pixels of one id (0 = none); it takes its class from the class map. Id 255 wholly without a class
    is void: the border that VOC draws around objects. Stuff is one segment of each class, whatever its ids. The pixels
    of a thing without an instance id are a crowd: what they show is known, but not where one instance ends.

    Args:
        instances, semantic: folders of the maps.
        images: folders of the images.
        options: what the user says about classes; needs a classes file, which tells the values of the class maps.
        tolerance: what is left out instead of stopping.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = False

    def __init__(
        self,
        instances: Path,
        semantic: Path,
        images: Sequence[Path],
        options: ClassOptions,
        tolerance: Tolerance = STRICT,
    ) -> None:
        if options.file is None:
            raise ValueError("--classes FILE is needed: it tells which value of the class maps is which class")
        self.classes = options.resolve([], str(options.file))
        self.notes: list[str] = []
        self.mistakes = Mistakes(tolerance.bad)
        maps = {folder: _maps_by_stem(folder) for folder in (instances, semantic)}
        pictures = images_by_stem(images)
        stems = [stem for stem in pictures if all(stem in files for files in maps.values())]
        for folder, files in maps.items():
            for stem, path in files.items():
                if stem not in stems:
                    lacking = images[0] if stem not in pictures else instances if folder == semantic else semantic
                    line = f"{path}: no {stem}.* in {lacking}, expected one; add it, or use --skip-missing"
                    if not tolerance.missing:
                        raise FileNotFoundError(line)
                    self.mistakes.lines.append(line)
        self.left_out = [path for stem, path in pictures.items() if stem not in stems]
        self.items = [
            Item(pictures[stem], pictures[stem].name, number, (maps[instances][stem], maps[semantic][stem]))
            for number, stem in enumerate(stems, start=1)
        ]

    def read(self, item: Item, picture: Picture) -> Layers:
        """Cuts the instances out of the maps of one image."""
        instance_path, class_path = item.annotation
        ids = read_numbers(instance_path, "instances")
        channels = read_class_map(class_path, self.classes)
        if ids.shape != channels.shape:
            raise ValueError(
                f"{instance_path}: {ids.shape[1]} x {ids.shape[0]}, expected {channels.shape[1]} x {channels.shape[0]} "
                f"as {class_path}; export both anew"
            )
        num_stuff, num_classes = self.classes.categories.num_stuff, len(self.classes.categories)
        present, rows = distinct(ids)
        if len(present) > MAX_INSTANCES:
            raise ValueError(
                f"{instance_path}: {len(present)} different values, expected at most {MAX_INSTANCES} instances; it "
                "looks like an image, not a map"
            )
        pixels = np.bincount(rows.ravel() * 256 + channels.ravel(), minlength=256 * len(present)).reshape(-1, 256)
        classes_are_dropped = VOID in self.classes.values.values()
        for instance, counts in zip(present.tolist(), pixels, strict=True):
            shown = f"{instance_path}: instance {instance}"
            unlabelled = counts[IGNORE_LABEL] + (0 if classes_are_dropped else counts[VOID])
            is_border = instance in (BORDER, BORDER_COLOR) and unlabelled == counts.sum()
            if instance and unlabelled and not is_border:
                raise ValueError(
                    f"{shown} has {unlabelled} unlabelled pixels in {class_path}, expected a class for all"
                )
            named = [self.classes.categories[c].name for c in np.flatnonzero(counts[:num_classes]).tolist()]
            if instance and len(named) > 1 and counts[num_stuff:num_classes].any():
                raise ValueError(f"{shown} has two classes in {class_path} ({', '.join(named)}), expected one")
        # one number for each pair of an id and a class of things: ids 0 of several classes are several crowds
        pairs = [(r, c) for r, c in np.argwhere(pixels[:, :num_classes]).tolist() if c >= num_stuff]
        numbers = np.zeros((len(present), 256), dtype=np.int32)
        for number, (row, channel) in enumerate(pairs, start=1):
            numbers[row, channel] = number
        regions = _cut(numbers[rows, channels], [(c, present[r] == 0) for r, c in pairs])
        channels[(channels >= num_stuff) & (channels != VOID)] = IGNORE_LABEL
        return Layers((ids.shape[0], ids.shape[1]), regions, channels)


def _maps_by_stem(folder: Path) -> dict[str, Path]:
    require_folder(folder, "maps")
    files: dict[str, Path] = {}
    for path in list_files(folder, MAP_SUFFIXES | LOSSY):
        if path.stem in files:
            raise ValueError(f"{path}: {files[path.stem].name} has this stem too, expected one map per image")
        files[path.stem] = path
    return files


def _cut(numbers: npt.NDArray[np.int32], kinds: list[tuple[int, bool]]) -> list[Region]:
    """The regions 1..n of a map, given the channel of each and whether it is a crowd."""
    areas, boxes = segment_geometry(numbers, len(kinds))
    return [
        Region(channel, numbers[y1:y2, x1:x2] == number, top=y1, left=x1, area=area, is_crowd=is_crowd)
        for number, ((channel, is_crowd), area, (x1, y1, x2, y2)) in enumerate(
            zip(kinds, areas.tolist(), boxes.tolist(), strict=True), start=1
        )
    ]
