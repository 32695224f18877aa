"""A prediction in the forms that other programs take."""

import builtins
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.io.predictions import list_segments, truth_as_prediction
from upsnet.structures import PanopticPrediction, Segment


@pytest.fixture
def prediction():
    """A square of 5 x 3 pixels with a hole of one pixel, and a stripe of stuff."""
    ids = np.zeros((6, 8), np.int32)
    ids[1:4, 2:7], ids[2, 4], ids[4:] = 3, 0, 9
    square, stripe = (2, 1, 7, 4), (0, 4, 8, 6)
    return PanopticPrediction(
        ids, [Segment(3, 50, "square", True, 0.5, 14, square), Segment(9, 20, "sky", False, 1.0, 16, stripe)]
    )


def test_the_mask_of_a_segment(prediction):
    square, stripe = prediction.segments
    mask = prediction.mask(square)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, prediction.segment_ids == 3)
    np.testing.assert_array_equal(prediction.mask(9), prediction.mask(stripe))
    assert prediction.mask(stripe).sum() == stripe.area
    for missing in (0, 4):
        with pytest.raises(ValueError, match=rf"segment id {missing} is not in the prediction, which has 2 segments"):
            prediction.mask(missing)


def filled(polygons, size):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)


def test_coco_rows(prediction):
    rows = prediction.to_coco(139)
    assert json.loads(json.dumps(rows)) == rows, "plain values"
    np.testing.assert_array_equal(coco_mask.decode(rows[0].pop("segmentation")), prediction.mask(3))
    assert rows[0] == {
        "image_id": 139, "category_id": 50, "bbox": [2, 1, 5, 3], "area": 14, "score": 0.5, "iscrowd": 0
    }  # fmt: skip
    rle = rows[1]["segmentation"]
    assert rle["size"] == [6, 8]
    assert isinstance(rle["counts"], str)
    assert (rows[1]["category_id"], rows[1]["score"], coco_mask.area(rle)) == (20, 1.0, 16)
    outlines = prediction.to_coco("a", polygons=True)
    assert json.loads(json.dumps(outlines)) == outlines
    assert [row["image_id"] for row in outlines] == ["a", "a"]
    (corners,) = outlines[0]["segmentation"]
    assert {tuple(point) for point in np.reshape(corners, (-1, 2)).tolist()} == {(2, 1), (7, 1), (7, 4), (2, 4)}
    assert outlines[0]["area"] == 14, "of the mask"
    assert filled(outlines[0]["segmentation"], (6, 8)).sum() == 15, "the hole is lost"
    np.testing.assert_array_equal(filled(outlines[1]["segmentation"], (6, 8)), prediction.mask(9))


def test_polygons_lose_only_holes():
    """Noise has single pixels, pixels that touch at corners, and pieces inside holes."""
    rng = np.random.default_rng(0)
    categories = [0] * 3
    for size in ((1, 1), (1, 7), (9, 1), (20, 30), (33, 17)):
        ids = rng.integers(0, 3, size, dtype=np.int32)
        ids[0, 0] = 1
        found = PanopticPrediction(ids, list_segments(ids, categories, [1.0] * 3, CATEGORIES))
        for segment, row in zip(found.segments, found.to_coco(1, polygons=True), strict=True):
            mask, outline = found.mask(segment), filled(row["segmentation"], size)
            np.testing.assert_array_equal(outline, without_holes(mask))
            assert all(len(polygon) >= 8 for polygon in row["segmentation"])


def without_holes(mask):
    """The mask and all pixels that no path of neighbours outside it connects with the border."""
    outside = np.pad(~mask, 1, constant_values=True)
    reached = np.zeros_like(outside)
    reached[0] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= outside
        if (grown == reached).all():
            return ~reached[1:-1, 1:-1]
        reached = grown


def test_polygons_of_whole_objects_have_iou_1():
    sample = Shapes(1, (64, 96))[0]
    found = truth_as_prediction(sample, CATEGORIES)
    things = 0
    for segment, row in zip(found.segments, found.to_coco(1, polygons=True), strict=True):
        mask, outline = found.mask(segment), filled(row["segmentation"], sample.size)
        if (without_holes(mask) == mask).all():
            things += segment.is_thing
            assert (mask & outline).sum() == (mask | outline).sum()
    assert things


class Detections(SimpleNamespace):
    """What the package keeps of its arguments."""


def check_detections(found):
    np.testing.assert_array_equal(found.xyxy, [[2, 1, 7, 4], [0, 4, 8, 6]])
    assert (found.xyxy.dtype, found.mask.dtype, found.mask.shape) == (np.float32, bool, (2, 6, 8))
    assert found.mask.sum(axis=(1, 2)).tolist() == [14, 16]
    assert found.confidence.tolist() == [0.5, 1.0]
    assert found.class_id.tolist() == [50, 20]
    assert found.data["class_name"].tolist() == ["square", "sky"]


def test_detections_of_supervision(prediction, monkeypatch):
    package = ModuleType("supervision")
    package.Detections = Detections
    monkeypatch.setitem(sys.modules, "supervision", package)
    check_detections(prediction.to_supervision())
    empty = PanopticPrediction(np.zeros((6, 8), np.int32), []).to_supervision()
    assert (empty.xyxy.shape, empty.mask.shape) == ((0, 4), (0, 6, 8))


def test_detections_of_the_installed_supervision(prediction):
    supervision = pytest.importorskip("supervision")
    found = prediction.to_supervision()
    check_detections(found)
    assert isinstance(found, supervision.Detections)
    assert found.area.tolist() == [14, 16]
    assert len(PanopticPrediction(np.zeros((6, 8), np.int32), []).to_supervision()) == 0


def test_supervision_that_is_not_installed_is_named(prediction, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "supervision":
            raise ModuleNotFoundError("No module named 'supervision'", name="supervision")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"^to_supervision needs the package supervision: pip install supervision$"):
        prediction.to_supervision()
