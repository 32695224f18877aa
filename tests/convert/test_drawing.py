"""Shapes that several annotation formats have."""

import base64
import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from upsnet.convert.drawing import box_around, ellipse_box, fill_ellipse, join, paste_png, rectangle, rotate
from upsnet.convert.layers import Region

SIZE = (60, 80)


def drawn(top, left, bottom, right):
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_ellipses_agree_with_opencv_up_to_the_edge():
    for degrees in (0, 30, 90, 135, -50):
        mask = fill_ellipse((40.5, 30.5), (25, 9), degrees, SIZE)
        canvas = np.zeros(SIZE, np.uint8)
        cv2.ellipse(canvas, (40, 30), (25, 9), degrees, 0, 360, 1, -1)
        edge = cv2.dilate(canvas, np.ones((3, 3))) != cv2.erode(canvas, np.ones((3, 3)))
        assert np.array_equal(mask[~edge], canvas[~edge] > 0)
        assert mask.sum() == pytest.approx(np.pi * 25 * 9, rel=0.02)
        top, left, bottom, right = box_around(ellipse_box((40.5, 30.5), (25, 9), degrees), SIZE)
        assert not np.any(mask & ~drawn(top, left, bottom, right))
        assert mask[:, left + 2].any()
        assert mask[top + 2].any()


def test_an_ellipse_is_cut_at_the_edge_of_the_image():
    whole = fill_ellipse((40, 30), (20, 20), 0, SIZE)
    assert np.array_equal(fill_ellipse((0, 30), (20, 20), 0, SIZE)[:, :40], whole[:, 40:])
    with pytest.raises(ValueError, match=r"x from 980 to 1020, expected 0 to 80"):
        fill_ellipse((1000, 30), (20, 20), 0, SIZE)


def test_a_box_is_cut_to_the_image():
    assert box_around(rectangle(1.2, 2.7, 5.1, 6), SIZE) == (2, 1, 6, 6)
    assert box_around(rectangle(-9, -9, 500, 500), SIZE) == (0, 0, *SIZE)
    assert box_around(rectangle(90, 2, 95, 5), SIZE) is None
    assert box_around([], SIZE) is None


def test_a_rotation_is_clockwise_on_the_screen():
    assert rotate([11, 10, 10, 11], (10, 10), 90) == pytest.approx([10, 11, 9, 10])


def test_parts_become_one_region():
    parts = [Region.of(3, drawn(*box)) for box in ((2, 3, 6, 9), (5, 8, 9, 12), (20, 1, 22, 3))]
    joined = join([Region.of(3, drawn(0, 0, 0, 0)), *parts])
    canvas = np.zeros(SIZE, bool)
    joined.window(canvas)[joined.mask] = True
    expected = drawn(2, 3, 6, 9) | drawn(5, 8, 9, 12) | drawn(20, 1, 22, 3)
    assert np.array_equal(canvas, expected)
    assert (joined.area, joined.channel) == (expected.sum(), 3)
    assert join(parts[:1]) is parts[0]
    assert join([Region.of(3, drawn(0, 0, 0, 0))]).area == 0


def png(mask, pack=bytes):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return base64.b64encode(pack(buffer.getvalue())).decode()


@pytest.mark.parametrize("pack", [bytes, zlib.compress])
def test_a_png_is_pasted_where_its_corner_lies(pack):
    part = drawn(1, 2, 4, 6)[:5, :7]
    expected = np.zeros(SIZE, bool)
    expected[11:14, 22:26] = True
    assert np.array_equal(paste_png(png(part, pack), (20, 10), SIZE, np.asarray, name="mask"), expected)


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (74, 0), (0, 56)])
def test_no_pixel_of_a_png_beside_the_image_is_decoded(corner):
    with pytest.raises(ValueError, match=r"^mask of 7 x 5 at \(.*\), expected it inside the image of 80 x 60$"):
        paste_png(png(drawn(1, 2, 4, 6)[:5, :7]), corner, SIZE, pytest.fail, name="mask")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "mask: cannot be read as an image"), ("!", "mask: data cannot be read"),
        ("QUJD", "mask: data cannot be read"),
        (base64.b64encode(zlib.compress(bytes(10**6))).decode(), "mask: data of more than 84736 bytes, expected a PNG"),
    ],
)  # fmt: skip
def test_what_is_no_png_is_named(text, part):
    with pytest.raises(ValueError, match=part):
        paste_png(text, (0, 0), SIZE, np.asarray, name="mask")
