"""Names of images that come from one original, and names that only share a word."""

import re

import pytest

from upsnet.doctor.related_names import find_related


@pytest.mark.parametrize(
    ("train", "val", "original"),
    [
        ("{}_scaled_0_png_jpg.rf.0a1b.jpg", "{}_scaled_1_png_jpg.rf.c2d3.jpg", "{}"),
        ("{}_jpeg.rf.0a1b.jpg", "{}_jpeg.rf.c2d3.jpg", "{}_jpeg"),
        ("sub/{}-crop3.png", "sub/{}-crop4.png", "sub/{}"),
        ("{}_frame0007.jpg", "{}_frame0008.jpg", "{}"),
        ("{}_0.tif", "{}_1.tif", "{}"),
    ],
)
def test_parts_of_one_original_in_both_splits_are_found(train, val, original):
    names = ["house", "tower", "20230329_200451", "yard"]
    found = find_related([train.format(name) for name in names], [val.format(name) for name in names[:2]])
    assert found.shared == found.total == 2
    assert found.example == (val.format("house"), train.format("house"))
    for template in (train, val):
        assert re.search(found.pattern, template.format("house"))[1] == original.format("house")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ([f"IMG_{n:04d}.jpg" for n in range(30)], [f"IMG_{n:04d}.jpg" for n in range(30, 40)]),
        ([f"{n}.jpg" for n in range(30)], [f"{n}.jpg" for n in range(30, 40)]),
        ([f"{word}_{n}.jpg" for word in "abcde" for n in range(30)], [f"{word}_31.jpg" for word in "abcde"]),
        ([f"{n}_left.jpg" for n in range(9)], [f"{n}_left.jpg" for n in range(9, 12)]),
    ],
)
def test_a_shared_word_is_no_original(train, val):
    assert find_related(train, val) is None


def test_names_of_classes_are_no_originals():
    train = [f"{name}_{n}.jpg" for name in ("cat", "dog", "bird") for n in range(4)]
    assert find_related(train, ["cat_9.jpg"], {"cat", "dog", "bird"}) is None
    assert find_related(train, ["cat_9.jpg"]).shared == 1
