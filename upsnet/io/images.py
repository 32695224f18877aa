"""Finding, reading and writing images."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from upsnet.io.files import atomic_path, is_transient, list_files, read_bytes, require_regular, retry

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Formats that are read. Pillow knows others; for PostScript it starts Ghostscript, which runs code from the file."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif"})
JPEG_START = b"\xff\xd8"
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
ValueRange = tuple[float, float]
"""The values that become 0 and 255 in images of more than 8 bits."""
Values = npt.NDArray[Any]
"""Pixel values of more than 8 bits, whole numbers or floats, [H, W] or [H, W, 3]."""
BITS_PER_SAMPLE, PLANAR_CONFIGURATION, SEPARATE_PLANES = 258, 284, 2
"""Tags of TIFF, and the value of the second for colours that are stored one after the other."""


class _BoundedFile(io.BufferedReader):
    """A file whose `read` allocates no more bytes than the file has. A damaged PNG or TIFF may ask for 4 GB."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._length = os.fstat(file.fileno()).st_size
        super().__init__(file.detach())

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads up to `size` bytes; all if it is negative or None."""
        return super().read(size if size is None or size < 0 else min(size, self._length))


def _open_streamed(path: Path) -> BinaryIO:
    """Opens an image file. Parts of a JPEG are at most 64 kB, so it needs no bound, which would cost time."""
    file = path.open("rb")
    if file.peek(2)[:2] == JPEG_START:
        return file
    bounded = _BoundedFile(file)
    bounded.seek(0)
    return bounded


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
            file: BinaryIO = _open_streamed(path) if streamed else io.BytesIO(read_bytes(path))
        else:
            file = source
        with file, Image.open(file, formats=formats) as image:
            if image.width * image.height > limit:
                raise ValueError(
                    f"{image.width} x {image.height} pixels, expected at most {limit}; set {MAX_PIXELS_VARIABLE} to "
                    "allow more"
                )
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such {'image' if what == 'an image' else 'file'}") from None
    except ValueRangeError:
        raise
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


class ValueRangeError(ValueError):
    """The values of an image can only be read with `data.value_range`."""


class ValueLimits(NamedTuple):
    """The values that occur in one or several images of more than 8 bits.

    Attributes:
        low, high: the smallest and the largest, without NaN and infinity.
        are_whole: all are whole numbers.
    """

    low: float
    high: float
    are_whole: bool

    @classmethod
    def of(cls, values: Values) -> ValueLimits:
        """Those of one image; `values` has at least one."""
        if values.dtype.kind in "iu":
            return cls(int(values.min()), int(values.max()), True)
        finite = values[np.isfinite(values)]
        if not finite.size:
            return cls(0.0, 0.0, False)
        are_whole = finite.size == values.size and bool((finite == np.floor(finite)).all())
        return cls(float(finite.min()), float(finite.max()), are_whole)

    def union(self, other: ValueLimits) -> ValueLimits:
        """Those of both."""
        are_whole = self.are_whole and other.are_whole
        return ValueLimits(min(self.low, other.low), max(self.high, other.high), are_whole)

    @property
    def are_16_bits(self) -> bool:
        """Whether all are whole numbers from 0 to 65535, which need no `data.value_range`."""
        return self.are_whole and self.low >= 0 and self.high <= 65535

    @property
    def bits(self) -> int:
        """The bits that the largest value takes, 8 at least."""
        return max(8, int(self.high).bit_length())

    def proposal(self) -> list[float]:
        """The `data.value_range` that suits them: [0, 255], [0, 4095] and the like, [0, 1], or the limits."""
        if self.are_16_bits:
            return [0, 2**self.bits - 1]
        if self.low >= 0 and self.high <= 1:
            return [0, 1]
        return [self.low, self.high if self.high > self.low else self.low + 1]

    def __str__(self) -> str:
        kind = "" if self.are_whole else " that are not all whole numbers"
        return f"values from {self.low:.10g} to {self.high:.10g}{kind}"


def deep_values(image: Image.Image) -> Values | None:
    """The pixel values of an image of more than 8 bits, None for other images, which are not decoded.

    Pillow keeps the upper 8 bits of 16-bit colours. OpenCV decodes those, so the file must still be open: ask before
    anything loads the image.

    Args:
        image: an open image of any mode.

    Returns:
        Grey values [H, W], or RGB [H, W, 3] without alpha, in the type of the file.

    Raises:
        ValueError: 16 bits in a form that neither library reads: CMYK, or colours in separate planes.
    """
    is_grey = image.mode.startswith("I") or image.mode == "F"
    tile: Any = getattr(image, "tile", None)  # what is left to decode
    if tile and _holds_16_bit_colours(image, is_grey=is_grey):
        return _decode_16_bits(image)
    if not is_grey:
        return None
    is_unsigned = tile and "I;32N" in str(tile[0][3])
    values: Values = np.asarray(image)
    return values.view(np.uint32) if is_unsigned else values


def _holds_16_bit_colours(image: Any, *, is_grey: bool) -> bool:
    """Whether Pillow would cut or scale the values of the file."""
    codec, _, _, args = image.tile[0]
    if image.format == "PNG":
        return not is_grey and ";16" in str(args)
    if image.format == "TIFF":
        return not is_grey and max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))) > 8
    # Pillow scales the values of a PPM to 8 or 16 bits unless its maximum is 255 or 65535.
    return image.format == "PPM" and codec in ("ppm", "ppm_plain") and args[1] > 255


def _decode_16_bits(image: Any) -> Values:
    import cv2

    is_planar = image.format == "TIFF" and image.tag_v2.get(PLANAR_CONFIGURATION) == SEPARATE_PLANES
    if is_planar or image.mode not in ("RGB", "RGBA", "LA", "I"):
        kind = "in separate planes" if is_planar else f"of mode {image.mode}"
        raise ValueError(f"16 bits {kind}, expected grey or interleaved RGB")
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read() + b"\n"  # OpenCV wants white space after the last number of a PPM in text
    image.fp.seek(position)
    image.load()  # raises an error if the file is damaged
    try:
        values = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        values = None
    if values is None or values.dtype != np.uint16 or values.shape[:2] != (image.height, image.width):
        raise ValueError("OpenCV cannot decode its 16 bits")
    return np.asarray(values if values.ndim == 2 else values[..., 2::-1])  # OpenCV gives BGR or BGRA


def to_8_bits(values: Values, value_range: ValueRange | None, *, name: str) -> npt.NDArray[np.uint8]:
    """Pixel values of more than 8 bits as uint8 RGB [H, W, 3]; equal values give equal results whatever their type.

    Args:
        values: [H, W] or [H, W, 3].
        value_range: [low, high] becomes 0..255, values outside are clipped, the result is rounded. None: whole numbers
            of at most 255 are taken as they are; if larger ones occur, the upper 8 of 16 bits are taken.
        name: what the error calls the image.

    Raises:
        ValueRangeError: no range, and a value is negative, above 65535 or no whole number; or NaN with a range.
    """
    if value_range is None:
        mapped = _upper_bits(values, name)
    elif values.dtype == np.uint16:
        mapped = _scaled(np.arange(65536), value_range)[values]
    else:
        if values.dtype.kind == "f" and (count := np.count_nonzero(np.isnan(values))):
            raise ValueRangeError(f"{name}: {count} values are NaN, expected numbers; replace them in the file")
        mapped = _scaled(values, value_range)
    return mapped if mapped.ndim == 3 else np.repeat(mapped[..., None], 3, axis=2)


def _upper_bits(values: Values, name: str) -> npt.NDArray[np.uint8]:
    limits = ValueLimits.of(values)
    if not limits.are_16_bits:
        proposal = ", ".join(f"{value:.10g}" for value in limits.proposal())
        raise ValueRangeError(
            f"{name}: {limits}, expected whole numbers from 0 to 65535; set data.value_range to the values that become "
            f"black and white, for example [{proposal}]"
        )
    whole = values.astype(np.uint16)
    return (whole >> 8 if limits.high > 255 else whole).astype(np.uint8)


def _scaled(values: Values, value_range: ValueRange) -> npt.NDArray[np.uint8]:
    low, high = value_range
    scaled = values.astype(np.float64)
    scaled -= low
    scaled /= high - low
    scaled *= 255
    return np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)


_has_warned = False
"""Whether this process has warned that an image uses a part of 16 bits."""


def _warn_of_dark_image(values: Values, name: str) -> None:
    global _has_warned
    if _has_warned:
        return
    limits = ValueLimits.of(values)
    if limits.are_16_bits and limits.bits < 16 and limits.high > 0:
        _has_warned = True
        as_read = "which are read as they are" if limits.high <= 255 else "so it is read dark"
        logger.warning(
            "warning: %s: uses 1/%d of 16 bits (%s), %s; set data.value_range: [0, %d] if all images are like this "
            "(upsnet doctor prints the range of all images)",
            name, 2 ** (16 - limits.bits), limits, as_read, limits.proposal()[1],
        )  # fmt: skip


def to_rgb(
    image: Image.Image, *, apply_exif: bool = False, value_range: ValueRange | None = None, name: str | None = None
) -> npt.NDArray[np.uint8]:
    """Any PIL image as uint8 RGB [H, W, 3]: grey, palette, CMYK, alpha dropped, more bits reduced to 8.

    Args:
        image: of any mode. Of 16-bit colours Pillow keeps the upper 8 bits once it has loaded the image.
        apply_exif: rotate the image as its EXIF orientation says.
        value_range: see `to_8_bits`; 8-bit images do not use it. Without it, the first image of the process that uses
            only a part of 16 bits causes a warning.
        name: what messages call the image; by default its file.

    Raises:
        ValueRangeError: see `to_8_bits`.
        ValueError: see `deep_values`.
    """
    values = deep_values(image)
    if values is None:
        image = upright(image) if apply_exif else image
        return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)  # `convert` copies
    name = name or getattr(image, "filename", "") or "image"
    if value_range is None:
        _warn_of_dark_image(values, name)
    pixels = to_8_bits(values, value_range, name=name)
    rotation = ROTATIONS.get(exif_orientation(image)) if apply_exif else None
    return pixels if rotation is None else np.array(Image.fromarray(pixels).transpose(rotation))


def read_image(
    path: Path, *, apply_exif: bool, reduction: int = 1, value_range: ValueRange | None = None
) -> npt.NDArray[np.uint8]:
    """Reads an image as uint8 RGB [H, W, 3].

    Args:
        path: file of one of `FORMATS`.
        apply_exif: rotate the image as its EXIF orientation says. True for a user's own images; False for data sets,
            whose ground truth lies on the stored pixels (COCO's does).
        reduction: 2, 4 or 8 reads a colour JPEG at that part of its sides (no shorter than it; rounded up) in less
            time. Each pixel is the mean of as many squared. Other files keep their size.
        value_range: `data.value_range`, for images of more than 8 bits; see `to_8_bits`.

    Raises:
        FileNotFoundError, ValueError: see `open_image` and `to_rgb`.
    """
    return read_reduced(path, lambda size: reduction, apply_exif=apply_exif, value_range=value_range)[0]


def read_reduced(
    source: Path | bytes,
    reduction: Callable[[tuple[int, int]], int],
    *,
    apply_exif: bool,
    value_range: ValueRange | None = None,
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """As `read_image`, where the reduction depends on the size.

    Args:
        source: file of one of `FORMATS`, or its content.
        reduction: (H, W) of the whole image, rotated if the pixels are -> 1, 2, 4 or 8.
        apply_exif, value_range: see `read_image`.

    Returns:
        The pixels, and (H, W) of the whole image, rotated if the pixels are.
    """
    name = f"image of {len(source)} bytes" if isinstance(source, bytes) else str(source)

    def read() -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with open_image(file, name=name, streamed=True) as image:
            if image.format in ("JPEG", "MPO"):
                is_turned = apply_exif and exif_orientation(image) >= 5
                size = (image.width, image.height) if is_turned else (image.height, image.width)
                factor = reduction(size)
                if factor > 1 and image.mode == "RGB":
                    image.draft("RGB", (max(1, image.width // factor), max(1, image.height // factor)))
                return to_rgb(image, apply_exif=apply_exif), size
            pixels = to_rgb(image, apply_exif=apply_exif, value_range=value_range, name=name)
            return pixels, (pixels.shape[0], pixels.shape[1])

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
