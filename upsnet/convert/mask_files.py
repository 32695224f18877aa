"""One mask file an instance."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from upsnet.convert.classes import ClassOptions
from upsnet.convert.label_maps import LOSSY, MAP_SUFFIXES, read_mask
from upsnet.convert.layers import Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import Item, require_folder
from upsnet.io.files import list_files, list_visible
from upsnet.io.images import list_images

NUMBERED = re.compile(r"(.+)[_-]\d+")


class MaskFiles:
    """Masks in one of three forms, told apart by what is there.

    - without `masks`: `images` holds a folder for each picture, with `images/*` (one picture) and `masks/*` (2018 Data
      Science Bowl). The picture is named after the folder.
    - `masks` holds folders: `masks/STEM/CLASS_k.png` for the picture STEM.*
    - `masks` holds files: `masks/STEM_CLASS_k.png`

    With `label` all instances have that class, and file names say nothing. Pixels are on where they are not black.

    Args:
        images: folder of the pictures, or of the folders.
        masks: folder of the masks.
        options: what the user says about classes; labels without a classes file get ids in alphabetical order.
        label: class of all instances.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = False

    def __init__(
        self, images: Path, options: ClassOptions, masks: Path | None = None, label: str | None = None
    ) -> None:
        require_folder(images, "pictures")
        if masks is None:
            found = _bundles(images)
            if label is None:
                raise ValueError(f"{images}: file names of this form tell no class; give it with --label NAME")
        else:
            require_folder(masks, "masks")
            in_folders = any(path.is_dir() for path in list_visible(masks))
            found = _by_folder(images, masks) if in_folders else _by_name(images, masks)
        if label is not None:
            found = {s: (p, files and [(path, label) for path, _ in files]) for s, (p, files) in found.items()}
        labels = {name for _, files in found.values() for _, name in files or ()} | ({label} if label else set())
        self.classes = options.resolve([(None, name) for name in sorted(labels)], str(masks or images))
        self.left_out = [picture for picture, files in found.values() if files is None]
        self.items = [
            Item(picture, f"{stem}{picture.suffix}", number, files)
            for number, (stem, (picture, files)) in enumerate(found.items(), start=1)
            if files is not None
        ]

    def read(self, item: Item, picture: Picture) -> Layers:
        """Reads the masks of one picture."""
        size: tuple[int, int] | None = None
        regions = []
        for path, label in item.annotation:
            mask = read_mask(path)
            if size is not None and mask.shape != size:
                raise ValueError(
                    f"{path}: mask of {mask.shape[1]} x {mask.shape[0]}, expected {size[1]} x {size[0]} as the others "
                    f"of {item.path}"
                )
            size = (mask.shape[0], mask.shape[1])
            regions.append(Region.of(self.classes.channel(label, str(path)), mask))
        return Layers(size or picture.stored, regions)


_Found = dict[str, tuple[Path, list[tuple[Path, str]] | None]]
"""Stem -> picture, and its masks with their labels; None: not annotated."""


def _bundles(root: Path) -> _Found:
    found: _Found = {}
    for folder in (p for p in list_visible(root) if p.is_dir()):
        pictures = list_images(folder / "images")
        if len(pictures) != 1:
            raise ValueError(f"{folder / 'images'}: {len(pictures)} pictures, expected one")
        is_annotated = (folder / "masks").is_dir()
        found[folder.name] = (pictures[0], _labelled(_masks(folder / "masks"), "") if is_annotated else None)
    if not found:
        raise FileNotFoundError(f"{root}: no folders STEM/images and STEM/masks; name the folder of masks with --masks")
    return found


def _by_folder(images: Path, masks: Path) -> _Found:
    pictures = {path.stem: path for path in list_images(images)}
    folders = {path.name: path for path in list_visible(masks) if path.is_dir()}
    if loose := _masks(masks):
        raise ValueError(f"{loose[0]}: a mask beside folders of masks, expected all in folders, or none")
    for name, folder in folders.items():
        if name not in pictures:
            raise FileNotFoundError(f"{folder}: no picture {name}.* in {images}; add it, or remove the folder")
    return {s: (path, _labelled(_masks(folders[s]), "") if s in folders else None) for s, path in pictures.items()}


def _by_name(images: Path, masks: Path) -> _Found:
    """The longest stem that a file name begins with is its picture's."""
    pictures = {path.stem: path for path in list_images(images)}
    files: dict[str, list[Path]] = defaultdict(list)
    for path in _masks(masks):
        parts = path.stem.split("_")
        stems = ["_".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
        stem = next((name for name in stems if name in pictures), None)
        if stem is None:
            raise FileNotFoundError(
                f"{path}: its name begins with that of no picture in {images}, expected STEM_CLASS_k.png; rename one"
            )
        files[stem].append(path)
    return {s: (path, _labelled(files[s], f"{s}_") if s in files else None) for s, path in pictures.items()}


def _labelled(files: list[Path], prefix: str) -> list[tuple[Path, str]]:
    """With CLASS of CLASS_k or CLASS."""
    names = [path.stem.removeprefix(prefix) for path in files]
    matches = [NUMBERED.fullmatch(name) for name in names]
    return [(p, match[1] if match else name) for p, name, match in zip(files, names, matches, strict=True)]


def _masks(folder: Path) -> list[Path]:
    """In the order of numbers in their names, 2 before 10."""
    files = list_files(folder, MAP_SUFFIXES | LOSSY)
    return sorted(files, key=lambda p: [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", p.name)])
