"""Finding, reading and writing images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from upsnet.io.files import atomic_path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})
JPEG_QUALITY = 95
"""Of photographs that are turned."""


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


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Writes uint8 RGB [H, W, 3] in the format of the suffix, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, quality=92)


def save_upright(source: Path, target: Path) -> None:
    """Writes a picture turned as its EXIF orientation says, in its own format."""
    with Image.open(source) as image, atomic_path(target) as path:
        kind = "JPEG" if image.format == "MPO" else image.format  # MPO: a JPEG of telephones, with a second picture
        options = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
        ImageOps.exif_transpose(image).save(path, format=kind, **options)


def list_images(folder: Path) -> list[Path]:
    """Lists the image files of a folder, sorted by name. Hidden files are skipped.

    Raises:
        FileNotFoundError, ValueError: no such folder, no image in it, or two names that differ only in the suffix.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected a folder of images")
    images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not images:
        raise FileNotFoundError(
            f"{folder}: contains no image, expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    require_own_stems((str(p), p.name) for p in images)
    return images


def require_own_stems(names: Iterable[tuple[str, str]]) -> None:
    """Checks that every image gets its own id PNG: no two names may differ only in suffix or case.

    Args:
        names: what to call each picture in an error, and its name in the data set.

    Raises:
        ValueError: two do.
    """
    seen: dict[str, str] = {}
    for shown, name in names:
        stem = str(PurePosixPath(name).with_suffix("")).lower()  # some file systems do not tell A from a
        if stem in seen:
            raise ValueError(
                f"{shown}: has the name of {seen[stem]} but for suffix or case, "
                "expected different names; rename one file"
            )
        seen[stem] = shown
