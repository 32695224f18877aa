"""Masks and maps of numbers, from the kinds of files that people have: 1, 8 and 16 bits, palettes, colours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from upsnet.categories import IGNORE_LABEL
from upsnet.convert.classes import Classes
from upsnet.convert.layers import VOID
from upsnet.io.images import open_image
from upsnet.io.panoptic_png import rgb_to_id

MAP_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif"})
LOSSY = frozenset({".jpg", ".jpeg", ".webp"})
VOID_VALUES = (0, 255)
"""Of a map of classes, unless a class has the value: unlabelled, and void. Among colours only black (0)."""


def mask_of(image: Image.Image) -> npt.NDArray[np.bool_]:
    """A mask [H, W] from an image of any kind: on where it is neither black nor transparent."""
    if image.mode.startswith(("I", "F")) or image.mode in ("1", "L"):
        return np.asarray(image) > 0
    rgba = np.asarray(image.convert("RGBA"))
    return np.asarray(rgba[..., :3].any(axis=2) & (rgba[..., 3] > 0))


def read_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Reads a mask [H, W], see `mask_of`.

    Raises:
        FileNotFoundError, ValueError: missing, unreadable or lossy; the message names the file.
    """
    with _opened(path) as image:
        return mask_of(image)


def read_numbers(path: Path, kind: Literal["instances", "values", "colors"]) -> npt.NDArray[np.int64]:
    """Reads a map of numbers [H, W].

    Args:
        path: a lossless image of one page.
        kind: `instances`: grey values or indices of a palette; of colours R + 256 G + 65536 B. An alpha channel with
            more values than 0 and 255 holds ids, too (BDD100K): 2^24 times its value is added. `values`: as
            `instances`, but colours must be grey. `colors`: always R + 256 G + 65536 B, the palette's colours too.

    Raises:
        FileNotFoundError, ValueError: missing, unreadable, lossy, or of another kind; the message names the file.
    """
    with _opened(path) as image:
        if image.mode == "F" or (image.mode == "RGB" and _has_16_bits(image)):
            raise ValueError(
                f"mode {image.mode} of {image.format}, expected whole numbers of 8 or 16 bits, or RGB of 8"
            )
        alpha = _ids_in_alpha(image)
        if alpha is not None and kind != "instances":
            raise ValueError(
                f"an alpha channel with values from {alpha.min()} to {alpha.max()}, expected opaque pixels: it may "
                "hold instance ids, as in BDD100K; save the classes without it"
            )
        if kind == "colors":
            return rgb_to_id(np.asarray(image.convert("RGB"))).astype(np.int64)
        if image.mode.startswith("I") or image.mode in ("1", "L", "P"):
            numbers = np.asarray(image).astype(np.int64)
            if numbers.size and numbers.min() < 0:
                raise ValueError(f"number {numbers.min()}, expected 0 or more")
            return numbers
        rgb = np.asarray(image.convert("RGB"))
        if kind == "instances":
            return rgb_to_id(rgb).astype(np.int64) + (0 if alpha is None else alpha.astype(np.int64) << 24)
        if (rgb != rgb[..., :1]).any():
            raise ValueError("colours, expected grey values or a palette; or give each class `value: [R, G, B]`")
        return rgb[..., 0].astype(np.int64)


def _ids_in_alpha(image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """The alpha channel [H, W] if it does more than to hide pixels."""
    if image.mode not in ("RGBA", "LA"):
        return None
    alpha = np.asarray(image.getchannel("A"))
    return alpha if not np.isin(alpha, (0, 255)).all() else None


def read_class_map(path: Path, classes: Classes) -> npt.NDArray[np.uint8]:
    """Reads a map of classes as semantic channels, uint8 [H, W].

    Value 0 is unlabelled (`IGNORE_LABEL`), 255 and dropped classes are void (`layers.VOID`), unless a class has the
    value.

    Raises:
        FileNotFoundError, ValueError: the file is unusable, or holds a value of no class; the message names both.
    """
    numbers = read_numbers(path, "colors" if classes.in_colors else "values")
    channels = np.full(numbers.shape, IGNORE_LABEL, dtype=np.uint8)
    void = VOID_VALUES[:1] if classes.in_colors else VOID_VALUES
    present, rows = distinct(numbers)
    table = np.full(len(present), IGNORE_LABEL, dtype=np.uint8)
    for row, value in enumerate(present.tolist()):
        if value in classes.values:
            table[row] = classes.values[value]
        elif value == VOID_VALUES[1] and value in void:
            table[row] = VOID
        elif value not in void:
            shown = [value & 255, value >> 8 & 255, value >> 16] if classes.in_colors else value
            raise ValueError(
                f"{path}: value {shown} of {np.count_nonzero(numbers == value)} pixels is no class of "
                f"{classes.source}; give a class that value, or make the pixels {void[-1]} (unlabelled)"
            )
    channels[...] = table[rows]
    return channels


def distinct(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The values that occur, ascending, and the row of each pixel; small values without a sort."""
    if numbers.size and numbers.max() < 65536:
        present = np.flatnonzero(np.bincount(numbers.ravel()))
        table = np.zeros(int(numbers.max()) + 1, dtype=np.int64)
        table[present] = np.arange(len(present))
        return present, table[numbers]
    present, rows = np.unique(numbers, return_inverse=True)
    return present, rows.reshape(numbers.shape)


def _has_16_bits(image: Image.Image) -> bool:
    """Whether an open image that Pillow gives as RGB of 8 bits has 16 bits in its file."""
    return any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if path.suffix.lower() in LOSSY:
        raise ValueError(f"{path}: a lossy format, which changes numbers; expected {', '.join(sorted(MAP_SUFFIXES))}")
    with open_image(path, what="a map") as image:
        if (pages := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"{pages} pages, expected one; save each page as a file of its own")
        yield image
