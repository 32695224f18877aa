"""One picture: whether it can be read, how it is stored, and a thumbnail to find its twins by."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from upsnet.doctor.checks import Problem
from upsnet.io.images import (
    ValueLimits,
    ValueRange,
    ValueRangeError,
    Values,
    deep_values,
    exif_orientation,
    open_image,
    to_8_bits,
    to_rgb,
)

Pixels = npt.NDArray[np.uint8]

THUMBNAIL = 16
"""Pixels a side."""


class Picture(NamedTuple):
    """What is kept of a picture.

    Attributes:
        size: (H, W) as stored.
        orientation: of EXIF, 1 to 8; 1 is upright, 5 to 8 swap height and width.
        thumbnail: uint8 [16, 16], grey.
        digest: 8 bytes that equal pictures of equal format share; different ones may, too: JPEG is read at a fraction.
        limits: of the values of an image of more than 8 bits.
    """

    size: tuple[int, int]
    orientation: int
    thumbnail: Pixels
    digest: bytes
    limits: ValueLimits | None = None

    @property
    def upright_size(self) -> tuple[int, int]:
        """(H, W) after the turn that EXIF asks for."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def examine_picture(
    path: Path, name: str, problems: list[Problem], value_range: ValueRange | None = None
) -> Picture | None:
    """Decodes a picture to its end, JPEG at down to an eighth of its size; None if that fails.

    Args:
        path: the file.
        name: what problems call it.
        problems: takes what is found.
        value_range: `data.value_range`.
    """
    try:
        with open_image(path) as image:
            values = deep_values(image)  # asked first, see there
            width, height = image.size
            orientation = exif_orientation(image)
            mode = image.mode
            if image.format in ("JPEG", "MPO") and mode in ("RGB", "L"):
                image.draft("L", (2 * THUMBNAIL, 2 * THUMBNAIL))
                image.load()  # refuses a file that ends too early
                pixels = np.asarray(image)
            else:
                pixels = to_rgb(image) if values is None else _shown(values, value_range)
    except FileNotFoundError:
        problems.append(Problem("picture-missing", name))
        return None
    except (OSError, ValueError) as error:
        problems.append(Problem("picture-unreadable", name, reason(error, path)))
        return None
    if mode != "RGB" and values is None:
        kind = {"P": "palette", "L": "grey", "1": "black and white"}.get(mode, mode)
        problems.append(Problem("picture-mode", name, kind))
    limits = None if values is None else ValueLimits.of(values)
    return Picture((height, width), orientation, *fingerprint(pixels), limits)


def read_picture(path: Path, value_range: ValueRange | None) -> Pixels:
    """uint8 RGB [H, W, 3] as stored; values that need a `data.value_range` and have none are shown from low to high."""
    with open_image(path) as image:
        values = deep_values(image)
        return to_rgb(image) if values is None else _shown(values, value_range)


def _shown(values: Values, value_range: ValueRange | None) -> Pixels:
    try:
        return to_8_bits(values, value_range, name="")
    except ValueRangeError:
        low, high = ValueLimits.of(values).proposal()
        return to_8_bits(np.nan_to_num(values), (low, high), name="")


def fingerprint(pixels: Pixels) -> tuple[Pixels, bytes]:
    """Thumbnail uint8 [16, 16] and digest of a picture [H, W] or [H, W, 3]."""
    pixels = np.ascontiguousarray(pixels)
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    digest = hashlib.blake2b(pixels.data, digest_size=8, person=repr(pixels.shape).encode()[:16]).digest()
    return shrink(grey, THUMBNAIL), digest


def shrink(grey: npt.NDArray[Any], side: int) -> Pixels:
    """Means over the cells of a grid: uint8 [side, side]."""
    return np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def reason(error: Exception, path: Path) -> str:
    """What an error says, without the path and without addresses of objects."""
    return re.sub(r" <[^>]*>", "", str(error).replace(str(path), "")).strip(" :'")
