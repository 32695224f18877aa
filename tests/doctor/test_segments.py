"""Measures of segments against a slow way of finding them."""

import cv2
import numpy as np

from upsnet.doctor.segments import measure
from upsnet.ops.id_maps import segment_geometry


def blobs(rng, size=(60, 90), count=9):
    """Segments of several discs each, over one another."""
    ids = np.zeros(size, dtype=np.int32)
    for number in range(1, count + 1):
        for _ in range(rng.integers(1, 4)):
            center = int(rng.integers(size[1])), int(rng.integers(size[0]))
            cv2.circle(ids, center, int(rng.integers(2, 9)), number, cv2.FILLED)
    return ids


def is_scattered(mask):
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    pieces = sorted(stats[1:].tolist(), key=lambda row: -row[4])
    if not pieces:
        return False
    x, y, width, height, _ = pieces[0]
    for x2, y2, width2, height2, area in pieces[1:]:
        gap = max(x2 - (x + width), x - (x2 + width2), y2 - (y + height), y - (y2 + height2))
        if gap > max(width, height) and area >= mask.sum() / 4:
            return True
    return False


def test_measures_are_those_of_each_mask_alone():
    rng = np.random.default_rng(0)
    scattered = []
    for _ in range(30):
        ids = blobs(rng)
        found = measure(ids, 10)
        areas, boxes = segment_geometry(ids, 9)
        np.testing.assert_array_equal(found.areas[1:], areas)
        np.testing.assert_array_equal(found.boxes[1:], boxes)
        expected = [is_scattered(ids == number) for number in range(1, 10)]
        unsure = [_has_two_largest(ids == number) for number in range(1, 10)]
        for number in range(9):
            assert unsure[number] or found.scattered[number + 1] == expected[number]
        scattered += expected
    assert 0.1 < np.mean(scattered) < 0.9


def _has_two_largest(mask):
    """Then either is the largest."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = sorted(stats[1:, 4].tolist())
    return len(areas) > 1 and areas[-1] == areas[-2]
