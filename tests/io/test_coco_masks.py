"""COCO's masks: what is right equals pycocotools; what is wrong is an error before pycocotools sees it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from upsnet.io.coco_masks import decompress, mask_of, run_lengths

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


@pytest.mark.parametrize(("segmentation", "message"), [
    ({"size": [10, 15], "counts": [150]}, r"run lengths for size \[10, 15\], expected \[20, 30\]"),
    ({"counts": [599]}, "run lengths do not add up to 600 pixels"),
    ({"counts": [-1, 601]}, "run lengths do not add up"),
    ({"counts": [2**70]}, "run lengths do not add up"),
    ({"counts": [600.0]}, "run lengths do not add up"),
    ({"counts": "b'abc'"}, "compressed run lengths are damaged"),
    ({"counts": "é"}, "compressed run lengths are damaged"),
    ({"counts": "o" * 40}, "compressed run lengths are damaged"),
    ({"counts": "0"}, "run lengths do not add up"),
    ({"counts": None}, "run lengths without counts"),
    ([[2, 2, float("nan"), 2, 10, 10]], "polygon is no list of numbers"),
    ([[2, 2, 2e8, 3e8, 10, 10]], "expected 0 to 30: it was drawn on an image of another size"),
    ([[2, 2, 10**400, 2, 10, 10]], "polygon is no list of numbers"),
    ([2, 2, 10, 2, 10, 10], "polygon is no list of numbers"),
    ([[2, 2, 10, 10]], "polygon of 2 points"),
    ([[2, 2, 10, 10, 4]], "polygon of 5 numbers"),
    ([], "no polygon"),
    ("text", "segmentation 'text', expected polygons or run lengths"),
    (None, "segmentation None"),
])  # fmt: skip
def test_what_is_wrong_is_named(segmentation, message):
    with pytest.raises(ValueError, match=message):
        run_lengths(segmentation, SIZE)


def test_polygons_are_drawn_as_coco_draws_them():
    square = [[2, 2, 12, 2, 12, 12, 2, 12]]
    assert mask_of(square, SIZE).sum() == 100
    assert (
        mask_of([*square, [20, 2, 25, 2, 25, 7]], SIZE).sum()
        == mask_of(square, SIZE).sum() + mask_of([[20, 2, 25, 2, 25, 7]], SIZE).sum()
    )
