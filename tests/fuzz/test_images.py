"""Images and panoptic PNGs from strangers: an array, or one line that names the file."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from tests.fuzz.harness import fuzz, limited_memory
from tests.fuzz.strategies import POSTSCRIPT, TAGS, damaged, exif, image_bytes
from upsnet.doctor.image_files import examine_picture
from upsnet.io.images import FORMATS, read_image
from upsnet.io.panoptic_png import id_to_rgb, read_panoptic_png

FILES = [
    image_bytes("JPEG"), image_bytes("JPEG", "L"), image_bytes("JPEG", "CMYK"), image_bytes("JPEG", progressive=True),
    image_bytes("PNG"), image_bytes("PNG", "P"), image_bytes("PNG", "RGBA"), image_bytes("PNG", "I;16"),
    image_bytes("WEBP"), image_bytes("TIFF"), image_bytes("TIFF", compression="tiff_lzw"), image_bytes("BMP"),
    image_bytes("GIF"), image_bytes("PPM"), POSTSCRIPT, b"",
]  # fmt: skip
IDS = np.random.default_rng(0).integers(0, 2**24, (9, 13)).astype(np.int32)


def png_of_ids(**options):
    memory = io.BytesIO()
    Image.fromarray(id_to_rgb(IDS)).save(memory, "PNG", **options)
    return memory.getvalue()


def test_a_chunk_that_claims_to_be_of_4_gb_takes_no_memory():
    data = image_bytes("PNG")
    at = data.index(b"IDAT") - 4
    check_image(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])


def outcome(read, path):
    """The array, or None where it was refused in one line that names the file."""
    try:
        with limited_memory():
            return read(path)
    except (OSError, ValueError) as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        assert "MemoryError" not in str(error)
        return None


@pytest.fixture(autouse=True)
def _small_limit(monkeypatch):
    monkeypatch.setenv("UPSNET_MAX_PIXELS", "1000000")


def check_image(data: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        path.write_bytes(data)
        found = [outcome(lambda p, flag=flag: read_image(p, apply_exif=flag), path) for flag in (False, True)]
        assert (found[0] is None) == (found[1] is None), "the orientation decides nothing but the rotation"
        for image in found:
            assert image is None or (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3)
        if found[0] is not None:
            assert sorted(found[0].shape) == sorted(found[1].shape)
            assert (found[0].sum(dtype=np.int64) == found[1].sum(dtype=np.int64)).all()
        problems = []
        examine_picture(path, "photo.jpg", problems)
        assert path.read_bytes() == data
        assert [p.name for p in Path(folder).iterdir()] == ["photo.jpg"], "no image makes files"


@fuzz(st.sampled_from(FILES).flatmap(damaged), examples=150)
def test_damaged_images(data):
    check_image(data)


@fuzz(TAGS, st.sampled_from(["JPEG", "PNG", "WEBP"]), examples=60)
def test_images_with_odd_exif(tags, kind):
    """The pixels are sound, so the image is read."""
    block = exif(tags)
    plain = image_bytes(kind)
    data = image_bytes(kind, exif=block)
    check_image(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        path.write_bytes(data)
        found = outcome(lambda p: read_image(p, apply_exif=False), path)
        path.write_bytes(plain)
        expected = read_image(path, apply_exif=False)
    assert found is not None
    assert np.array_equal(found, expected)


@fuzz(
    st.sampled_from([png_of_ids(), png_of_ids(compress_level=0), image_bytes("PNG", "RGBA")]).flatmap(damaged),
    examples=150,
)
def test_damaged_panoptic_pngs(data):
    """What is read is what Pillow reads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.png"
        path.write_bytes(data)
        found = outcome(read_panoptic_png, path)
        if found is None:
            return
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                rgb = np.asarray(image)[..., :3].astype(np.int32)
        except (OSError, SyntaxError, ValueError):
            return  # Pillow checks sums of chunks that libdeflate does not need
        assert np.array_equal(found, rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2])


def test_only_known_formats_are_read(tmp_path):
    assert {"EPS", "PDF", "WMF", "FPX", "MSP"}.isdisjoint(FORMATS)
    path = tmp_path / "photo.jpg"
    path.write_bytes(POSTSCRIPT)
    with pytest.raises(ValueError, match=r"photo\.jpg: cannot be read as an image \(not a file of the format JPEG or"):
        read_image(path, apply_exif=True)
