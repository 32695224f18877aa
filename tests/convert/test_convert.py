"""Annotations of one's own -> one map without overlaps, classes with ids, and splits: cases by hand."""

import numpy as np
import pytest
from PIL import Image

from upsnet.categories import CategorySet
from upsnet.class_edits import ClassEdits
from upsnet.convert.classes import ClassOptions, parse_stuff
from upsnet.convert.label_maps import mask_of
from upsnet.convert.layers import Layers, Order, Region, compose
from upsnet.convert.run import split_by_name

CLASSES = CategorySet.from_json(
    [{"id": 9, "name": "floor", "isthing": 0}, {"id": 2, "name": "cup", "isthing": 1}], source="test"
)
FLOOR, CUP = 0, 1


def mask(text):
    return np.array([[c == "#" for c in row] for row in text.split()])


def test_the_smaller_of_two_instances_lies_on_top_and_the_order_of_the_annotation_stays_in_the_ids():
    small, large = Region.of(CUP, mask(".... .##. .##. ....")), Region.of(CUP, mask("#### #### #### ...."))
    for regions in ([small, large], [large, small]):
        made = compose(Layers((4, 4), regions), CLASSES, background=FLOOR)
        assert made.classes.tolist() == [FLOOR, CUP, CUP]
        ids = made.segment_map
        assert (ids == 1).tolist() == mask(".... .... .... ####").tolist()
        assert (ids == 2 + (regions[0] is large)).tolist() == small_mask(small).tolist()
        assert (made.overlapped, made.covered, made.empty) == (4, 0, 0)


def small_mask(region):
    canvas = np.zeros((4, 4), bool)
    region.window(canvas)[region.mask] = True
    return canvas


@pytest.mark.parametrize(("on_top", "rows"), [("smaller", [1, 2]), ("later", [2]), ("earlier", [1, 2])])
def test_an_instance_that_others_cover_whole_is_dropped_and_counted(on_top, rows):
    regions = [Region.of(CUP, mask(".... .##. .... ....")), Region.of(CUP, mask("#### #### .... ...."))]
    made = compose(
        Layers((4, 4), [*regions, Region.of(CUP, mask(".... .... .... ...."))]), CLASSES, order=Order(on_top)
    )
    assert len(made.classes) == len(rows)
    assert (made.overlapped, made.covered, made.empty) == (2, 2 - len(rows), 1)
    assert np.bincount(made.segment_map.ravel()).tolist() == {1: [8, 8], 2: [8, 2, 6]}[len(rows)]


def test_three_claims_to_a_pixel_count_once():
    made = compose(Layers((2, 2), [Region.of(CUP, mask("#. ..")) for _ in range(3)]), CLASSES)
    assert (made.overlapped, made.covered) == (1, 2)


def test_instances_lie_upon_crowds_and_crowds_upon_stuff():
    semantic = np.array([[FLOOR, FLOOR, 255, 255]] * 4, dtype=np.uint8)
    crowds = [Region.of(CUP, mask(rows), is_crowd=True) for rows in (".##. .##. .... ....", ".... .... .... ...#")]
    cup = Region.of(CUP, mask(".... .### .... ...."))
    made = compose(Layers((4, 4), [cup, *crowds], semantic), CLASSES)
    assert made.classes.tolist() == [FLOOR, CUP, CUP]
    assert made.is_crowd.tolist() == [False, True, False]
    assert made.segment_map.tolist() == [[1, 2, 2, 0], [1, 3, 3, 3], [1, 1, 0, 0], [1, 1, 0, 2]]
    assert made.overlapped == 0


def test_classes_keep_given_ids_and_number_the_others_in_order(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text(
        "- {name: cup, isthing: 1}\n- {name: floor, isthing: 0, id: 1}\n- {name: b, isthing: 1, value: 7}\n"
    )
    classes = ClassOptions(path).resolve([], "unused")
    assert [(c.id, c.name) for c in classes.categories.categories] == [(1, "floor"), (2, "cup"), (3, "b")]
    assert classes.values == {1: 0, 2: 1, 7: 2}
    found = ClassOptions(None, parse_stuff("7=road,sky"), "floor").resolve([(5, "cup"), (1, "sky")], "found")
    assert [(c.id, c.name, c.is_thing) for c in found.categories.categories] == [
        (1, "sky", False), (2, "road", False), (3, "floor", False), (5, "cup", True)
    ]  # fmt: skip
    assert found.values == {7: 1}
    assert found.categories[2].color == (70, 70, 70)
    with pytest.raises(ValueError, match=r"label 'cop' is no class of .*classes.yaml \(floor, cup, b\); add it there"):
        classes.channel("cop")


def test_unlabelled_pixels_are_background_if_no_class_is_stuff():
    found = [(None, "a"), (5, "b")]
    classes = ClassOptions().resolve(found, "")
    assert [(c.id, c.name) for c in classes.categories.categories] == [(2, "background"), (1, "a"), (5, "b")]
    assert classes.background == 0
    assert ClassOptions(keep_void=True).resolve(found, "").background is None
    assert ClassOptions(None, ((None, "b"),)).resolve(found, "").background is None, "there is stuff"
    named = ClassOptions().resolve([*found, (None, "background")], "")
    assert named.categories[0].name == "background"
    assert named.background == 0


def test_labels_are_merged_renamed_and_dropped():
    edits = ClassEdits(merge={"vehicle": ("car", "truck"), "person": ("pedestrian",)}, drop=("sky",))
    found = [(3, "car"), (5, "truck"), (7, "pedestrian"), (9, "sky"), (11, "road")]
    classes = ClassOptions(None, ((None, "road"),), edits=edits).resolve(found, "")
    assert {c.name: (c.id, c.is_thing) for c in classes.categories.categories} == {
        "road": (11, False), "vehicle": (3, True), "person": (7, True),
    }  # fmt: skip
    assert classes.channel("truck") == classes.channel("car") == classes.names["vehicle"]
    assert classes.channel("sky") == 255
    kept = ClassOptions(edits=ClassEdits(keep=("truck", "car"))).resolve(found, "")
    assert [c.name for c in kept.categories.categories] == ["background", "truck", "car"]
    assert kept.channel("pedestrian") == 255


def test_labels_that_differ_only_in_case_or_blanks_are_pointed_out():
    notes = ClassOptions().notes(["Car", "car ", "truck", "car"])
    assert len(notes) == 1
    assert "labels 'Car', 'car', 'car ' differ only in case or blanks" in notes[0]
    merged = ClassEdits(merge={"car": ("Car", "car ", "car")})
    assert ClassOptions(edits=merged).notes(["Car", "car ", "truck", "car"]) == []
    assert "no label 'lorry'" in ClassOptions(edits=ClassEdits(drop=("lorry",))).notes(["car"])[0]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- {name: a, isthing: 1, id: 1}\n- {name: b, isthing: 1, id: 1}", "id 1 appears more than once"),
        ("- {name: a, isthing: 1}\n- {name: a, isthing: 0}", "name 'a' appears more than once"),
        ("- {name: a}", "lacks isthing"),
        ("- {name: a, isthing: 1, colour: 3}", "'colour', expected name, id"),
        ("- {name: no, isthing: 1}", "put it into quotes"),
        ("- {name: a, isthing: 1, value: 3}\n- {name: b, isthing: 1, id: 3}", "value 3 stands for two classes"),
        ("- {name: a, isthing: 1, value: [1, 2]}", "value"),
        ("- {name: a, isthing: 1, color: red}", "color 'red', expected [R, G, B]"),
        ("- {name: a, isthing: 1, color: [1, 2]}", "expected three of 0..255"),
        ("- {name: a, isthing: 1, id: x}", "id 'x', expected a whole number"),
        ("a: 1", "expected a list of classes"),
        ("- {", "not valid YAML"),
    ],
)
def test_contradicting_classes_are_named(tmp_path, text, part):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml: ") as error:
        ClassOptions(tmp_path / "c.yaml").resolve([], "")
    assert part in str(error.value)


def test_options_that_contradict_a_classes_file_are_named(tmp_path):
    (tmp_path / "c.yaml").write_text("- {name: a, isthing: 1}")
    for options, part in (
        (ClassOptions(tmp_path / "c.yaml", ((None, "b"),)), "--stuff beside --classes"),
        (ClassOptions(tmp_path / "c.yaml", (), "a"), "a thing in"),
        (ClassOptions(tmp_path / "c.yaml", (), "b"), "not a class of"),
        (ClassOptions(tmp_path / "none.yaml"), "no such classes file"),
        (ClassOptions(None, ((None, "sku"),)), r"--stuff sku: no such label in photos \(sky\)"),
        (ClassOptions(None, ((1, "a"), (2, "a"))), "names a class twice"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=part):
            options.resolve([(None, "sky")], "photos")


def test_a_mask_is_on_where_it_is_neither_black_nor_transparent():
    on = np.array([[True, False]])
    for pixels in (on, on * np.uint8(1), on * np.uint8(255), on * np.uint16(300), np.stack([on * np.uint8(9)] * 3, -1)):
        assert mask_of(Image.fromarray(pixels)).tolist() == on.tolist()
    clear = np.array([[[255, 255, 255, 255], [255, 255, 255, 0]]], np.uint8)
    assert mask_of(Image.fromarray(clear)).tolist() == on.tolist()


def test_the_split_depends_on_names_share_and_seed_alone():
    names = [f"{i}.jpg" for i in range(50)]
    splits = dict(zip(names, split_by_name(names, 0.2, 0), strict=True))
    assert sum(s == "val" for s in splits.values()) == 10
    assert dict(zip(names[::-1], split_by_name(names[::-1], 0.2, 0), strict=True)) == splits
    assert split_by_name(names, 0.2, 1) != list(splits.values())
    assert sorted(split_by_name(["a", "b"], 0.01, 0)) == sorted(split_by_name(["a", "b"], 0.99, 0)) == ["train", "val"]
