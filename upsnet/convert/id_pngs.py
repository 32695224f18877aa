"""Two maps a picture: which instance a pixel belongs to, and of which class it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from upsnet.categories import IGNORE_LABEL
from upsnet.convert.classes import ClassOptions
from upsnet.convert.label_maps import LOSSY, MAP_SUFFIXES, distinct, read_class_map, read_numbers
from upsnet.convert.layers import Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import Item, require_folder
from upsnet.io.files import list_files
from upsnet.io.images import list_images
from upsnet.ops.id_maps import segment_geometry

BORDER = 255
"""Instance id of pixels between objects, in VOC's maps."""


class IdPngs:
    """Folders of pictures, of instance maps and of class maps; files of one picture share their stem.

    An instance is the pixels of one id (0 = none); it takes its class from the class map. Id 255 wholly without a class
    is void: the border that VOC draws around objects. Stuff is one segment of each class, whatever its ids. The pixels
    of a thing without an instance id are a crowd: what they show is known, but not where one instance ends.

    Args:
        images, instances, semantic: the folders.
        options: what the user says about classes; needs a classes file, which tells the values of the class maps.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = False

    def __init__(self, images: Path, instances: Path, semantic: Path, options: ClassOptions) -> None:
        if options.file is None:
            raise ValueError("--classes FILE is needed: it tells which value of the class maps is which class")
        self.classes = options.resolve([], str(options.file))
        maps = {folder: _maps_by_stem(folder) for folder in (instances, semantic)}
        pictures = {path.stem: path for path in list_images(images)}
        stems = [stem for stem in pictures if all(stem in files for files in maps.values())]
        for folder, files in maps.items():
            for stem, path in files.items():
                if stem not in stems:
                    lacking = images if stem not in pictures else instances if folder == semantic else semantic
                    raise FileNotFoundError(
                        f"{path}: no {stem}.* in {lacking}, expected one; add it, or remove this file"
                    )
        self.left_out = [path for stem, path in pictures.items() if stem not in stems]
        self.items = [
            Item(pictures[stem], pictures[stem].name, number, (maps[instances][stem], maps[semantic][stem]))
            for number, stem in enumerate(stems, start=1)
        ]

    def read(self, item: Item, picture: Picture) -> Layers:
        """Cuts the instances out of the maps of one picture."""
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
        pixels = np.bincount(rows.ravel() * 256 + channels.ravel(), minlength=256 * len(present)).reshape(-1, 256)
        for instance, counts in zip(present.tolist(), pixels, strict=True):
            shown = f"{instance_path}: instance {instance}"
            is_border = instance == BORDER and counts[IGNORE_LABEL] == counts.sum()
            if instance and counts[IGNORE_LABEL] and not is_border:
                raise ValueError(
                    f"{shown} has {counts[IGNORE_LABEL]} unlabelled pixels in {class_path}, expected a class for all"
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
        channels[channels >= num_stuff] = IGNORE_LABEL
        return Layers((ids.shape[0], ids.shape[1]), regions, channels)


def _maps_by_stem(folder: Path) -> dict[str, Path]:
    require_folder(folder, "maps")
    files: dict[str, Path] = {}
    for path in list_files(folder, MAP_SUFFIXES | LOSSY):
        if path.stem in files:
            raise ValueError(f"{path}: {files[path.stem].name} has this stem too, expected one map a picture")
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
