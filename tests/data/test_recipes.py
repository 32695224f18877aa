"""Copy-paste and repeat factors."""

from __future__ import annotations

import numpy as np
import pytest

from upsnet.data.copy_paste import paste_things
from upsnet.data.repeat_factor import draw_repeats, repeat_factors
from upsnet.data.shapes import Shapes
from upsnet.structures import Sample

NUM_STUFF = 2


def make(rows: list[list[int]], classes: list[int], crowd: list[bool], value: int) -> Sample:
    ids = np.array(rows, dtype=np.int32)
    image = np.full((*ids.shape, 3), value, dtype=np.uint8)
    return Sample(image, ids, np.array(classes), np.array(crowd), value, f"{value}.jpg")


def always(sample: Sample, source: Sample) -> Sample:
    """With a generator that chooses everything."""

    class All:
        def random(self, count: int) -> np.ndarray:
            return np.zeros(count)

    return paste_things(sample, source, NUM_STUFF, All())  # type: ignore[arg-type]


def test_a_thing_brings_its_pixels_its_id_and_its_class() -> None:
    base = make([[1, 1, 2], [1, 0, 2]], [0, 3], [False, False], 10)
    source = make([[0, 1, 1], [2, 1, 3]], [2, 0, 4], [False, False, False], 99)
    pasted = always(base, source)
    assert pasted.segment_map.tolist() == [[1, 3, 3], [1, 3, 4]]
    assert pasted.classes.tolist() == [0, 3, 2, 4] and pasted.is_crowd.tolist() == [False] * 4
    assert pasted.image[..., 0].tolist() == [[10, 99, 99], [10, 99, 99]]
    assert base.segment_map.tolist() == [[1, 1, 2], [1, 0, 2]], "the picture that was read is left alone"


def test_stuff_crowds_and_void_stay_where_they_are() -> None:
    base = make([[1, 1], [2, 0]], [0, 3], [False, True], 10)
    source = make([[1, 2], [0, 0]], [1, 4], [False, True], 99)
    assert always(base, source) is base


def test_pictures_of_other_sizes_meet_at_the_top_left() -> None:
    base = make([[1, 1, 1]], [0], [False], 10)
    source = make([[1, 0], [1, 1]], [2], [False], 99)
    assert always(base, source).segment_map.tolist() == [[2, 1, 1]]


def test_every_pasted_pixel_has_one_class_and_nothing_becomes_void() -> None:
    data = Shapes(2, (64, 64), seed=3)
    num_stuff = data.categories.num_stuff
    for seed in range(20):
        pasted = paste_things(data[0], data[1], num_stuff, np.random.default_rng(seed))
        assert pasted.segment_map.max() <= len(pasted.classes) == len(pasted.is_crowd)
        was_void = data[0].segment_map == 0
        assert not ((pasted.segment_map == 0) & ~was_void).any()
        is_new = pasted.segment_map > len(data[0].classes)
        np.testing.assert_array_equal(pasted.image[is_new], data[1].image[is_new])
        np.testing.assert_array_equal(pasted.image[~is_new], data[0].image[~is_new])
        source_classes = np.concatenate([[-1], data[1].classes])[data[1].segment_map]
        np.testing.assert_array_equal(pasted.classes[pasted.segment_map[is_new] - 1], source_classes[is_new])


def test_a_picture_comes_as_often_as_its_rarest_class_asks() -> None:
    classes = [np.array([0]), np.array([0, 0]), np.array([0, 1]), np.array([], dtype=np.int64)]
    assert repeat_factors(classes, 3, threshold=0.5).tolist() == [1, 1, pytest.approx(2**0.5), 1]
    assert repeat_factors(classes, 3, threshold=0).tolist() == [1] * 4


def test_repeats_have_the_factors_for_their_mean() -> None:
    factors = np.array([1.0, 1.25, 2.5])
    drawn = np.array([draw_repeats(factors, np.random.default_rng(i)) for i in range(2000)])
    np.testing.assert_allclose(drawn.mean(0), factors, atol=0.05)
    assert drawn.min(0).tolist() == [1, 1, 2] and drawn.max(0).tolist() == [1, 2, 3]
