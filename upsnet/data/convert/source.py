"""What every form of annotation offers to the conversion: pictures with names, and the layers of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from upsnet.data.convert.classes import Classes
from upsnet.data.convert.layers import Layers
from upsnet.data.convert.pictures import Picture
from upsnet.files import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Item:
    """A picture to convert.

    Attributes:
        path: of the picture.
        name: relative path in the data set.
        image_id: in the data set.
        annotation: whatever the source needs to read its layers.
    """

    path: Path
    name: str
    image_id: int | str
    annotation: Any = field(repr=False)


class Source(Protocol):
    """A form of annotation.

    Attributes:
        classes: of the data set.
        items: the annotated pictures.
        left_out: pictures without annotation.
        applies_exif: the program that made the annotation turns pictures as their EXIF orientation says.
    """

    classes: Classes
    items: list[Item]
    left_out: list[Path]
    applies_exif: bool

    def read(self, item: Item, picture: Picture) -> Layers:
        """The annotation of one picture; called in worker processes.

        Raises:
            OSError, ValueError: one line that names the file.
        """
        ...


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, by name.

    Raises:
        FileNotFoundError, ValueError: no such folder, no picture in it, or two that differ in their suffix only.
    """
    require_folder(folder, "pictures")
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not pictures:
        raise FileNotFoundError(f"{folder}: no picture, expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    require_own_stems((str(p), p.name) for p in pictures)
    return pictures


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
    if not all(isinstance(value, int | float) and value > 0 and value % 1 == 0 for value in (height, width)):
        raise ValueError(f"{where}: height {height!r} and width {width!r}, expected two positive whole numbers")
    return int(height), int(width)


def require_own_stems(names: Iterable[tuple[str, str]]) -> None:
    """Checks that no two pictures would share an id PNG.

    Args:
        names: what to call each picture in an error, and its name in the data set.

    Raises:
        ValueError: two do.
    """
    seen: dict[str, str] = {}
    for shown, name in names:
        stem = str(PurePosixPath(name).with_suffix("")).lower()  # some file systems do not tell A from a
        if stem in seen:
            raise ValueError(f"{shown}: has the name of {seen[stem]}, expected names of their own; rename one")
        seen[stem] = shown
