"""Finding, reading and writing images."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from upsnet.io.files import atomic_path, is_transient, list_files, read_bytes, require_regular, retry

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Formats that are read. Pillow knows others; for PostScript it starts Ghostscript, which runs code from the file."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif"})
JPEG_QUALITY = 95
"""Of images that are rotated."""
MAX_PIXELS = 178_956_970
"""Pixels of an image at most: a small file can hold many, and they are all decoded at once."""
MAX_PIXELS_VARIABLE = "UPSNET_MAX_PIXELS"
"""Environment variable that sets another limit."""
ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation: the operation that makes the image upright."""


@contextmanager
def open_image(
    source: Path | str | BinaryIO,
    *,
    name: str | None = None,
    what: str = "an image",
    formats: tuple[str, ...] = FORMATS,
    streamed: bool = False,
) -> Iterator[Image.Image]:
    """Opens an image; every module opens images with this function.

    Args:
        source: path, or a file in memory.
        name: what errors call the image; by default its path.
        what: what errors expect it to be.
        formats: of Pillow, that are accepted.
        streamed: the file is read while it is decoded: less memory, and only the header if no pixel is asked for.
            Otherwise it is read as a whole, and errors of network disks are retried.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no image of these formats, damaged, truncated, or with more than `max_pixels` pixels; also any
            ValueError of the block. One line names the image.
    """
    name = name or str(source)
    limit = max_pixels()
    if limit > 2 * (Image.MAX_IMAGE_PIXELS or limit):  # Pillow refuses images of twice its limit
        Image.MAX_IMAGE_PIXELS = limit
    try:
        if isinstance(source, Path | str):
            path = Path(source)
            require_regular(path)
            file: Path | BinaryIO = path if streamed else io.BytesIO(read_bytes(path))
        else:
            file = source
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > limit:
                raise ValueError(
                    f"{image.width} x {image.height} pixels, expected at most {limit}; set {MAX_PIXELS_VARIABLE} to "
                    "allow more"
                )
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such {'image' if what == 'an image' else 'file'}") from None
    except Exception as error:  # decoders raise many kinds of errors
        reason = _reason(error, formats)
        remedy = "" if MAX_PIXELS_VARIABLE in reason else "; repair or remove it"
        cause = error if is_transient(error) else None  # `retry` looks at it
        raise ValueError(f"{name}: cannot be read as {what} ({reason}){remedy}") from cause


def _reason(error: Exception, formats: tuple[str, ...]) -> str:
    """Why an image cannot be read, in one line, without addresses of objects."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a file of the format {' or '.join(formats)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {max_pixels()} pixels; set {MAX_PIXELS_VARIABLE} to allow more"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def max_pixels() -> int:
    """The number of pixels that an image may have: $UPSNET_MAX_PIXELS, else `MAX_PIXELS`.

    Raises:
        ValueError: the variable is no positive whole number.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or len(text) > 15 or int(text) < 1:
        raise ValueError(f"{MAX_PIXELS_VARIABLE}={text[:40]!r}: expected a positive whole number of pixels")
    return int(text)


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
    """Reads an image as uint8 RGB [H, W, 3].

    Args:
        path: file of one of `FORMATS`.
        apply_exif: rotate the image as its EXIF orientation says. True for a user's own images; False for data sets,
            whose ground truth lies on the stored pixels (COCO's does).
        reduction: 2, 4 or 8 reads a colour JPEG at that part of its sides (no shorter than it; rounded up) in less
            time. Each pixel is the mean of as many squared. Other files keep their size.

    Raises:
        FileNotFoundError, ValueError: see `open_image`.
    """
    return read_reduced(path, lambda size: reduction, apply_exif=apply_exif)[0]


def read_reduced(
    path: Path, reduction: Callable[[tuple[int, int]], int], *, apply_exif: bool
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """As `read_image`, where the reduction depends on the size.

    Args:
        path, apply_exif: see `read_image`.
        reduction: (H, W) of the whole image, rotated if the pixels are -> 1, 2, 4 or 8.

    Returns:
        The pixels, and (H, W) of the whole image, rotated if the pixels are.
    """

    def read() -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        with open_image(path, streamed=True) as image:
            is_turned = apply_exif and exif_orientation(image) >= 5
            size = (image.width, image.height) if is_turned else (image.height, image.width)
            factor = reduction(size)
            if factor > 1 and image.mode == "RGB":
                image.draft("RGB", (max(1, image.width // factor), max(1, image.height // factor)))
            return to_rgb(upright(image) if apply_exif else image), size

    return retry(read)


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an open image, 1 to 8; 1 (as stored) if it has none or it cannot be read.

    Pillow rotates TIFF files itself when it loads them, so they count as stored upright.
    """
    if image.format == "TIFF":
        return 1
    if image.format == "PNG":
        # EXIF may come after the pixels, so Pillow decodes them; the error of a damaged file must not get lost below.
        image.load()
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value) if value in range(1, 9) else 1
    except Exception:  # the parser raises many kinds of errors; the pixels can still be read
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The image rotated as its EXIF orientation says; other EXIF tags are dropped."""
    rotation = ROTATIONS.get(exif_orientation(image))
    return image if rotation is None else image.transpose(rotation)


def write_image(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Writes uint8 RGB [H, W, 3] in the format of the suffix, atomically."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    write_encoded(path, Image.fromarray(image), format=kind, quality=92)


def write_encoded(path: Path, image: Image.Image, **options: Any) -> None:
    """Writes an image atomically; `options` as in `PIL.Image.Image.save`.

    The file is encoded in memory first, since Pillow does not tell why writing to a disk failed.
    """
    memory = io.BytesIO()
    image.save(memory, **options)
    with atomic_path(path) as temporary:
        temporary.write_bytes(memory.getbuffer())


def save_upright(source: Path, target: Path) -> None:
    """Writes an image rotated as its EXIF orientation says, in its own format, without EXIF."""
    with open_image(source) as image:
        kind = "JPEG" if image.format == "MPO" else image.format  # MPO: a JPEG with a second image, as phones write
        options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}
        write_encoded(target, upright(image), format=kind, icc_profile=image.info.get("icc_profile"), **options)


def list_images(folder: Path) -> list[Path]:
    """Lists the image files of a folder, sorted by name. Hidden files are skipped.

    Raises:
        FileNotFoundError, ValueError: no such folder, no image in it, or two names that differ only in the suffix.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected a folder of images")
    images = list_files(folder, IMAGE_SUFFIXES)
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
