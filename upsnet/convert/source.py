"""What every annotation format offers to the conversion: images with names, and the regions of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from upsnet.convert.classes import Classes
from upsnet.convert.layers import Box, Layers
from upsnet.convert.orientation import Picture
from upsnet.io.files import list_visible, name_fault
from upsnet.io.images import IMAGE_SUFFIXES, list_images, require_own_stems
from upsnet.json_values import whole_number
from upsnet.text import shown


@dataclass(frozen=True)
class Item:
    """An image to convert.

    Attributes:
        path: of the image.
        name: relative path in the data set.
        given_name: the name in the annotation, if it differs.
        image_id: in the data set.
        annotation: whatever the source needs to read its layers.
        is_annotated: False if the annotation says that the image shows no object.
        split: of the source, if it has splits: train, val or test.
    """

    path: Path
    name: str
    image_id: int | str
    annotation: Any = field(repr=False)
    is_annotated: bool = True
    split: str | None = None
    given_name: str | None = None


class Source(Protocol):
    """The annotations of a data set in one format.

    Attributes:
        classes: of the data set.
        items: the annotated images.
        left_out: images without annotation.
        applies_exif: the annotation program rotates images as their EXIF orientation says.
        notes: what the user should know, a line each.
        mistakes: what was left out when the files were opened, a line each.
    """

    classes: Classes
    items: list[Item]
    left_out: list[Path]
    applies_exif: bool
    notes: list[str]
    mistakes: Mistakes

    def read(self, item: Item, picture: Picture) -> Layers:
        """The annotation of one image; called in worker processes.

        Raises:
            OSError, ValueError: one line that names the file.
        """
        ...


@dataclass(frozen=True)
class Tolerance:
    """What a conversion leaves out instead of stopping.

    Attributes:
        bad: objects and images whose annotation has a mistake.
        missing: annotations whose image does not exist.
    """

    bad: bool = False
    missing: bool = False


STRICT = Tolerance()
"""Every mistake stops the conversion."""


@dataclass
class Mistakes:
    """Mistakes in annotations: the first one stops, or all are left out and listed.

    Attributes:
        are_skipped: leave out and go on.
        lines: what was left out and why.
        unknown: boxes (top, left, bottom, right) of objects that were left out; their pixels may show an object.
    """

    are_skipped: bool = False
    lines: list[str] = field(default_factory=list)
    unknown: list[Box] = field(default_factory=list)

    @contextmanager
    def of(self, where: str, box: Box | None = None) -> Iterator[None]:
        """Runs a block that reads one object; a ValueError of the block is its mistake.

        Args:
            where: names the file and the object.
            box: where the object lies, if that is known.

        Raises:
            ValueError: `where` and the mistake, unless mistakes are skipped.
        """
        try:
            yield
        except ValueError as error:
            line = f"{where}: {error}"
            if not self.are_skipped:
                raise ValueError(line) from None
            self.lines.append(line)
            if box is not None:
                self.unknown.append(box)

    @contextmanager
    def of_file(self) -> Iterator[None]:
        """Runs a block that reads one file, whose errors name it.

        Raises:
            OSError, ValueError: the error of the block, unless mistakes are skipped.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            if not self.are_skipped:
                raise
            self.lines.append(str(error))


class ImageFinder:
    """Finds the images that annotations name, in one or several folders.

    Args:
        folders: searched in this order. With several, a name in the data set starts below their common parent if the
            same name occurs in two of them.
        tolerance: `missing` makes `find` count images that do not exist; otherwise `require_all` raises.

    Raises:
        FileNotFoundError: a folder does not exist.
    """

    def __init__(self, folders: Sequence[Path], tolerance: Tolerance = STRICT) -> None:
        for folder in folders:
            require_folder(folder, "images")
        self.folders, self.tolerance = list(folders), tolerance
        self.missing: list[str] = []
        self._by_stem: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str, named_by: str) -> tuple[Path, str] | None:
        """An image by the name in its annotation, and its name in the data set.

        Args:
            name: a path below a folder, with either kind of slashes. Its first parts may be those of another machine:
                the longest end of the path that exists counts.
            named_by: what names the image, for errors.

        Returns:
            None if no folder has it; the name then is in `missing`.

        Raises:
            ValueError: two folders have it.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        for start in range(len(parts)):
            tail = str(PurePosixPath(*parts[start:]))
            if name_fault(tail) is not None:
                continue
            places = [folder for folder in self.folders if (folder / tail).is_file()]
            if start and len(places) > 1:  # train/1.png is not in a folder `val`
                places = [folder for folder in places if folder.name == parts[start - 1]] or places
            if len({(folder / tail).resolve() for folder in places}) > 1:
                raise ValueError(
                    f"{named_by}: image {shown(name)} is in {places[0]} and in {places[1]}, expected it in one; give "
                    "one folder, or rename the images"
                )
            if places:
                return places[0] / tail, tail
        last = self.folders[0] / (parts[-1] if parts else name)
        self.missing.append(f"{last}: no such image, which {named_by} names")
        return None

    def find_stem(self, stem: str, named_by: str) -> tuple[Path, str] | None:
        """An image by its path below a folder without the suffix (`street/0001`), as `find`."""
        path = PurePosixPath(stem.replace("\\", "/"))
        for folder in self.folders if name_fault(str(path)) is None else []:
            found = self._stems(folder / path.parent).get(path.name, [])
            if found:
                return found[0], str(path.parent / found[0].name)
        self.missing.append(f"{self.folders[0] / stem}.*: no such image, which {named_by} names")
        return None

    def _stems(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._by_stem:
            stems: dict[str, list[Path]] = {}
            for path in list_visible(folder) if folder.is_dir() else []:
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                    stems.setdefault(path.stem, []).append(path)
            self._by_stem[folder] = stems
        return self._by_stem[folder]

    def require_all(self, mistakes: Mistakes) -> None:
        """Ends the search.

        Raises:
            FileNotFoundError: images are missing, unless missing ones are left out; then `mistakes` lists them.
        """
        if not self.missing:
            return
        if self.tolerance.missing:
            mistakes.lines += self.missing
            return
        count = "" if len(self.missing) == 1 else f"; so are {len(self.missing) - 1} others"
        raise FileNotFoundError(
            f"{self.missing[0]}{count}; give the folders with --images, or leave missing ones out with --skip-missing"
        )


def with_own_names(items: Sequence[Item], source: str) -> list[Item]:
    """Gives every image a name of its own in the data set.

    Two images of different folders may have one name. Then all names start below the common parent of the folders.

    Args:
        items: the images; the same file may not come twice.
        source: of the annotations, for errors.

    Raises:
        ValueError: two names in one folder differ only in suffix or case, or one image has two annotations.
    """
    seen: dict[Path, Item] = {}
    for item in items:
        other = seen.setdefault(_real(item.path), item)
        if other is not item:
            raise ValueError(f"{source}: image {item.path} has two annotations, expected one; merge or remove one")
    stems = [str(PurePosixPath(item.name).with_suffix("")).lower() for item in items]
    folders = {path.parent for path in seen}
    if len(set(stems)) < len(stems) and len(folders) > 1:
        parent = Path(os.path.commonpath(folders))
        names = [path.relative_to(parent).as_posix() for path in seen]
        items = [replace(item, name=name, given_name=item.name) for item, name in zip(items, names, strict=True)]
    for item in items:
        if (fault := name_fault(item.name)) is not None:
            raise ValueError(f"{source}: image name {shown(item.name)} {fault}, expected a path below its folder")
    require_own_stems((f"{source}: image {item.name!r}", item.name) for item in items)
    return list(items)


def _real(path: Path) -> Path:
    """The absolute path without `..`. Links are kept, because their names count."""
    return Path(os.path.normpath(path.absolute()))


def with_own_ids(items: Sequence[Item]) -> list[Item]:
    """Numbers the images from 1 if two have the same id."""
    if len({item.image_id for item in items}) == len(items):
        return list(items)
    return [replace(item, image_id=number) for number, item in enumerate(items, start=1)]


def images_by_stem(folders: Sequence[Path]) -> dict[str, Path]:
    """The images of folders by the name without the suffix.

    Raises:
        FileNotFoundError, ValueError: a folder does not exist or has no image, or two images have one stem.
    """
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in list_images(folder)):
        if path.stem in found:
            raise ValueError(f"{path}: {found[path.stem]} has this name too, expected each once; rename one")
        found[path.stem] = path
    return found


def require_folder(folder: Path, what: str) -> None:
    """Checks that a folder exists.

    Raises:
        FileNotFoundError: it does not.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of {what}")


def declared_size(height: Any, width: Any, otherwise: tuple[int, int], where: str) -> tuple[int, int]:
    """(H, W) as an annotation gives it, or `otherwise` if it does not; `where` names it in the error.

    Raises:
        ValueError: it gives something else than two positive whole numbers.
    """
    if height is None or width is None:
        return otherwise
    found = whole_number(height), whole_number(width)
    if found[0] is None or found[1] is None or min(found[0], found[1]) < 1:
        raise ValueError(
            f"{where}: height {shown(height)} and width {shown(width)}, expected two positive whole numbers"
        )
    return found[0], found[1]
