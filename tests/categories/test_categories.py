import pytest
import torch

from upsnet.categories import CategorySet, label_from_semantic, semantic_from_label

ROWS = [
    {"id": 7, "name": "car", "isthing": 1, "color": [1, 2, 3]},
    {"id": 3, "name": "sky", "isthing": 0, "supercategory": "outdoor"},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 90, "name": "road", "isthing": 0},
]


def test_channels_put_stuff_first_and_keep_the_order_within():
    categories = CategorySet.from_json(ROWS, source="x")
    assert categories.channels == {3: 0, 90: 1, 7: 2, 1: 3}
    assert (categories.num_stuff, categories.num_things) == (2, 2)
    assert CategorySet.from_json(categories.to_json(), source="y") == categories


def test_labels_and_channels_are_inverse():
    labels = torch.arange(1, 5)
    assert semantic_from_label(1, 2) == 2
    assert torch.equal(label_from_semantic(semantic_from_label(labels, 53), 53), labels)


def test_colours_are_distinct_for_133_classes():
    rows = [{"id": i, "name": str(i), "isthing": i % 2} for i in range(133)]
    assert len({c.color for c in CategorySet.from_json(rows, source="x").categories}) > 120


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 categories"),
        ([ROWS[0], ROWS[0]], "id 7 appears more than once"),
        ([ROWS[0], {**ROWS[1], "name": "car"}], "name 'car' appears more than once"),
        ([{"id": 1, "name": "a"}], "'a' lacks isthing"),
        ([{"id": 1, "name": "a", "isthing": 2}], "isthing=2"),
        ([{"id": "one", "name": "a", "isthing": 1}], "id 'one', expected a whole number"),
        ([{"id": 1.5, "name": "a", "isthing": 1}], "id 1.5, expected a whole number"),
        (["car"], "category 0 is 'car', expected an object"),
        (5, "categories are 5, expected a list"),
        ([{"id": 2**40, "name": "a", "isthing": 1}], "expected a whole number of 32 bits"),
        ([{"id": True, "name": "a", "isthing": 1}], "id True, expected a whole number"),
        ([{"id": 1, "name": "\ud800", "isthing": 1}], "expected a name of 1 to 200 printable characters"),
        ([{"id": 1, "name": "a\nb", "isthing": 1}], "printable characters"),
        ([{"id": 1, "name": "", "isthing": 1}], "printable characters"),
        ([{"id": 1, "name": "x" * 5000, "isthing": 1}], " ... "),
        ([{"id": 1, "name": [1], "isthing": 1}], "printable characters"),
        ([{"id": 1, "name": "a", "isthing": "yes"}], "isthing='yes', expected 0 or 1"),
    ],
)
def test_contradictions_are_errors(rows, message):
    with pytest.raises(ValueError, match=message):
        CategorySet.from_json(rows, source="file.json")


def test_numbers_may_be_written_as_fractions_or_texts():
    rows = [
        {"id": 7.0, "name": "car", "isthing": "1", "color": [1.0, "2", 3]},
        {"id": "3", "name": "sky", "isthing": 0.0},
    ]
    found = CategorySet.from_json(rows, source="x")
    assert [(c.id, c.name, c.is_thing) for c in found.categories] == [(3, "sky", False), (7, "car", True)]
    assert found[1].color == (1, 2, 3)
    assert found.channels == {3: 0, 7: 1}


def test_other_numbering_is_refused_by_name():
    ours = CategorySet.from_json(ROWS, source="x")
    ours.require(ours, source="same")
    swapped = [{**ROWS[0], "id": 1}, ROWS[1], {**ROWS[2], "id": 7}, ROWS[3]]
    with pytest.raises(ValueError, match=r"val\.json: category id (1|7) is"):
        ours.require(CategorySet.from_json(swapped, source="x"), source="val.json")
    with pytest.raises(ValueError, match="missing"):
        ours.require(CategorySet.from_json(ROWS[:3], source="x"), source="val.json")


@pytest.mark.parametrize("color", ["red", [1, 2], [1, 2, 256], 7])
def test_a_color_that_is_none_is_named(color):
    with pytest.raises(ValueError, match=r"test: category 'a' has color .* expected three of 0\.\.255"):
        CategorySet.from_json([{"id": 1, "name": "a", "isthing": 1, "color": color}], source="test")
