"""Masks of shapes that several annotation formats have."""

from __future__ import annotations

import base64
import binascii
import io
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from upsnet.convert.layers import Box, Region
from upsnet.io.coco_masks import require_near
from upsnet.io.images import open_image

LARGEST = 1e9
"""Every coordinate is smaller than this number of pixels."""
PNG_SIGNATURE = b"\x89PNG"


def box_around(outline: Sequence[float], size: tuple[int, int]) -> Box | None:
    """The pixels that an outline may touch.

    Args:
        outline: x1, y1, x2, y2, ... in pixels.
        size: (H, W) of the image.

    Returns:
        The box, cut to the image; None if nothing is left of it.
    """
    xs, ys = outline[0::2], outline[1::2]
    if not ys:
        return None
    top, left = max(math.floor(min(ys)), 0), max(math.floor(min(xs)), 0)
    bottom, right = min(math.ceil(max(ys)), size[0]), min(math.ceil(max(xs)), size[1])
    return (top, left, bottom, right) if top < bottom and left < right else None


def rotate(outline: Sequence[float], center: tuple[float, float], degrees: float) -> list[float]:
    """Rotates x1, y1, x2, y2, ... clockwise, as seen on the screen, around a point (x, y)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotated: list[float] = []
    for x, y in zip(outline[0::2], outline[1::2], strict=True):
        dx, dy = x - center[0], y - center[1]
        rotated += [center[0] + cos * dx - sin * dy, center[1] + sin * dx + cos * dy]
    return rotated


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    """The corners x1, y1, x2, y2, ... of a rectangle, clockwise from the upper left one."""
    return [left, top, right, top, right, bottom, left, bottom]


def ellipse_box(center: tuple[float, float], radii: tuple[float, float], degrees: float) -> list[float]:
    """The corners x1, y1, x2, y2, ... of the upright rectangle around an ellipse; arguments as in `fill_ellipse`."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width, half_height = math.hypot(radii[0] * cos, radii[1] * sin), math.hypot(radii[0] * sin, radii[1] * cos)
    return rectangle(center[0] - half_width, center[1] - half_height, center[0] + half_width, center[1] + half_height)


def fill_ellipse(
    center: tuple[float, float], radii: tuple[float, float], degrees: float, size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """The pixels whose centres lie in an ellipse, as a mask [H, W].

    Args:
        center: (x, y) in pixels.
        radii: along x and y before the rotation.
        degrees: of the clockwise rotation around the centre.
        size: (H, W) of the image.

    Raises:
        ValueError: a radius is not positive, or the ellipse reaches far outside the image.
    """
    if min(radii) <= 0:
        raise ValueError(f"ellipse with radii {radii[0]:g} and {radii[1]:g}, expected positive ones")
    outline = ellipse_box(center, radii, degrees)
    require_near(outline, size, "ellipse")
    mask = np.zeros(size, dtype=bool)
    box = box_around(outline, size)
    if box is not None:
        top, left, bottom, right = box
        y, x = (values + 0.5 for values in np.ogrid[top:bottom, left:right])
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        along = ((x - center[0]) * cos + (y - center[1]) * sin) / radii[0]
        across = ((y - center[1]) * cos - (x - center[0]) * sin) / radii[1]
        mask[top:bottom, left:right] = along**2 + across**2 <= 1
    return mask


def paste_png(
    text: Any,
    corner: tuple[int, int],
    size: tuple[int, int],
    mask_of: Callable[[Image.Image], npt.NDArray[np.bool_]],
    *,
    name: str,
) -> npt.NDArray[np.bool_]:
    """A mask [H, W] of the image from a PNG of a part of it. No pixel is decoded before the size is checked.

    Args:
        text: the PNG in base64, as it is or compressed by zlib.
        corner: (x, y) of the upper left pixel of the PNG in the image.
        size: (H, W) of the image.
        mask_of: gives the mask of the open PNG.
        name: what errors call the PNG.

    Raises:
        ValueError: the text holds no PNG, the PNG is damaged, or it does not lie inside the image.
    """
    (left, top), (height, width) = corner, size
    with open_image(io.BytesIO(_png_bytes(text, height * width, name)), name=name, formats=("PNG",)) as image:
        columns, rows = image.size
        is_inside = min(left, top) >= 0 and left + columns <= width and top + rows <= height
        part = mask_of(image) if is_inside else None
    if part is None:
        raise ValueError(
            f"{name} of {columns} x {rows} at ({left}, {top}), expected it inside the image of {width} x {height}"
        )
    mask = np.zeros(size, dtype=bool)
    mask[top : top + rows, left : left + columns] = part
    return mask


def _png_bytes(text: Any, pixels: int, name: str) -> bytes:
    """The bytes of a PNG of at most so many pixels, from base64; they may be compressed by zlib."""
    try:
        data = base64.b64decode(text if isinstance(text, str) else "", validate=True)
        if data.startswith(PNG_SIGNATURE):
            return data
        unpacker = zlib.decompressobj()
        unpacked = unpacker.decompress(data, 4 * pixels + 2**16)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise ValueError(f"{name}: data cannot be read ({error})") from None
    if unpacker.unconsumed_tail:
        raise ValueError(f"{name}: data of more than {len(unpacked)} bytes, expected a PNG of at most {pixels} pixels")
    return unpacked


def join(parts: Sequence[Region]) -> Region:
    """One region from the parts of one object, which have the class of the first part."""
    drawn = [part for part in parts if part.area]
    if len(drawn) < 2:
        return drawn[0] if drawn else parts[0]
    top, left = min(part.top for part in drawn), min(part.left for part in drawn)
    bottom = max(part.top + part.mask.shape[0] for part in drawn)
    right = max(part.left + part.mask.shape[1] for part in drawn)
    mask = np.zeros((bottom - top, right - left), dtype=bool)
    for part in drawn:
        y, x = part.top - top, part.left - left
        mask[y : y + part.mask.shape[0], x : x + part.mask.shape[1]] |= part.mask
    return Region(drawn[0].channel, mask, top, left, int(np.count_nonzero(mask)))
