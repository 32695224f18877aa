"""Reading and placing pictures, and writing files that are either whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})
JPEG_QUALITY = 95
"""Of photographs that are turned."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it onto `path` if the block succeeds.

    A crash, a full disk or a kill leaves the old file, or none; never half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder outlast a power cut, as fsync does for the contents of a file."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def write_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Writes uint8 RGB [H, W, 3] in the format of the suffix, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, quality=92)


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Reads a JSON file in UTF-8, with or without a byte order mark; `object_hook` as in `json.loads`.

    Raises:
        FileNotFoundError, ValueError: the file is missing or is no JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_hook=object_hook)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Any PIL image as uint8 RGB [H, W, 3]: grey, palette, CMYK, alpha dropped, 16 bits cut to the upper 8."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(
                f"integer pixels from {grey.min()} to {grey.max()}, expected 8 or 16 bits: convert the image first"
            )
        shift = 8 if image.mode.startswith("I;16") or grey.max() > 255 else 0
        return np.repeat((grey >> shift).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels, expected 8 or 16 bits: convert the image first")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)  # `convert` copies


def read_image(path: Path, *, apply_exif: bool, reduction: int = 1) -> npt.NDArray[np.uint8]:
    """Reads a picture as uint8 RGB [H, W, 3].

    Args:
        path: any file Pillow can decode.
        apply_exif: turn the picture as its EXIF orientation says. True for a user's own photographs; False for
            data sets, whose truth lies on the stored pixels (COCO's does).
        reduction: 2, 4 or 8 reads a colour JPEG at that part of its sides (no shorter than it; rounded up) in less
            time, each pixel being the mean of as many squared, as JPEG has it. Other files keep their size.

    Raises:
        FileNotFoundError, ValueError: no such file, not a picture, or a truncated one; the message names it.
    """
    try:
        with Image.open(path) as image:
            if reduction > 1 and image.mode == "RGB":
                image.draft("RGB", (max(1, image.width // reduction), max(1, image.height // reduction)))
            if apply_exif:
                ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from None


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open picture, 1 to 8; 1 (as stored) where it has none or nonsense."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(value) if value in range(1, 9) else 1


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a copy where the disk allows none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        with atomic_path(target) as path:
            shutil.copyfile(source, path)


def save_upright(source: Path, target: Path) -> None:
    """Writes a picture turned as its EXIF orientation says, in its own format."""
    with Image.open(source) as image, atomic_path(target) as path:
        kind = "JPEG" if image.format == "MPO" else image.format  # MPO: a JPEG of telephones, with a second picture
        options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
        ImageOps.exif_transpose(image).save(path, format=kind, **options)
