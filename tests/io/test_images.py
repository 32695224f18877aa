"""Images of more than 8 bits: equal values give equal pixels whatever the file, or one line says what is missing."""

import io
import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from upsnet.io import images
from upsnet.io.images import ValueLimits, ValueRangeError, read_image, read_reduced, to_8_bits, to_rgb

TOPS = (252, 4095, 65535)
RANGES = (None, (0, 4095), (-10, 300.5), (100, 65535))
COLUMNS = np.arange(64)


def grey_values(top):
    """uint16 [4, 64] from 0 to `top`."""
    return np.tile((COLUMNS * top // 63).astype(np.uint16), (4, 1))


def rgb_values(top):
    """uint16 [4, 64, 3] from 0 to `top`, whose channels differ."""
    grey = grey_values(top)
    return np.stack([grey, grey[:, ::-1], grey // 2], axis=2)


def expected(values, value_range):
    """The rule, written another way."""
    if value_range is not None:
        low, high = value_range
        share = (values.astype(float) - low) / (high - low)
        return np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)
    return (values // 256 if values.max() > 255 else values).astype(np.uint8)


def netpbm(values, maximum=65535, *, is_text=False):
    """A PGM or PPM with a maximum above 255."""
    height, width = values.shape[:2]
    kind = {(2, False): 5, (2, True): 2, (3, False): 6, (3, True): 3}[values.ndim, is_text]
    head = f"P{kind}\n{width} {height}\n{maximum}\n".encode()
    return head + (" ".join(map(str, values.ravel())).encode() if is_text else values.astype(">u2").tobytes())


def tiff(values, *, order="<", orientation=1, planar=1, photometric=2):
    """An uncompressed TIFF of unsigned numbers with 16 or 32 bits."""
    height, width = values.shape[:2]
    count, bits = (1 if values.ndim == 2 else values.shape[2]), 8 * values.itemsize
    numbers = values.astype(values.dtype.newbyteorder(order))
    planes = [np.ascontiguousarray(numbers[..., i]) for i in range(count)] if planar == 2 else [numbers]
    start, length = 1024, planes[0].nbytes
    tags = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * count), (259, 3, [1]), (262, 3, [photometric]),
        (273, 4, [start + i * length for i in range(len(planes))]), (274, 3, [orientation]), (277, 3, [count]),
        (278, 4, [height]), (279, 4, [length] * len(planes)), (284, 3, [planar]), (339, 3, [1] * count),
    ]  # fmt: skip
    entries, more = b"", b""
    for tag, kind, items in tags:
        data = struct.pack(f"{order}{len(items)}{'H' if kind == 3 else 'I'}", *items)
        if len(data) > 4:
            data, more = struct.pack(f"{order}I", 14 + 12 * len(tags) + len(more)), more + data
        entries += struct.pack(f"{order}HHI", tag, kind, len(items)) + data.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags)) + entries + b"\0" * 4
    return (head + more).ljust(start, b"\0") + b"".join(plane.tobytes() for plane in planes)


def of_pillow(values, kind, suffix):
    memory = io.BytesIO()
    Image.fromarray(values.astype(kind)).save(memory, suffix)
    return memory.getvalue()


def of_opencv(values, suffix, *options):
    bgr = values if values.ndim == 2 else values[..., [2, 1, 0, 3][: values.shape[2]]]
    return cv2.imencode(suffix, np.ascontiguousarray(bgr), list(options))[1].tobytes()


def with_alpha(values):
    return np.concatenate([values, np.full_like(values[..., :1], 60000)], axis=2)


GREY = {
    "PNG": lambda v: of_pillow(v, np.uint16, "PNG"),
    "TIFF": lambda v: of_pillow(v, np.uint16, "TIFF"),
    "big-endian TIFF": lambda v: tiff(v, order=">", photometric=1),
    "TIFF of 32 bits": lambda v: of_pillow(v, np.int32, "TIFF"),
    "unsigned TIFF of 32 bits": lambda v: tiff(v.astype(np.uint32), photometric=1),
    "TIFF of floats": lambda v: of_pillow(v, np.float32, "TIFF"),
    "PGM": netpbm,
    "PGM with its own maximum": lambda v: netpbm(v, max(300, int(v.max()))),
    "PGM in text": lambda v: netpbm(v, max(300, int(v.max())), is_text=True),
}
RGB = {
    "PNG": lambda v: of_opencv(v, ".png"),
    "PNG with alpha": lambda v: of_opencv(with_alpha(v), ".png"),
    "TIFF": tiff,
    "big-endian TIFF": lambda v: tiff(v, order=">"),
    "TIFF with LZW": lambda v: of_opencv(v, ".tif", cv2.IMWRITE_TIFF_COMPRESSION, 5),
    "TIFF with alpha": lambda v: of_opencv(with_alpha(v), ".tif"),
    "PPM": netpbm,
    "PPM with its own maximum": lambda v: netpbm(v, max(300, int(v.max()))),
    "PPM in text": lambda v: netpbm(v, max(300, int(v.max())), is_text=True),
}


@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize(("make", "files"), [(grey_values, GREY), (rgb_values, RGB)], ids=["grey", "RGB"])
def test_equal_values_give_equal_pixels_in_every_file(tmp_path, make, files, value_range, top):
    values = make(top)
    pixels = expected(values, value_range)
    pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    for name, write in files.items():
        path = tmp_path / "image.any"
        path.write_bytes(write(values))
        for apply_exif in (False, True):
            found = read_image(path, apply_exif=apply_exif, value_range=value_range)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, pixels, err_msg=name)
        content, size = read_reduced(path.read_bytes(), lambda size: 1, apply_exif=True, value_range=value_range)
        np.testing.assert_array_equal(content, pixels, err_msg=name)
        assert size == values.shape[:2]


def test_a_range_changes_no_image_of_8_bits(tmp_path):
    values = rgb_values(255).astype(np.uint8)
    for mode, suffix in (("RGB", "png"), ("L", "png"), ("P", "png"), ("RGBA", "tif"), ("L", "ppm"), ("RGB", "bmp")):
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(values).convert(mode).save(path)
        stored = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(read_image(path, apply_exif=True, value_range=(0, 10)), stored)


def test_numbers_by_hand():
    values = np.array([[-5, 0, 50, 100, 200]])
    assert to_8_bits(values, (0, 100), name="")[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_8_bits(values.astype(np.float32) / 100, (0.0, 1.0), name="")[0, :, 1].tolist() == [0, 0, 128, 255, 255]
    assert to_8_bits(np.array([[np.inf, -np.inf]]), (0, 1), name="")[0, :, 2].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("values", "reason", "proposal"),
    [
        (np.array([[-5, 300]], np.int32), "values from -5 to 300, expected", "[-5, 300]"),
        (np.array([[0, 65536]], np.int32), "values from 0 to 65536, expected", "[0, 65536]"),
        (np.array([[0, 0.25]], np.float32), "from 0 to 0.25 that are not all whole numbers, expected", "[0, 1]"),
        (np.array([[7.5, 300]], np.float32), "from 7.5 to 300 that are not all whole numbers, expected", "[7.5, 300]"),
        (np.array([[0, np.nan]], np.float32), "that are not all whole numbers, expected", "[0, 1]"),
    ],
)
def test_values_that_need_a_range_are_named_with_file_and_key(tmp_path, values, reason, proposal):
    path = tmp_path / "deep.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ValueRangeError) as error:
        read_image(path, apply_exif=True)
    text = str(error.value)
    assert text.startswith(f"{path}: values ")
    assert reason in text
    assert "set data.value_range" in text
    assert text.endswith(proposal)
    assert "\n" not in text
    if np.isnan(values).any():
        with pytest.raises(ValueRangeError, match=r"deep\.tif: 1 values are NaN, expected numbers"):
            read_image(path, apply_exif=True, value_range=(0, 1))
    else:
        low, high = float(values.min()), float(values.max())
        found = read_image(path, apply_exif=True, value_range=(low, high))
        assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize(
    ("limits", "proposal"),
    [
        ((0, 0, True), [0, 255]), ((3, 255, True), [0, 255]), ((0, 256, True), [0, 511]), ((9, 4095, True), [0, 4095]),
        ((0, 4096, True), [0, 8191]), ((0, 65535, True), [0, 65535]), ((-1, 7, True), [-1, 7]),
        ((0.0, 0.3, False), [0, 1]), ((0.5, 2.5, False), [0.5, 2.5]), ((70000, 70000, True), [70000, 70001]),
    ],
)  # fmt: skip
def test_the_range_that_suits_values(limits, proposal):
    assert ValueLimits(*limits).proposal() == proposal


def test_limits_of_several_images_are_joined():
    first, second = ValueLimits.of(np.array([[3, 900]])), ValueLimits.of(np.array([[0.5, 20.0]]))
    assert first.union(second) == (0.5, 900, False)


def test_a_damaged_image_of_16_bit_colours_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 65536, (40, 40, 3), dtype=np.uint16)
    for name, content in (("a.png", of_opencv(noise, ".png")), ("a.tif", tiff(noise)), ("a.ppm", netpbm(noise))):
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as an image"):
            read_image(tmp_path / name, apply_exif=True)


@pytest.mark.parametrize(("options", "kind"), [({"planar": 2}, "in separate planes"), ({"photometric": 5}, "CMYK")])
def test_16_bits_that_no_library_reads_are_an_error(tmp_path, options, kind):
    """Pillow takes halves of numbers for pixels of separate planes."""
    values = rgb_values(65535)
    (tmp_path / "a.tif").write_bytes(tiff(with_alpha(values) if "photometric" in options else values, **options))
    with pytest.raises(ValueError, match=rf"a\.tif: .*16 bits .*{kind}, expected grey or interleaved RGB"):
        read_image(tmp_path / "a.tif", apply_exif=False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_are_rotated_as_8_bits_are(tmp_path, orientation):
    """A PNG and a PIL image by EXIF, and a TIFF by its tag, whatever is asked for."""
    values = np.random.default_rng(0).integers(0, 65536, (4, 6, 3), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray((values >> 8).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    turned = {flag: read_image(tmp_path / "a.png", apply_exif=flag) for flag in (False, True)}
    block = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    png = of_opencv(values, ".png")
    for at in (33, len(png) - 12):  # before and after the pixels
        (tmp_path / "deep.png").write_bytes(png[:at] + chunk + png[at:])
        for flag in (False, True):
            found = read_image(tmp_path / "deep.png", apply_exif=flag)
            np.testing.assert_array_equal(found, turned[flag])
    with Image.open(tmp_path / "deep.png") as image:
        np.testing.assert_array_equal(to_rgb(image, apply_exif=True), turned[True])
    (tmp_path / "deep.tif").write_bytes(tiff(values, orientation=orientation))
    for flag in (False, True):
        np.testing.assert_array_equal(read_image(tmp_path / "deep.tif", apply_exif=flag), turned[True])


@pytest.fixture
def warnings(monkeypatch, caplog):
    """The warnings of the module, as if the process had given none."""
    monkeypatch.setattr(images, "_has_warned", False)
    caplog.set_level(logging.WARNING)
    return caplog


def test_an_image_that_uses_a_part_of_its_range_causes_one_warning(tmp_path, warnings):
    for name, top in (("full", 65535), ("first", 4095), ("second", 900)):
        (tmp_path / f"{name}.png").write_bytes(of_opencv(rgb_values(top), ".png"))
    read_image(tmp_path / "first.png", apply_exif=True, value_range=(0, 4095))
    read_image(tmp_path / "full.png", apply_exif=True)
    assert not warnings.messages
    for name in ("first", "second"):
        read_image(tmp_path / f"{name}.png", apply_exif=True)
    (line,) = warnings.messages
    assert f"{tmp_path / 'first.png'}: uses 1/16 of 16 bits" in line
    assert "set data.value_range: [0, 4095]" in line


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_values_up_to_255_cause_the_warning_too(warnings, kind):
    to_rgb(Image.fromarray(np.zeros((2, 2), kind)), name="black")
    assert not warnings.messages
    found = to_rgb(Image.fromarray(grey_values(252).astype(kind)), name="grey")
    assert found.max() == 252
    (line,) = warnings.messages
    assert "grey: uses 1/256 of 16 bits (values from 0 to 252), which are read as they are" in line
    assert "set data.value_range: [0, 255]" in line
