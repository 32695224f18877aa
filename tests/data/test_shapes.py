import hashlib

import numpy as np
import pytest

from upsnet.data.shapes import CATEGORIES, Shapes


def digest(sample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.segment_map.tobytes() + sample.classes.tobytes()).hexdigest()[
        :16
    ]


def test_three_images_are_what_they_always_were():
    found = [digest(Shapes(1500, seed=seed)[index]) for seed, index in ((0, 0), (0, 1499), (1, 7))]
    assert found == ["8500c1aa8b6621f9", "dfdc68aebbd4d115", "62d2136c43e5ea47"]


def test_samples_have_the_stated_difficulty():
    data = Shapes(200)
    samples = [data[i] for i in range(200)]
    things = [int(((s.classes >= 3) & ~s.is_crowd).sum()) for s in samples]
    assert 1 <= np.mean(things) <= 7
    assert max(things) <= 7
    assert 0.06 < np.mean([s.is_crowd.any() for s in samples]) < 0.2
    assert 0.2 < np.mean([(s.segment_map == 0).any() for s in samples]) < 0.4
    for s in samples:
        assert s.image.shape == (128, 128, 3)
        assert set(np.unique(s.segment_map)) - {0} == set(range(1, len(s.classes) + 1))
        assert (np.bincount(s.classes[~s.is_crowd], minlength=7)[:3] <= 1).all(), "one segment per stuff class"


@pytest.mark.parametrize("size", [(16, 16), (50, 200), (300, 128)])
def test_any_size(size):
    sample = Shapes(1, size)[0]
    assert sample.image.shape == (*size, 3)
    assert sample.segment_map.shape == size


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_images"):
        Shapes(0)
    with pytest.raises(IndexError):
        Shapes(2)[2]
    assert CATEGORIES.num_stuff == 3
