"""PQ-dagger, Boundary PQ, intervals, confusion and rows of images: cases computed by hand, and one oracle each."""

import cv2
import numpy as np
import pytest
import torch

from upsnet.categories import CategorySet
from upsnet.metrics.bootstrap import intervals, quality, resampled_sums
from upsnet.metrics.boundary import boundary_distance, boundary_iou, boundary_pixels
from upsnet.metrics.panoptic_quality import ImageScores, PanopticQuality, SegmentTable, match_counts

CATEGORIES = CategorySet.from_json(
    [{"id": 10 + i, "name": f"c{i}", "isthing": int(i >= 2), "color": [i, 0, 0]} for i in range(4)], source="test"
)


def quality_of(*images, boundary=False):
    meter = PanopticQuality(CATEGORIES, boundary=boundary)
    for key, (truth, truth_classes, predicted, predicted_classes, *crowd) in enumerate(images):
        tables = SegmentTable.of(truth_classes, *crowd), SegmentTable.of(predicted_classes)
        meter.update(key, np.array(truth), tables[0], np.array(predicted), tables[1])
    return meter


def test_dagger_takes_the_iou_of_stuff_without_a_threshold_and_pq_of_things():
    found = quality_of(
        # stuff 0: 1 of 4 pixels shared, union 4; thing 2: 3 of 4
        ([[1, 1, 1, 1], [2, 2, 2, 2]], [0, 2], [[1, 0, 0, 0], [2, 2, 2, 0]], [0, 2]),
        # stuff 0 again: two true segments and two predicted ones count as one region, 3 of 4
        ([[1, 1, 2, 2]], [0, 0], [[1, 2, 2, 0]], [0, 0]),
        # stuff 1 predicted where there is none: no row of its own
        ([[1, 1, 1, 1]], [2], [[1, 1, 1, 2]], [2, 1]),
    ).compute()
    dagger = found["pq_dagger"]
    assert dagger["per_class"] == {"10": pytest.approx(50), "11": None, "12": pytest.approx(75), "13": None}
    assert (dagger["Stuff"], dagger["Things"]) == (pytest.approx(50), pytest.approx(75))
    assert dagger["All"] == pytest.approx(62.5)
    assert found["per_class"]["11"]["fp"] == 1


def test_dagger_leaves_void_truth_out_of_the_union_and_crowds_out_of_the_truth():
    dagger = quality_of(([[1, 1, 0, 0]], [0], [[1, 1, 1, 1]], [0])).compute()["pq_dagger"]
    assert dagger["Stuff"] == 100
    dagger = quality_of(([[1, 1, 2, 2]], [0, 1], [[1, 1, 2, 2]], [0, 1], [True, False])).compute()["pq_dagger"]
    assert dagger["per_class"]["10"] is None
    assert dagger["Stuff"] == 100


def test_confusion_holds_matches_of_any_class():
    images = [([[1, 1, 2, 2]], [2, 3], [[1, 1, 2, 2]], [3, 3]), ([[1, 1, 2, 2]], [2, 3], [[1, 0, 2, 2]], [2, 2])]
    assert quality_of(*images).compute()["confusion"] == {"12": {"13": 1}, "13": {"12": 1, "13": 1}}


def test_each_image_has_its_row():
    rows = quality_of(
        ([[1, 1, 2, 2]], [2, 3], [[1, 1, 2, 2]], [2, 3]), ([[1, 1, 2, 2]], [2, 3], [[1, 1, 0, 0]], [2])
    ).per_image()["images"]
    facts = {"file_name": "", "height": 1, "width": 4}
    assert rows[0] == {
        "image_id": 0, **facts, "pq": 100, "sq": 100, "rq": 100, "n": 2, "tp": 2, "fp": 0, "fn": 0,
        "matched": [[12, 2, 1.0], [13, 2, 1.0]], "missed": [], "spurious": [],
    }  # fmt: skip
    assert rows[1] == {
        "image_id": 1, **facts, "pq": 50, "sq": 50, "rq": 50, "n": 2, "tp": 1, "fp": 0, "fn": 1,
        "matched": [[12, 2, 1.0]], "missed": [[13, 2, "void"]], "spurious": [],
    }  # fmt: skip


def square(size, low, high):
    ids = np.zeros((size, size), dtype=np.int32)
    ids[low:high, low:high] = 1
    return ids


def test_boundary_pixels_by_hand():
    assert boundary_distance(800, 600) == 20
    assert boundary_distance(2, 2) == 1
    found = boundary_pixels(square(9, 2, 7), 1)
    inside = np.zeros((9, 9), dtype=bool)
    inside[3:6, 3:6] = True
    outside = np.zeros((9, 9), dtype=bool)  # the ring of void that touches neither the square nor the image's edge
    np.testing.assert_array_equal(~found, inside | outside)
    assert boundary_pixels(np.ones((1, 5), dtype=np.int32), 1).all()
    assert boundary_pixels(np.ones((7, 7), dtype=np.int32), 3).sum() == 48


@pytest.mark.parametrize("seed", range(3))
def test_boundaries_are_those_that_erosion_finds_segment_by_segment(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, (6, 5)).repeat(9, 0).repeat(11, 1)
    ids[rng.random(ids.shape) < 0.001] = 9
    distance = int(rng.integers(1, 6))
    expected = np.zeros(ids.shape, dtype=bool)
    for number in np.unique(ids):
        mask = np.pad((ids == number).astype(np.uint8), 1)
        inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
        expected |= (ids == number) & (inner == 0)
    np.testing.assert_array_equal(boundary_pixels(ids, distance), expected)


def test_boundary_iou_by_hand():
    truth, predicted = square(20, 4, 14), square(20, 4, 15)  # rings of 36 and 40 pixels at d = 1
    found = boundary_iou(truth, np.array([1]), predicted, np.array([1]))
    # void truth has 300 pixels; the prediction's ring shares 19 with the truth's, the other 21 lie on void but for none
    shared, on_void = 19, 21
    assert found[0, 0] == pytest.approx(shared / (36 + 40 - shared - on_void))
    named = np.where(truth == 0, 2, truth)  # the same with a background that is a segment
    found = boundary_iou(named, np.array([1, 2]), predicted, np.array([1]))
    assert found[0, 0] == pytest.approx(shared / (36 + 40 - shared))


def test_boundary_pq_takes_the_smaller_iou():
    truth, predicted = square(20, 4, 14) + 1, square(20, 4, 15) + 1
    meter = quality_of((truth, [0, 2], predicted, [0, 2]), boundary=True)
    result = meter.compute()
    assert result["per_class"]["12"]["tp"] == 1
    assert result["per_class"]["12"]["iou"] == pytest.approx(100 / 121)
    by_boundary = result["boundary"]["per_class"]["12"]
    assert (by_boundary["tp"], by_boundary["fp"], by_boundary["fn"]) == (0, 1, 1), "19 of 57 pixels of the rings"
    same = quality_of((truth, [0, 2], truth, [0, 2]), boundary=True).compute()
    assert same["boundary"]["All"] == same["All"] == {"pq": 100, "sq": 100, "rq": 100, "n": 2}
    assert quality_of((truth, [0, 2], truth, [0, 2])).compute()["boundary"] is None


def test_tensors_score_as_arrays_do():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 5, (2, 12, 16)).repeat(3, 1).repeat(3, 2)
    maps[1] = np.where(rng.random(maps[1].shape) < 0.7, maps[0], maps[1])
    tables = SegmentTable.of([0, 1, 2, 3], [False, False, True, False]), SegmentTable.of([0, 1, 2, 3])
    arrays, tensors = (PanopticQuality(CATEGORIES, boundary=True) for _ in range(2))
    arrays.update(0, maps[0], tables[0], maps[1], tables[1])
    tensors.update(0, torch.from_numpy(maps[0]), tables[0], torch.from_numpy(maps[1]), tables[1])
    assert arrays.compute() == tensors.compute()


def test_bootstrap_by_hand():
    first = np.array([0]), np.array([[1.0, 1, 0, 0]])
    second = np.array([0, 1]), np.array([[0.0, 0, 0, 2], [0.5, 1, 0, 0]])
    sums = resampled_sums([first, second], 2, resamples=4000)
    drawn, times = np.unique(quality(sums)[..., 0], axis=0, return_counts=True)
    assert drawn.tolist() == [[0, 50], [50, 50], [100, 0]], "the second image twice, one of each, the first twice"
    np.testing.assert_allclose(times / 4000, [0.25, 0.5, 0.25], atol=0.03)
    categories = CategorySet.from_json(CATEGORIES.to_json()[:2], source="test")
    found = intervals([first, second], categories)
    assert found["All"]["pq"] == [25, 100], "the class that is not drawn is left out of the mean"
    assert found["Things"] is None
    assert found["per_class"][str(categories[1].id)] == {"pq": [50, 50], "sq": [50, 50], "rq": [100, 100]}
    assert intervals([first], categories) is None


def test_intervals_hold_the_value_depend_on_nothing_but_the_images_and_shrink():
    rng = np.random.default_rng(0)
    images = []
    for _ in range(60):
        ids = rng.integers(1, 5, (4, 4)).repeat(4, 0).repeat(4, 1)
        images.append((ids, [0, 1, 2, 3], np.where(rng.random(ids.shape) < 0.2, 0, ids), rng.integers(0, 4, 4)))
    few, many = quality_of(*images[:10]).compute(), quality_of(*images).compute()
    for result in (few, many):
        low, high = result["interval"]["All"]["pq"]
        assert low < result["All"]["pq"] < high
    width = [np.diff(result["interval"]["All"]["pq"])[0] for result in (few, many)]
    assert width[1] < width[0]
    backwards = PanopticQuality(CATEGORIES)
    backwards.merge([dict(list(quality_of(*images).rows.items())[::-1])])
    assert backwards.compute() == many
    assert PanopticQuality(CATEGORIES).compute()["interval"] is None


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, categories = np.random.default_rng(0), CategorySet.from_json(CATEGORIES.to_json()[:1], source="test")
    inside = 0
    for _ in range(60):
        rows = [(np.array([0]), np.array([[0.8 * hit, hit, 0, not hit]], dtype=float)) for hit in rng.random(80) < 0.6]
        low, high = intervals(rows, categories)["All"]["pq"]
        inside += low <= 100 * 0.8 * 0.6 / (0.6 + 0.2) <= high
    assert inside >= 50


@pytest.mark.parametrize("seed", range(40))
def test_the_compiled_sums_are_those_of_the_definition_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(0, 12, 2)
    size = len(CATEGORIES)
    inter = rng.integers(1, 9, (n + 2, m + 2)) * (rng.random((n + 2, m + 2)) < 0.15)
    for i in range(2, 2 + min(n, m)):  # most rows have one that they match, some at exactly 1/2, some are empty
        inter[i, i] = rng.choice([0, 1, 2, 4, 60], p=[0.1, 0.1, 0.1, 0.1, 0.6])
    classes = rng.integers(0, size, n)
    own = np.where(rng.random(m) < 0.6, np.resize(classes, m) if n else 0, rng.integers(0, size, m))
    truth, predicted = SegmentTable.of(classes, rng.random(n) < 0.3), SegmentTable.of(own)
    expected = ImageScores.of(match_counts(inter[1:, 1:], truth, predicted), CATEGORIES)
    found = ImageScores.of_counts(inter[1:, 1:], truth, predicted, CATEGORIES)
    for name in ("channels", "sums", "confused", "cells", "pixels"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert found.segments.num_true == expected.segments.num_true
    for name in ("classes", "areas", "ious", "causes"):
        ours, theirs = getattr(found.segments, name), getattr(expected.segments, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
