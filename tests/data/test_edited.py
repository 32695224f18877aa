"""Classes that are merged, renamed, dropped or change their kind when data are read."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TINY
from upsnet.categories import CategorySet
from upsnet.categories.edits import edit_categories
from upsnet.class_edits import ClassEdits
from upsnet.config import parse_config
from upsnet.data.edited import EditedClasses
from upsnet.data.loader import coco_of, listed_classes, open_dataset
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.io.predictions import write_samples
from upsnet.structures import Sample

STREET = CategorySet.from_json(
    [
        {"id": 3, "name": "road", "isthing": 0},
        {"id": 5, "name": "lane", "isthing": 0},
        {"id": 7, "name": "car", "isthing": 1, "color": [1, 2, 3]},
        {"id": 9, "name": "truck", "isthing": 1},
        {"id": 11, "name": "tree", "isthing": 1},
    ],
    source="street",
)
CHANNELS = {category.name: channel for channel, category in enumerate(STREET.categories)}


class OneImage:
    """A data set of one image, whose columns are segments of the given (class, is_crowd); the first column is void."""

    def __init__(self, *segments):
        self.categories = STREET
        self.sample = Sample(
            np.zeros((1, len(segments) + 1, 3), np.uint8),
            np.arange(len(segments) + 1, dtype=np.int32)[None],
            np.array([CHANNELS[name] for name, _ in segments], dtype=np.int64),
            np.array([crowd for _, crowd in segments], dtype=bool),
            1,
            "1.png",
        )

    def __len__(self):
        return 1

    def size(self, index):
        return self.sample.size

    def __getitem__(self, index):
        return self.sample


def edited(edits, *segments):
    """The result as (name, is crowd, columns) of each segment."""
    data = OneImage(*segments)
    target = edit_categories(STREET, edits, source="street")
    sample = EditedClasses(data, target, edits, name="street")[0]
    assert set(np.unique(sample.segment_map)) - {0} == set(range(1, len(sample.classes) + 1))
    return [
        (target[channel].name, bool(crowd), np.flatnonzero(sample.segment_map[0] == row + 1).tolist())
        for row, (channel, crowd) in enumerate(zip(sample.classes.tolist(), sample.is_crowd.tolist(), strict=True))
    ]


def test_merged_instances_stay_separate_and_merged_stuff_is_one_segment():
    edits = ClassEdits(merge={"vehicle": ("car", "truck"), "ground": ("road", "lane")})
    found = edited(edits, ("road", False), ("car", False), ("lane", False), ("truck", False), ("truck", True))
    assert found == [
        ("ground", False, [1, 3]), ("vehicle", False, [2]), ("vehicle", False, [4]), ("vehicle", True, [5]),
    ]  # fmt: skip


def test_dropped_classes_are_void_and_kept_ones_are_all_there_is():
    segments = [("road", False), ("car", False), ("tree", False)]
    assert edited(ClassEdits(drop=("tree",)), *segments) == [("road", False, [1]), ("car", False, [2])]
    assert edited(ClassEdits(keep=("tree", "road")), *segments) == [("road", False, [1]), ("tree", False, [3])]


def test_things_become_one_segment_of_stuff_and_stuff_an_object():
    segments = [("road", False), ("tree", False), ("tree", True), ("tree", False)]
    assert edited(ClassEdits(stuff=("tree",)), *segments) == [("road", False, [1]), ("tree", False, [2, 3, 4])]
    edits = ClassEdits(things=("road",))
    assert edit_categories(STREET, edits, source="street").num_stuff == 1
    assert edited(edits, *segments)[0] == ("road", False, [1])


@pytest.mark.parametrize(("name", "columns"), [("rest", [0]), ("road", [0, 1])])
def test_background_fills_the_pixels_without_a_segment(name, columns):
    edits = ClassEdits(background=name)
    assert edited(edits, ("road", False), ("car", False))[0] == (name, False, columns)


def test_dropped_pixels_are_not_background():
    found = edited(ClassEdits(drop=("tree",), background="rest"), ("tree", False), ("car", False))
    assert found == [("rest", False, [0]), ("car", False, [2])]


def test_a_merged_class_keeps_id_and_colour_of_its_namesake_else_of_the_first():
    found = edit_categories(STREET, ClassEdits(merge={"truck": ("car", "truck"), "ground": ("road",)}), source="street")
    assert {c.name: c.id for c in found.categories} == {"ground": 3, "lane": 5, "truck": 9, "tree": 11}
    renamed = edit_categories(STREET, ClassEdits(merge={"automobile": ("car",)}), source="street")
    assert next(c for c in renamed.categories if c.name == "automobile").color == (1, 2, 3)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"drop": ("bus",)}, "street: no class 'bus', expected one of: road, lane, car, truck, tree"),
        ({"merge": {"x": ("car", "road")}}, "street: 'x' merges stuff and things"),
        ({"merge": {"vehicle": ("car",)}, "drop": ("car",)}, "street: no class 'car'"),
        ({"keep": ("car",), "drop": ("car",)}, "class 'car' is kept and dropped"),
        ({"merge": {"x": ("car",), "y": ("car",)}}, "class 'car' is merged into two classes"),
        ({"stuff": ("car",), "things": ("car",)}, "class 'car' is made stuff and a thing"),
        ({"keep": ()}, "no class is kept"),
    ],
)
def test_changes_that_contradict_the_data_or_each_other_are_one_line(edits, message):
    with pytest.raises(ValueError, match=message):
        edit_categories(STREET, ClassEdits(**edits), source="street")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_pixel_gets_the_class_that_its_own_class_becomes(data):
    names = list(CHANNELS)
    groups = data.draw(st.lists(st.sampled_from(["a", "b", None]), min_size=5, max_size=5))
    merge = {
        new: tuple(n for n, g in zip(names, groups, strict=True) if g == new) for new in ("a", "b") if new in groups
    }
    pairs = list(zip(names, groups, strict=True))
    kinds = {new: data.draw(st.sampled_from(["stuff", "things"])) for new in merge}
    after = [name for name, group in pairs if group is None] + list(merge)
    drop = tuple(data.draw(st.lists(st.sampled_from(after), unique=True, max_size=len(after) - 1)))
    edits = ClassEdits(
        merge=merge,
        drop=drop,
        stuff=tuple(n for n, kind in kinds.items() if kind == "stuff"),
        things=tuple(n for n, kind in kinds.items() if kind == "things"),
    )
    segments = data.draw(st.lists(st.tuples(st.sampled_from(names), st.booleans()), min_size=1, max_size=8))
    found = edited(edits, *segments)
    class_of = {column: name for name, _, columns in found for column in columns}
    for column, (name, _) in enumerate(segments, start=1):
        assert class_of.get(column) == edits.new_name(name)
    assert 0 not in class_of


@pytest.fixture
def two_numberings(tmp_path, monkeypatch):
    """Shapes on the disk; the JSON of val has other ids, and its classes in another order."""
    monkeypatch.setenv("UPSNET_DATASETS", str(tmp_path))
    for split in ("train", "val"):
        write_samples((Shapes(3, (48, 64))[i] for i in range(3)), CATEGORIES, tmp_path, split)
    path = tmp_path / "annotations/panoptic_val.json"
    document = json.loads(path.read_text())
    for row in document["categories"]:
        row["id"] += 100
    for annotation in document["annotations"]:
        for row in annotation["segments_info"]:
            row["category_id"] += 100
    document["categories"].reverse()
    path.write_text(json.dumps(document))

    def config(*overrides):
        data = {
            split: {"format": "coco", "image_dir": split, "annotation_file": f"annotations/panoptic_{split}.json"}
            for split in ("train", "val")
        }
        return parse_config({**TINY, "data": data}, overrides, source="test").data

    return config


def test_train_and_val_may_differ_in_ids_and_order(two_numberings):
    train = open_dataset(two_numberings(), "train")
    val = open_dataset(two_numberings(), "val", train.categories)
    assert val.categories == train.categories
    for index in range(3):
        np.testing.assert_array_equal(val[index].classes, train[index].classes)
        np.testing.assert_array_equal(val[index].segment_map, train[index].segment_map)
    assert coco_of(val) is not None
    np.testing.assert_array_equal(listed_classes(val, 0), val[0].classes)


def test_changes_in_a_config_apply_to_train_and_val(two_numberings):
    config = two_numberings("data.classes.merge={thing: [disc, square, triangle, star]}", "data.classes.drop=[road]")
    train = open_dataset(config, "train")
    assert [c.name for c in train.categories.categories] == ["sky", "grass", "thing"]
    val = open_dataset(config, "val", train.categories)
    plain = Shapes(3, (48, 64))[1]
    for sample in (train[1], val[1]):
        things = [row + 1 for row, channel in enumerate(plain.classes) if channel >= 3]
        np.testing.assert_array_equal(
            np.isin(sample.segment_map, np.flatnonzero(sample.classes == 2) + 1), np.isin(plain.segment_map, things)
        )
        road = [row + 1 for row, channel in enumerate(plain.classes) if channel == 2]
        assert (sample.segment_map[np.isin(plain.segment_map, road)] == 0).all()


def test_a_class_of_another_kind_is_named_whatever_else_changes(two_numberings, tmp_path):
    path = tmp_path / "annotations/panoptic_val.json"
    document = json.loads(path.read_text())
    next(row for row in document["categories"] if row["name"] == "star")["isthing"] = 0
    path.write_text(json.dumps(document))
    for changes in ((), ("data.classes.drop=[road]",)):
        config = two_numberings(*changes)
        train = open_dataset(config, "train")
        with pytest.raises(ValueError, match=r"panoptic_val.json: class 'star' is stuff, expected thing"):
            open_dataset(config, "val", train.categories)
    config = two_numberings("data.classes.things=[star]")
    assert open_dataset(config, "val", open_dataset(config, "train").categories).categories.num_things == 4


def test_contradictions_in_a_config_name_the_key(two_numberings):
    with pytest.raises(ValueError, match=r"data\.classes.*'sky' is kept and dropped"):
        two_numberings("data.classes.keep=[sky]", "data.classes.drop=[sky]")
