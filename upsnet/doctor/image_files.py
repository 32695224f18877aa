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
from upsnet.io.images import exif_orientation, open_image, to_rgb

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
    """

    size: tuple[int, int]
    orientation: int
    thumbnail: Pixels
    digest: bytes

    @property
    def upright_size(self) -> tuple[int, int]:
        """(H, W) after the turn that EXIF asks for."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def examine_picture(path: Path, name: str, problems: list[Problem]) -> Picture | None:
    """Decodes a picture to its end, JPEG at down to an eighth of its size; None if that fails.

    Args:
        path: the file.
        name: what problems call it.
        problems: takes what is found.
    """
    try:
        with open_image(path) as image:
            width, height = image.size
            orientation = exif_orientation(image)
            mode, bands = image.mode, len(image.getbands())
            if image.format in ("JPEG", "MPO") and mode in ("RGB", "L"):
                image.draft("L", (2 * THUMBNAIL, 2 * THUMBNAIL))
                image.load()  # refuses a file that ends too early
                pixels = np.asarray(image)
            else:
                pixels = to_rgb(image)
    except FileNotFoundError:
        problems.append(Problem("picture-missing", name))
        return None
    except (OSError, ValueError) as error:
        problems.append(Problem("picture-unreadable", name, reason(error, path)))
        return None
    if mode != "RGB":
        kind = {"P": "palette", "L": "grey", "1": "black and white"}.get(mode, "16 bits" if bands == 1 else mode)
        problems.append(Problem("picture-mode", name, kind))
    return Picture((height, width), orientation, *fingerprint(pixels))


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
