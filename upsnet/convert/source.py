"""What every form of annotation offers to the conversion: pictures with names, and the layers of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from upsnet.convert.classes import Classes
from upsnet.convert.layers import Layers
from upsnet.convert.orientation import Picture


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
