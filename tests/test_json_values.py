"""Values as programs write them: every form whose meaning is certain, and no other."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upsnet.json_values import crowd_flag, flag, image_id, match_image_ids, number, whole_number


@pytest.mark.parametrize(("value", "expected"), [
    (20, 20), (20.0, 20), ("20", 20), ("20.0", 20), (-3, -3), ("-3", -3), ("007", 7), (0, 0), (-0.0, 0), ("0", 0),
    (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)), ("9223372036854775807", 2**63 - 1),
    (2**63, None), (-(2**63) - 1, None), ("9223372036854775808", None), (1e300, None), ("1" * 5000, None),
    (20.5, None), ("20.5", None), (True, None), (False, None), (math.nan, None), (math.inf, None), (None, None),
    ("", None), (" 20", None), ("20 ", None), ("1_000", None), ("1e3", None), ("0x10", None), ("nan", None),
    ("٣", None), ([20], None), ({}, None), (b"20", None),
])  # fmt: skip
def test_whole_numbers(value, expected):
    found = whole_number(value)
    assert found == expected
    assert found is None or type(found) is int


@pytest.mark.parametrize(("value", "expected"), [
    (0.5, 0.5), (1, 1.0), ("0.5", 0.5), ("5e-1", 0.5), (".5", 0.5), ("5.", 5.0), ("-2", -2.0), ("+2", 2.0),
    ("1E2", 100.0),
    (math.nan, None), (math.inf, None), (-math.inf, None), ("nan", None), ("inf", None), ("1e999", None),
    (10**400, None),
    (True, None), (None, None), ("", None), ("0,5", None), ("1_0", None), ("high", None), ([0.5], None),
    ("9" * 500, None),
])  # fmt: skip
def test_numbers(value, expected):
    found = number(value)
    assert found == expected
    assert found is None or type(found) is float


@given(st.integers(-(2**53), 2**53))
@settings(max_examples=50, deadline=None)
def test_a_number_is_the_same_in_every_form(value):
    assert {whole_number(form) for form in (value, float(value), str(value), f"{value}.0")} == {value}
    assert {number(form) for form in (value, float(value), str(value), f"{value}.0")} == {float(value)}


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", True])
def test_flags_that_are_set(value):
    assert flag(value) is True
    assert crowd_flag(value) is True


@pytest.mark.parametrize("value", [0, 0.0, "0", "0.0", False])
def test_flags_that_are_not_set(value):
    assert flag(value) is False
    assert crowd_flag(value) is False


@pytest.mark.parametrize("value", [2, -1, 0.5, "yes", "true", "false", "", [], [1], {}, math.nan])
def test_other_values_are_no_flag(value):
    assert flag(value) is None
    with pytest.raises(ValueError, match=r"iscrowd .*, expected 0 or 1"):
        crowd_flag(value)


def test_a_null_means_no_crowd_but_nothing_else():
    assert crowd_flag(None) is False
    assert flag(None) is None


def test_ids_of_images_are_texts_or_whole_numbers():
    assert [image_id(value) for value in (7, 7.0, "7", "a", "")] == [7, 7, "7", "a", ""]
    assert [image_id(value) for value in (None, True, 7.5, [7], {}, 2**70)] == [None] * 6
    assert type(image_id(7.0)) is int


@pytest.mark.parametrize(("given_ids", "known", "expected"), [
    ([7, 8], [7, 8], {7: 7, 8: 8}),
    (["7", "8.0"], [7, 8], {"7": 7, "8.0": 8}),
    ([7], ["7"], {7: "7"}),
    (["a", "b"], ["b"], {"b": "b"}),
    ([7, "7", "7.0"], [7], {7: 7, "7": 7, "7.0": 7}),
    ([7, "7"], [7, "7"], {7: 7, "7": "7"}),
    (["07"], [7, "7"], {}),
    ([7, "000008"], ["000007", 8], {7: "000007", "000008": 8}),
    (["000007", "7"], [7], {"7": 7}),
    (["07", "007"], [7], {}),
    (["x7", 9], [7], {}),
    ([], [7], {}),
])  # fmt: skip
def test_ids_that_mean_the_same_image(given_ids, known, expected):
    found = match_image_ids(given_ids, known)
    assert found == expected
    assert all(type(found[key]) is type(expected[key]) for key in found)
