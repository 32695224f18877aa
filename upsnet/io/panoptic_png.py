"""Segment-id maps as PNG, in COCO's panoptic format: id = R + 256 G + 256^2 B."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from upsnet.io.files import read_bytes, require_regular
from upsnet.io.images import max_pixels, open_image, write_encoded
from upsnet.ops.id_maps import compiled

try:
    import deflate
except ImportError:  # not installed: Pillow decodes
    deflate = None  # type: ignore[assignment]

MAX_ID = 2**24 - 1
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">IIBBBBB")
LENGTH = struct.Struct(">I")
PLAIN = [8, 2, 0, 0, 0]
"""Bit depth, colour type (RGB), compression, filter method, interlace."""


def rgb_to_id(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """uint8 [H, W, 3] -> int32 [H, W]."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] | wide[..., 1] << 8 | wide[..., 2] << 16


def id_to_rgb(ids: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """int [H, W] with values 0..2^24-1 -> uint8 [H, W, 3].

    Raises:
        ValueError: an id does not fit into 24 bits.
    """
    if ids.size and (ids.min() < 0 or ids.max() > MAX_ID):
        raise ValueError(f"segment ids from {ids.min()} to {ids.max()}, expected 0..{MAX_ID}")
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def read_panoptic_png(path: Path | str, buffer: npt.NDArray[np.int32] | None = None) -> npt.NDArray[np.int32]:
    """Reads a panoptic PNG as int32 [H, W].

    Plain files (8 bits, RGB, not interlaced) are inflated by libdeflate and unfiltered straight into ids; everything
    else goes to Pillow.

    Args:
        path: the file.
        buffer: flat memory that the result may lie in, if it is large enough; who reads many files saves the system's
            work of handing out fresh memory for each.

    Raises:
        FileNotFoundError, ValueError: missing, unreadable, or not an RGB image; the message names the file.
    """
    try:
        require_regular(Path(path))
        data = read_bytes(Path(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such panoptic PNG") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a panoptic PNG ({error.strerror})") from None
    try:
        ids = _read_plain(data, buffer)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as a panoptic PNG ({error})") from None
    return _read_by_pillow(data, str(path)) if ids is None else ids


def _read_by_pillow(data: bytes, name: str) -> npt.NDArray[np.int32]:
    with open_image(io.BytesIO(data), name=name, what="a panoptic PNG", formats=("PNG",)) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise ValueError(f"pixel mode {image.mode}, expected RGB with id = R + 256 G + 65536 B")
        return rgb_to_id(np.asarray(image)[..., :3])


def _read_plain(data: bytes, buffer: npt.NDArray[np.int32] | None) -> npt.NDArray[np.int32] | None:
    """The ids of a plain PNG, None where the file is of another kind or the fast decoder is not installed."""
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, *kind = HEADER.unpack_from(data, 16)
    if kind[0] == 16:
        raise ValueError("16 bits per channel, expected 8: id = R + 256 G + 65536 B")
    loops = compiled()
    bomb = width * height > max_pixels()
    if loops is None or deflate is None or kind != PLAIN or bomb or not width * height:
        return None
    size = height * (1 + 3 * width)
    try:
        raw = deflate.zlib_decompress(_pixel_data(data), size)
    except deflate.DeflateError:
        raise ValueError("the compressed pixels are damaged or incomplete") from None
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes of pixels, expected {size}")
    if buffer is None or buffer.size < width * height:
        buffer = np.empty(width * height, dtype=np.int32)
    ids = buffer[: width * height].reshape(height, width)
    filter_type = loops.unfilter(np.frombuffer(raw, dtype=np.uint8), ids)
    if filter_type != -1:
        raise ValueError(f"row filter {filter_type}, expected 0 to 4")
    return ids


def _pixel_data(data: bytes) -> bytes:
    """The zlib stream of a PNG: the contents of its IDAT chunks."""
    parts, at = [], 8
    while True:
        if at + 12 > len(data):
            raise ValueError("the file is truncated")
        (length,) = LENGTH.unpack_from(data, at)
        name = data[at + 4 : at + 8]
        if name == b"IDAT":
            parts.append(data[at + 8 : at + 8 + length])
        elif name == b"IEND":
            return parts[0] if len(parts) == 1 else b"".join(parts)
        at += 12 + length


def write_panoptic_png(path: Path, ids: npt.NDArray[np.integer]) -> None:
    """Writes an id map [H, W] atomically."""
    write_encoded(path, Image.fromarray(id_to_rgb(ids)), format="PNG", compress_level=1)
