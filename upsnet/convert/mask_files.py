"""One mask file for each instance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from upsnet.categories import IGNORE_LABEL
from upsnet.convert.classes import ClassOptions
from upsnet.convert.label_maps import LOSSY, MAP_SUFFIXES, read_mask
from upsnet.convert.layers import Layers, Region
from upsnet.convert.orientation import Picture
from upsnet.convert.source import STRICT, Item, Mistakes, Tolerance, images_by_stem, require_folder
from upsnet.io.files import list_visible
from upsnet.io.images import list_images

TOKEN = re.compile(r"[^\W_]+")
"""A part of a file name between separators."""
FORMS = "STEM/CLASS_k.png, CLASS/STEM_k.png or STEM_CLASS_k.png"
MIN_HINTED = 3
"""So many masks that are each a class of their own are probably numbered, not named."""


class MaskFiles:
    """Mask files, each with one instance. Pixels are on where they are not black.

    The image of a mask is named by a folder or by a part of the file name; the class is the other folder, or the rest
    of the file name without numbers:

    - `masks/STEM/CLASS_k.png`, `masks/CLASS/STEM_k.png`, `masks/STEM_CLASS_k.png` and the like;
    - without `masks`: `images` holds a folder for each image, with `images/*` (one image) and `masks/*` (2018 Data
      Science Bowl). The image is named after the folder.

    With `label` all instances have that class, and names say nothing about it.

    Args:
        masks: folder of the masks; None: see above.
        images: folders of the images, or of the folders.
        options: what the user says about classes; labels without a classes file get ids in alphabetical order.
        tolerance: what is left out instead of stopping.
        label: class of all instances.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """

    applies_exif = False

    def __init__(
        self,
        masks: Path | None,
        images: Sequence[Path],
        options: ClassOptions,
        tolerance: Tolerance = STRICT,
        *,
        label: str | None = None,
    ) -> None:
        self.mistakes = Mistakes(tolerance.bad)
        if masks is None:
            pictures, found = _bundles(images, label)
        else:
            require_folder(masks, "masks")
            pictures = images_by_stem(images)
            found = self._by_name(masks, pictures, tolerance, label)
        source = str(masks or images[0])
        labels = {name for files in found.values() for _, name in files} | ({label} if label else set())
        self.notes = _hints(found)
        if len(labels) >= IGNORE_LABEL:
            raise ValueError(f"{source}: {len(labels)} classes, expected at most {IGNORE_LABEL - 1}: {self.notes[0]}")
        self.classes = options.resolve([(None, name) for name in sorted(labels)], source)
        self.notes += options.notes(labels)
        self.left_out = [path for stem, path in pictures.items() if stem not in found]
        self.items = [
            Item(path, f"{stem}{path.suffix}", number, found[stem], is_annotated=bool(found[stem]))
            for number, (stem, path) in enumerate(pictures.items(), start=1)
            if stem in found
        ]

    def _by_name(self, masks: Path, pictures: dict[str, Path], tolerance: Tolerance, label: str | None) -> _Found:
        found: _Found = {}
        for path in _masks_below(masks):
            stem, name = _image_and_label(path.relative_to(masks), pictures)
            if stem is None:
                line = (
                    f"{path}: neither a folder nor its name has the name of an image in "
                    f"{next(iter(pictures.values())).parent}, expected {FORMS} below {masks}; rename it"
                )
                if not tolerance.missing:
                    raise FileNotFoundError(line)
                self.mistakes.lines.append(line)
                continue
            if not (label or name):
                raise ValueError(f"{path}: its name tells no class, expected {FORMS}; give the class with --label NAME")
            found.setdefault(stem, []).append((path, label or name))
        for folder in (p for p in list_visible(masks) if p.is_dir()):  # an empty folder: nothing was found in the image
            if folder.name in pictures:
                found.setdefault(folder.name, [])
        return found

    def read(self, item: Item, picture: Picture) -> Layers:
        """Reads the masks of one image."""
        size: tuple[int, int] | None = None
        regions = []
        mistakes = Mistakes(self.mistakes.are_skipped)
        for path, label in item.annotation:
            with mistakes.of_file():
                mask = read_mask(path)
                if size is not None and mask.shape != size:
                    raise ValueError(
                        f"{path}: mask of {mask.shape[1]} x {mask.shape[0]}, expected {size[1]} x {size[0]} as the "
                        f"others of {item.path}"
                    )
                size = (mask.shape[0], mask.shape[1])
                with mistakes.of(str(path)):
                    regions.append(Region.of(self.classes.channel(label), mask))
        return Layers(size or picture.stored, regions, mistakes=mistakes.lines)


_Found = dict[str, list[tuple[Path, str]]]
"""Stem of an image -> its masks with their labels."""


def _bundles(roots: Sequence[Path], label: str | None) -> tuple[dict[str, Path], _Found]:
    """Folders STEM with `images/*` and `masks/*`."""
    if label is None:
        raise ValueError(f"{roots[0]}: file names of this form tell no class; give it with --label NAME")
    pictures: dict[str, Path] = {}
    found: _Found = {}
    for root in roots:
        require_folder(root, "folders STEM/images and STEM/masks")
        for folder in (p for p in list_visible(root) if p.is_dir()):
            images = list_images(folder / "images")
            if len(images) != 1:
                raise ValueError(f"{folder / 'images'}: {len(images)} images, expected one")
            if folder.name in pictures:
                raise ValueError(f"{folder}: {pictures[folder.name]} has this name too, expected each once; rename one")
            pictures[folder.name] = images[0]
            if (folder / "masks").is_dir():
                found[folder.name] = [(path, label) for path in _masks_below(folder / "masks")]
    if not pictures:
        raise FileNotFoundError(
            f"{roots[0]}: no folders STEM/images and STEM/masks; name the folder of masks with --masks"
        )
    return pictures, found


def _image_and_label(path: Path, pictures: dict[str, Path]) -> tuple[str | None, str]:
    """The stem of a mask's image (None if there is none), and its label (empty if its name tells none)."""
    folders = list(path.parent.parts)
    by_folder = next((stem for folder in folders for stem in (folder, Path(folder).stem) if stem in pictures), None)
    name = path.stem
    if by_folder is not None:
        stem: str | None = by_folder
        folders = [folder for folder in folders if by_folder not in (folder, Path(folder).stem)]
        name = re.sub(rf"^{re.escape(by_folder)}(?=[\W_]|$)", "", name)  # a name may repeat that of its folder
    else:
        stem, name = _image_in(name, pictures)
    if folders:
        return stem, folders[-1]
    words = [word for word in TOKEN.findall(name) if not word.isdigit()]
    return stem, _between(name, words)


def _image_in(name: str, pictures: dict[str, Path]) -> tuple[str | None, str]:
    """The longest part of a name, between separators, that is the stem of an image, and the rest of the name."""
    starts = [match.start() for match in TOKEN.finditer(name)]
    ends = [match.end() for match in TOKEN.finditer(name)]
    parts = sorted(
        ((start, end) for start in {0, *starts} for end in {*ends, len(name)} if start < end),
        key=lambda part: (part[0] - part[1], part[0]),
    )
    for start, end in parts:
        if name[start:end] in pictures:
            return name[start:end], f"{name[:start]} {name[end:]}"
    return None, ""


def _between(name: str, words: list[str]) -> str:
    """The text from the first word to the last one, with the separators between them."""
    if not words:
        return ""
    start, end = name.index(words[0]), name.rindex(words[-1]) + len(words[-1])
    return name[start:end].strip()


def _hints(found: _Found) -> list[str]:
    """Points out that every mask became a class of its own."""
    count = Counter(label for files in found.values() for _, label in files)
    if len(count) < MIN_HINTED or max(count.values()) > 1:
        return []
    return [
        f"each of the {len(count)} mask files became a class of its own ({', '.join(sorted(count)[:3])}, ...); "
        "--label NAME makes them one class"
    ]


def _masks_below(folder: Path) -> list[Path]:
    """The mask files below a folder, in the order of the numbers in their names: 2 before 10."""

    def walk(place: Path) -> Iterator[Path]:
        for path in list_visible(place):
            if path.is_dir():
                yield from walk(path)
            elif path.suffix.lower() in MAP_SUFFIXES | LOSSY:
                yield path

    def key(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", str(path.relative_to(folder)))
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]

    return sorted(walk(folder), key=key)
