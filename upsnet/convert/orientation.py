"""Pictures go into the data set as they are, unless they have to be turned.

The truth of a data set lies on the stored pixels. Some programs show a photograph upright, as its EXIF orientation
says, and that is what people annotate: then the upright picture is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from upsnet.io.images import exif_orientation, open_image


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        path: the file.
        stored: (H, W) of its pixels; upright: (H, W) after turning.
        orientation: EXIF, 1 = as stored.
    """

    path: Path
    stored: tuple[int, int]
    upright: tuple[int, int]
    orientation: int


def inspect(path: Path) -> Picture:
    """Decodes a picture to see that it is whole.

    Raises:
        FileNotFoundError, ValueError: missing, unreadable or truncated; the message names it.
    """
    with open_image(path) as image:
        orientation = exif_orientation(image)
        image.load()
        stored = (image.height, image.width)
    return Picture(path, stored, stored[::-1] if 5 <= orientation <= 8 else stored, orientation)


def must_turn(picture: Picture, size: tuple[int, int], *, applies_exif: bool, annotation: str) -> bool:
    """Whether an annotation of `size` lies on the upright picture.

    Args:
        picture: the picture.
        size: (H, W) of the annotation.
        applies_exif: what to believe where the size fits both.
        annotation: named in the error.

    Raises:
        ValueError: the size fits neither.
    """
    if size == picture.stored and (size != picture.upright or not applies_exif):
        return False
    if size == picture.upright:
        return picture.orientation != 1
    expected = f"{picture.stored[1]} x {picture.stored[0]}"
    if picture.upright != picture.stored:
        expected += f" (or upright {picture.upright[1]} x {picture.upright[0]})"
    raise ValueError(
        f"{annotation}: made for {size[1]} x {size[0]} pixels, expected {expected} like {picture.path}; "
        "give the picture that was annotated"
    )
