"""COCO's masks: what is right equals pycocotools; what is wrong is an error before pycocotools sees it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from upsnet.io.coco_masks import decompress, fill_polygons, has_no_pixels, mask_of, run_lengths

SIZE = (20, 30)
MASKS = arrays(np.uint8, st.tuples(st.integers(1, 25), st.integers(1, 40)), elements=st.integers(0, 1))


def runs_of(mask):
    """Run lengths, column by column, beginning with zeros."""
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(edges, prepend=0).tolist()


@given(MASKS)
@settings(max_examples=150, deadline=None)
def test_masks_of_every_form_are_read_back(mask):
    size = mask.shape
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert decompress(packed).tolist() == runs_of(mask)
    assert np.array_equal(mask_of({"size": list(size), "counts": packed}, size), mask > 0)
    assert np.array_equal(mask_of({"counts": runs_of(mask)}, size), mask > 0)


def test_large_and_falling_runs_are_read_back():
    mask = np.zeros((3000, 4000), dtype=np.uint8)
    mask[100:2900, 1000] = 1
    mask[5, ::2] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert decompress(packed).tolist() == runs_of(mask)


@given(MASKS, st.data())
@settings(max_examples=100, deadline=None)
def test_run_lengths_that_do_not_add_up_are_refused(mask, data):
    packed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    at = data.draw(st.integers(0, len(packed) - 1))
    letter = chr(data.draw(st.integers(40, 120)))
    for damaged in (packed[:at], packed[:at] + letter + packed[at + 1 :], packed + letter):
        try:
            runs = runs_of(mask_of({"counts": damaged}, mask.shape).astype(np.uint8))
        except ValueError:
            continue
        assert decompress(damaged).sum() == mask.size
        assert sum(runs) == mask.size


SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]
PAIRS = [[2, 2], [12, 2], [12, 12], [2, 12]]
SMALL = [20, 2, 25, 2, 25, 7, 20, 7]
RUNS = {"size": [20, 30], "counts": [0, 10, 590]}


@pytest.mark.parametrize("segmentation", [
    [SQUARE], SQUARE, PAIRS, [PAIRS], [[SQUARE]], [[15.0, 10.0], SQUARE], [SQUARE, []], [[float(v) for v in SQUARE]],
    [[1, 1, 5, 5], SQUARE], [SQUARE, SQUARE],
])  # fmt: skip
def test_every_form_of_a_polygon_is_the_same_mask(segmentation):
    expected = np.zeros(SIZE, dtype=bool)
    expected[2:12, 2:12] = True
    np.testing.assert_array_equal(mask_of(segmentation, SIZE), expected)
    assert not has_no_pixels(segmentation)


@pytest.mark.parametrize("several", [
    [SQUARE, SMALL], [PAIRS, [[20, 2], [25, 2], [25, 7], [20, 7]]], [[SQUARE], [SMALL]], [[SQUARE, SMALL]],
])  # fmt: skip
def test_several_polygons_are_one_mask(several):
    expected = np.zeros(SIZE, dtype=bool)
    expected[2:12, 2:12] = expected[2:7, 20:25] = True
    np.testing.assert_array_equal(mask_of(several, SIZE), expected)


@pytest.mark.parametrize("segmentation", [
    RUNS, [RUNS], {"counts": [0.0, 10.0, 590.0]}, {"counts": ["0", "10", "590"], "size": [20.0, "30"]}, [RUNS, RUNS],
])  # fmt: skip
def test_run_lengths_in_every_form_are_the_same_mask(segmentation):
    expected = np.zeros(SIZE, dtype=bool)
    expected[:10, 0] = True
    np.testing.assert_array_equal(mask_of(segmentation, SIZE), expected)
    assert not has_no_pixels(segmentation)


def test_a_list_of_run_lengths_is_their_union():
    packed = coco_mask.encode(np.asfortranarray(np.arange(600).reshape(30, 20).T >= 590, dtype=np.uint8))
    segmentation = [RUNS, {"counts": packed["counts"].decode(), "size": [20, 30]}]
    expected = np.zeros(SIZE, dtype=bool)
    expected[:10, 0] = expected[10:, 29] = True
    np.testing.assert_array_equal(mask_of(segmentation, SIZE), expected)


@pytest.mark.parametrize("segmentation", [[], [[]], [[15, 10]], [[2, 2, 10, 10]], [5, 5], [[5, 5], [9, 9]], [[[]]]])
def test_what_has_fewer_than_three_points_has_no_pixel(segmentation):
    assert has_no_pixels(segmentation)
    found = mask_of(segmentation, SIZE)
    assert found.shape == SIZE
    assert not found.any()


def test_a_polygon_below_a_pixel_is_drawn_and_may_be_empty():
    assert not mask_of([[4, 1, 4.1, 1, 4.1, 1.1]], SIZE).any()


def test_no_segmentation_is_not_an_empty_one():
    assert not has_no_pixels(None)
    assert not has_no_pixels({})
    with pytest.raises(ValueError, match=r"no segmentation, expected .*: a box alone gives no mask"):
        mask_of(None, SIZE)


@pytest.mark.parametrize(("segmentation", "message"), [
    ({"size": [10, 15], "counts": [150]}, r"run lengths for size \[10, 15\], expected \[20, 30\]"),
    ({"size": 5, "counts": [600]}, r"run lengths for size 5, expected \[20, 30\]"),
    ({"counts": [599]}, "run lengths do not add up to 600 pixels"),
    ({"counts": [599.0]}, "run lengths do not add up to 600 pixels"),
    ({"counts": [-1, 601]}, "run lengths do not add up"),
    ({"counts": [2**62, 2**62]}, "run lengths do not add up"),
    ({"counts": [2**70]}, "run lengths do not add up"),
    ({"counts": [0.5, 599.5]}, "run lengths with 0.5, expected whole numbers"),
    ({"counts": [600, None]}, "run lengths with None, expected whole numbers"),
    ({"counts": "b'abc'"}, "compressed run lengths are damaged"),
    ({"counts": "é"}, "compressed run lengths are damaged"),
    ({"counts": "o" * 40}, "compressed run lengths are damaged"),
    ({"counts": "0"}, "run lengths do not add up"),
    ({"counts": None}, "run lengths without counts"),
    ([RUNS, {"counts": [599]}], "run lengths do not add up"),
    ([SQUARE, RUNS], r"polygon \{'size': .*, expected a list x1, y1, x2, y2"),
    ([[2, 2, float("nan"), 2, 10, 10]], "polygon with nan, expected numbers"),
    ([[2, 2, "10", 2, 10, 10]], "polygon with '10', expected numbers"),
    ([[2, 2, True, 2, 10, 10]], "polygon with True, expected numbers"),
    ([None], "polygon with None, expected numbers"),
    ([[2, 2, 2e8, 3e8, 10, 10]], "expected 0 to 30: it was drawn on an image of another size"),
    ([2, 2, 2e8, 3e8, 10, 10], "expected 0 to 30: it was drawn on an image of another size"),
    ([[2, 2, 10**400, 2, 10, 10]], "polygon with a number of more than 100 digits, expected numbers"),
    ([[2, 2, 10, 10, 4]], "polygon of 5 numbers"),
    ([2, 2, 12, 2, 12, 12, 2], "polygon of 7 numbers"),
    ([[2, 2], [12, 2, 3], [12, 12]], "polygon of 3 numbers"),
    ([[PAIRS]], "polygons in more than 3 nested lists"),
    ("text", "segmentation 'text', expected polygons or run lengths"),
    (None, "no segmentation"),
])  # fmt: skip
def test_what_is_wrong_is_named(segmentation, message):
    with pytest.raises(ValueError, match=message):
        run_lengths(segmentation, SIZE)


def test_a_shape_that_a_person_drew_needs_three_points():
    assert fill_polygons([SQUARE], SIZE).sum() == 100
    with pytest.raises(ValueError, match="polygon of 2 points, expected at least 3; draw it again, or delete it"):
        fill_polygons([[2, 2, 10, 10]], SIZE)
