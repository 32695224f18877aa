"""Traps of the exports of real annotation programs, each with the value that is right."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.convert import forms
from tests.convert.test_convert_mistakes import require_mistake
from upsnet.categories import CategorySet
from upsnet.convert.classes import ClassOptions
from upsnet.convert.coco_instances import CocoInstances
from upsnet.convert.layers import Layers, Order, Region, compose, parse_order
from upsnet.convert.run import split_by_name

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
"""16 pixels of the image of 10 x 12."""


def export(folder, rows, *, categories=None, names=("a.png",), **document):
    """A COCO JSON beside its images of 10 x 12 pixels; `rows` are annotations of category 1 in image 1 by default."""
    for name in names:
        forms.save(folder / name, np.zeros((10, 12, 3), np.uint8))
    images = [{"id": i, "file_name": name, "height": 10, "width": 12} for i, name in enumerate(names, start=1)]
    filled = [
        {"id": i, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [SQUARE]} | row
        for i, row in enumerate(rows, start=1)
    ]
    content = {"images": images, "annotations": filled, "categories": categories or [{"id": 1, "name": "cat"}]}
    path = folder / "a.json"
    path.write_text(json.dumps(content | document))
    return path


@pytest.fixture
def convert(run_tool, tmp_path):
    """Converts COCO JSONs; returns code, output, errors."""

    def run(*paths, more=(), form="coco"):
        words = ("--annotations", *paths, "--output", tmp_path / "out", "--workers", 1, *more)
        return run_tool("datasets/convert.py", form, *words)

    return run


def areas(root, split="train", index=0):
    """Class name -> pixels of its segments, without the background."""
    data = forms.opened(root, split)
    sample = data[index]
    counts = np.bincount(sample.segment_map.ravel(), minlength=len(sample.classes) + 1)[1:]
    found = {}
    for channel, count in zip(sample.classes.tolist(), counts.tolist(), strict=True):
        if data.categories[channel].name != "background":
            found.setdefault(data.categories[channel].name, []).append(count)
    return found


@pytest.mark.parametrize("write", [int, float, str], ids=["int", "float", "text"])
def test_numbers_are_taken_however_they_are_written(convert, tmp_path, write):
    """pandas writes whole numbers as floats, and some scripts write texts."""
    runs = {"size": [write(10), write(12)], "counts": [write(v) for v in (0, 30, 90)]}
    row = {"id": write(1), "image_id": write(1), "category_id": write(1), "iscrowd": write(0)}
    path = export(
        tmp_path / "photos",
        [row, row | {"segmentation": runs}],
        categories=[{"id": write(1), "name": "cat"}],
        images=[{"id": 1, "file_name": "a.png", "height": write(10), "width": write(12)}],
    )
    code, _, err = convert(path)
    assert code == 0, err
    assert areas(tmp_path / "out") == {"cat": [16, 22]}, "the square lies on 8 of the 30 pixels"


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        [SQUARE],
        [[SQUARE]],
        [[1, 1], [5, 1], [5, 5], [1, 5]],
        [[[1, 1], [5, 1], [5, 5], [1, 5]]],
        [SQUARE, [7, 7]],
        [SQUARE, []],
        [{"size": [10, 12], "counts": [11, 4, 6, 4, 6, 4, 6, 4, 75]}],
    ],
    ids=["flat", "plain", "nested", "pairs", "nested pairs", "stray point", "empty part", "list of run lengths"],
)
def test_polygons_are_taken_in_every_form_whose_meaning_is_certain(convert, tmp_path, segmentation):
    code, _, err = convert(export(tmp_path / "photos", [{"segmentation": segmentation}]))
    assert code == 0, err
    assert areas(tmp_path / "out") == {"cat": [16]}


@pytest.mark.parametrize("segmentation", [[], [[]], [[3, 3]], [[3, 3, 5, 5]], [[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]]])
def test_an_object_without_pixels_is_counted_and_refuses_nothing(convert, tmp_path, segmentation):
    code, out, err = convert(export(tmp_path / "photos", [{}, {"segmentation": segmentation}]))
    assert code == 0, err
    assert areas(tmp_path / "out") == {"cat": [16]}
    assert "1 regions without a pixel" in out


def test_coordinates_between_0_and_1_are_named(convert, tmp_path):
    polygon = [0.1, 0.1, 0.5, 0.1, 0.5, 0.5]
    path = export(tmp_path / "photos", [{"segmentation": [polygon]}, {"segmentation": [polygon]}])
    require_mistake(convert(path), "annotation 1 of a.png", "0 to 0.5, expected pixels", "fractions of the image")
    path = export(tmp_path / "photos", [{"segmentation": [polygon]}, {}])
    code, out, _ = convert(path)
    assert code == 0, "a tiny object among others is a tiny object"
    assert "1 regions without a pixel" in out


def brushes(count, label=1):
    """Annotations as CVAT writes brush masks: run lengths of one piece with iscrowd 1."""
    runs = {"size": [10, 12], "counts": [11, 4, 6, 4, 6, 4, 6, 4, 75]}
    return [{"iscrowd": 1, "segmentation": runs, "category_id": label}] * count


def test_brush_masks_marked_as_crowds_stop_until_the_user_says_what_they_are(convert, tmp_path):
    path = export(tmp_path / "photos", [{"segmentation": [[7, 1, 11, 1, 11, 5, 7, 5]]}, *brushes(3)])
    require_mistake(convert(path), "3 of 4 annotations of 'cat' have iscrowd 1", "--crowds objects or --crowds crowds")
    code, out, _ = convert(path, more=("--crowds", "crowds"))
    assert code == 0
    assert "1 + 1 crowds (of 3 annotations)" in out
    code, out, _ = convert(path, more=("--crowds", "objects", "--split", "val"))
    assert code == 0
    assert "crowds" not in out
    assert areas(tmp_path / "out", "val") == {"cat": [16, 16]}, "the other two lie under the third"


def test_few_crowds_and_crowds_of_many_pieces_are_crowds(convert, tmp_path):
    pieces = {"iscrowd": 1, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3], [5, 5, 8, 5, 8, 8, 5, 8]]}
    code, out, err = convert(export(tmp_path / "photos", [{}, *[pieces] * 4]))
    assert code == 0, err
    assert "1 + 1 crowds (of 4 annotations)" in out
    code, _, err = convert(export(tmp_path / "photos", [*[{}] * 2, *brushes(2)]), more=("--split", "val"))
    assert code == 0, err


@pytest.mark.parametrize(
    "group", [{"id": 0, "name": "cat", "supercategory": "none"}, {"id": 0, "name": "pets", "supercategory": "none"}]
)
def test_the_group_that_roboflow_lists_first_is_no_class(convert, tmp_path, group):
    categories = [group, {"id": 1, "name": "cat", "supercategory": group["name"]}]
    code, out, err = convert(export(tmp_path / "photos", [{}], categories=categories))
    assert code == 0, err
    assert f"category 0 {group['name']!r} of a.json has no annotation and was left out" in out
    assert [c.name for c in forms.opened(tmp_path / "out").categories.categories] == ["background", "cat"]


def test_skip_bad_leaves_out_objects_and_images_and_lists_them(convert, tmp_path):
    rows = [
        {},
        {"segmentation": [[1, 1, 500, 1, 5, 5]], "bbox": [6, 6, 4, 3]},
        {"category_id": 9},
        {"image_id": 2},
        {"image_id": 7},
    ]
    path = export(tmp_path / "photos", rows, names=("a.png", "b.png"))
    (tmp_path / "photos/b.png").write_bytes(b"no image")
    require_mistake(convert(path), "annotation 3: category_id 9, expected one of 'categories' (1)")
    code, out, err = convert(path, more=("--skip-bad",))
    assert code == 0, err
    listed = (tmp_path / "out/annotations/train_mistakes.txt").read_text().splitlines()
    expected = (
        "annotation 5: image_id 7",
        "annotation 2 of a.png",
        "annotation 3 of a.png: category_id 9",
        "b.png: cannot",
    )
    assert [part in line for part, line in zip(expected, listed, strict=True)] == [True] * 4, listed
    assert "4 mistakes were left out (1 of them whole images)" in out
    sample = forms.opened(tmp_path / "out")[0]
    assert len(forms.opened(tmp_path / "out")) == 1
    assert areas(tmp_path / "out") == {"cat": [16]}
    assert (sample.segment_map[6:9, 6:10] == 0).all(), "what the object without a mask hides is unknown"
    assert (sample.segment_map[:6, 6:] != 0).all()


def test_a_conversion_without_mistakes_writes_no_list(convert, tmp_path):
    assert convert(export(tmp_path / "photos", [{}]), more=("--skip-bad", "--skip-missing"))[0] == 0
    assert not list((tmp_path / "out/annotations").glob("*.txt"))


def test_missing_images_are_counted_and_left_out_on_request(convert, tmp_path):
    path = export(tmp_path / "photos", [{}, {"image_id": 2}], names=("a.png", "b.png", "c.png"))
    (tmp_path / "photos/b.png").unlink()
    (tmp_path / "photos/c.png").unlink()
    require_mistake(convert(path), "b.png: no such image", "so are 1 others", "--skip-missing")
    code, out, err = convert(path, more=("--skip-missing",))
    assert code == 0, err
    assert "2 mistakes were left out" in out
    assert len(forms.opened(tmp_path / "out")) == 1


def test_images_without_an_object_are_counted_and_left_out_on_request(convert, tmp_path):
    path = export(tmp_path / "photos", [{}], names=("a.png", "b.png"))
    assert "1 images show no object; --drop-unannotated leaves them out" in convert(path)[1]
    code, out, _ = convert(path, more=("--drop-unannotated", "--split", "val"))
    assert code == 0
    assert "1 images that show no object were left out" in out
    assert len(forms.opened(tmp_path / "out", "val")) == 1


def test_several_files_keep_their_splits_unless_they_are_divided_anew(convert, tmp_path):
    """As Roboflow exports: a folder for each split, image ids that repeat, and other category ids."""
    first = export(tmp_path / "set/train", [{}], names=("a.png",))
    second = export(
        tmp_path / "set/valid", [{"category_id": 5}], categories=[{"id": 5, "name": "cat"}], names=("a.png",)
    )
    code, _, err = convert(first, second)
    assert code == 0, err
    assert [areas(tmp_path / "out", split) for split in ("train", "val")] == [{"cat": [16]}] * 2
    code, _, err = convert(first, second, more=("--split-val", 0.5, "--output", tmp_path / "divided"))
    assert code == 0, err
    code, _, err = convert(first, second, more=("--split", "val", "--output", tmp_path / "one"))
    assert code == 0, err
    assert len(forms.opened(tmp_path / "one", "val")) == 1
    require_mistake(convert(first, second, more=("--split", "test")), "--split test: the annotations have train, val")


def test_several_folders_make_one_data_set(convert, tmp_path):
    first = export(tmp_path / "set/one", [{}], names=("a.png",))
    second = export(tmp_path / "set/two", [{"category_id": 5}], categories=[{"id": 5, "name": "cat"}], names=("a.png",))
    code, _, err = convert(first, second)
    assert code == 0, err
    data = forms.opened(tmp_path / "out")
    assert sorted(data.file_name(i) for i in range(2)) == ["one/a.png", "two/a.png"]
    assert len(set(data.image_ids)) == 2
    assert [areas(tmp_path / "out", index=i) for i in range(2)] == [{"cat": [16]}, {"cat": [16]}]
    folders = ("--images", tmp_path / "set/one", tmp_path / "set/two")
    require_mistake(convert(first, more=(*folders, "--split", "val")), "image 'a.png' is in", "expected it in one")


def test_the_longest_end_of_a_path_that_exists_is_the_image(convert, tmp_path):
    for place, value in (("one", 10), ("two", 20), ("two/cam", 30)):
        forms.save(tmp_path / place / "1.png", np.full((10, 12, 3), value, np.uint8))
    folders = ("--images", tmp_path / "one", tmp_path / "two")
    expected = {"/home/x/two/1.png": 20, "C:\\data\\cam\\1.png": 30, "one/1.png": 10}
    for number, (name, value) in enumerate(expected.items()):
        path = export(tmp_path / "json", [{}], images=[{"id": 1, "file_name": name, "height": 10, "width": 12}])
        code, _, err = convert(path, more=(*folders, "--output", tmp_path / f"out{number}"))
        assert code == 0, err
        assert forms.opened(tmp_path / f"out{number}")[0].image.max() == value, name


def test_an_image_with_two_annotations_is_named(convert, tmp_path):
    images = [{"id": i, "file_name": "a.png", "height": 10, "width": 12} for i in (1, 2)]
    require_mistake(convert(export(tmp_path / "photos", [{}], images=images)), "a.png has two annotations")


def test_one_id_for_classes_of_two_files_is_no_conflict(convert, tmp_path):
    first = export(tmp_path / "one", [{}])
    second = export(tmp_path / "two", [{}], categories=[{"id": 1, "name": "dog"}], names=("b.png",))
    code, _, err = convert(first, second, more=("--split", "train"))
    assert code == 0, err
    assert {c.name for c in forms.opened(tmp_path / "out").categories.categories} == {"background", "cat", "dog"}
    assert [areas(tmp_path / "out", index=i) for i in range(2)] == [{"cat": [16]}, {"dog": [16]}]


def test_a_box_without_a_mask_is_a_mistake_however_the_mask_is_left_out(convert, tmp_path):
    for segmentation in (None, []):
        path = export(tmp_path / "photos", [{"segmentation": segmentation, "bbox": [2, 3, 4, 5]}])
        require_mistake(convert(path), "annotation 1 of a.png: no segmentation", "instead of boxes")
    code, _, err = convert(path, more=("--skip-bad",))
    assert code == 0, err
    assert (forms.opened(tmp_path / "out")[0].segment_map == 0).sum() == 6 * 5, "the box, in whole pixels, is void"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--rename", "cat=pet", "--rename", "dog=cat"), {"pet": [16], "cat": [4]}),
        (("--rename", "cat=dog", "--rename", "dog=cat"), {"dog": [16], "cat": [4]}),
        (("--drop", "cat"), {"dog": [4]}),
        (("--merge", "pet=cat,dog"), {"pet": [16, 4]}),
        (("--classes", "cat"), {"cat": [16]}),
    ],
)
@pytest.mark.parametrize("with_file", [False, True])
def test_options_change_labels_with_and_without_a_classes_file(convert, tmp_path, options, expected, with_file):
    rows = [{}, {"category_id": 2, "segmentation": [[7, 7, 9, 7, 9, 9, 7, 9]]}]
    path = export(tmp_path / "photos", rows, categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}])
    if with_file:
        if "--classes" in options:
            return  # either names or a file
        (tmp_path / "c.yaml").write_text("- {name: cat, isthing: 1}\n- {name: dog, isthing: 1}")
        options = ("--classes", tmp_path / "c.yaml", *options)
    code, _, err = convert(path, more=options)
    assert code == 0, err
    assert areas(tmp_path / "out") == expected
    dropped = 20 - sum(sum(counts) for counts in expected.values())
    assert (forms.opened(tmp_path / "out")[0].segment_map == 0).sum() == dropped


def test_options_change_maps_of_classes_too(run_tool, tmp_path):
    forms.save(tmp_path / "images/a.png", np.zeros((10, 12, 3), np.uint8))
    ids, classes = np.zeros((10, 12), np.uint8), np.full((10, 12), 3, np.uint8)
    for number, value in ((1, 1), (2, 2)):
        ids[2 * number, :4], classes[2 * number, :4] = number, value
    ids[9], classes[9] = 255, 255
    classes[0] = 0
    forms.save(tmp_path / "instances/a.png", ids)
    forms.save(tmp_path / "semantic/a.png", classes)
    rows = [
        "{name: fig, isthing: 1, value: 1}",
        "{name: date, isthing: 1, value: 2}",
        "{name: rest, isthing: 0, value: 3}",
    ]
    (tmp_path / "c.yaml").write_text("".join(f"- {row}\n" for row in rows))
    args = ["id-pngs", "--images", tmp_path / "images", "--instances", tmp_path / "instances"]
    args += ["--semantic", tmp_path / "semantic", "--classes", tmp_path / "c.yaml"]

    def run(*more):
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        code, _, err = run_tool("datasets/convert.py", *args, "--output", out, *more)
        assert code == 0, err
        return areas(out), int((forms.opened(out)[0].segment_map == 0).sum())

    assert run("--background", "rest") == ({"rest": [100], "fig": [4], "date": [4]}, 12)
    assert run() == ({"rest": [88], "fig": [4], "date": [4]}, 24)
    assert run("--drop", "fig", "--background", "rest") == ({"rest": [100], "date": [4]}, 16)
    assert run("--merge", "fruit=fig,date") == ({"rest": [88], "fruit": [4, 4]}, 24)


def test_a_classes_file_in_the_data_set_stays_as_it_is(run_tool, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    text = "# mine\n- {name: cat, isthing: 1, id: 4, value: 9}\n- {name: rest, isthing: 0, value: 8}\n"
    (out / "classes.yaml").write_text(text)
    forms.save(tmp_path / "images/a.png", np.zeros((4, 4, 3), np.uint8))
    forms.save(tmp_path / "ids/a.png", np.eye(4, dtype=np.uint8))
    forms.save(tmp_path / "maps/a.png", np.where(np.eye(4, dtype=bool), 9, 8).astype(np.uint8))
    args = [
        "id-pngs",
        "--images",
        tmp_path / "images",
        "--instances",
        tmp_path / "ids",
        "--semantic",
        tmp_path / "maps",
    ]
    for split in ("train", "val"):
        code, _, err = run_tool(
            "datasets/convert.py", *args, "--classes", out / "classes.yaml", "--output", out, "--split", split
        )
        assert code == 0, err
    assert (out / "classes.yaml").read_text() == text
    assert areas(out, "train") == areas(out, "val") == {"rest": [12], "cat": [4]}
    (tmp_path / "c.yaml").write_text(text)
    for name in ("second", "third"):
        code, _, err = run_tool(
            "datasets/convert.py", *args, "--classes", tmp_path / "c.yaml", "--output", tmp_path / name
        )
        assert code == 0, err
        (tmp_path / "c.yaml").write_text((tmp_path / name / "classes.yaml").read_text())
        assert areas(tmp_path / name) == {"rest": [12], "cat": [4]}, "the file that is written has the values"


@pytest.mark.parametrize("split", ["../escape", "annotations", "a/b", ""])
def test_a_split_is_a_plain_name(convert, tmp_path, split):
    code, _, err = convert(export(tmp_path / "photos", [{}]), more=("--split", split))
    assert code == 2
    assert "expected a name of letters, digits" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_a_mistyped_classes_file_is_no_class(convert, tmp_path):
    require_mistake(
        convert(export(tmp_path / "photos", [{}]), more=("--classes", "clases.txt")), "none of them is a label"
    )


def test_a_photograph_as_a_map_is_named(run_tool, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    forms.save(tmp_path / "images/a.png", noise)
    forms.save(tmp_path / "maps/a.png", np.ones((300, 300), np.uint8))
    (tmp_path / "c.yaml").write_text("- {name: cat, isthing: 1}")
    args = [
        "id-pngs",
        "--images",
        tmp_path / "maps",
        "--instances",
        tmp_path / "images",
        "--semantic",
        tmp_path / "maps",
    ]
    result = run_tool("datasets/convert.py", *args, "--classes", tmp_path / "c.yaml", "--output", tmp_path / "out")
    require_mistake(result, "images/a.png", "looks like an image, not a map")


def test_order_puts_named_classes_on_top_of_each_other():
    categories = CategorySet.from_json(
        [
            {"id": i, "name": n, "isthing": t}
            for i, (n, t) in enumerate([("facade", 0), ("tree", 0), ("window", 1), ("car", 1)])
        ],
        source="test",
    )
    facade, tree, window, car = range(4)
    mask = np.ones((1, 4), bool)
    regions = [Region.of(channel, mask[:, : 4 - column]) for column, channel in enumerate((tree, facade))]
    regions += [Region.of(window, mask[:, :2]), Region.of(car, mask[:, :1])]

    def drawn(text):
        made = compose(Layers((1, 4), regions), categories, None, Order("later", parse_order(text, categories)))
        return [int(made.classes[row - 1]) for row in made.segment_map[0]]

    assert drawn("tree > facade") == [car, window, tree, tree]
    assert drawn("facade > tree") == [car, window, facade, tree]
    assert drawn("tree > window > facade") == [tree, tree, tree, tree]
    assert drawn("window > car") == [window, window, facade, tree]
    for text, part in (
        ("window > lake", "no class 'lake', expected some of: facade, tree, window, car"),
        ("window", "expected two classes or more"),
        ("window > window", "expected two classes or more, each once"),
    ):
        with pytest.raises(ValueError, match=part):
            parse_order(text, categories)


def test_order_is_an_option(convert, tmp_path):
    categories = [{"id": 1, "name": "window"}, {"id": 2, "name": "tree"}]
    path = export(tmp_path / "photos", [{}, {"category_id": 2}], categories=categories)
    assert convert(path, more=("--stuff", "tree"))[0] == 0
    assert areas(tmp_path / "out") == {"window": [16]}
    assert convert(path, more=("--stuff", "tree", "--order", "tree > window", "--split", "val"))[0] == 0
    assert areas(tmp_path / "out", "val") == {"tree": [16]}


def test_groups_of_images_stay_on_one_side_of_the_split():
    names = [f"house{i}_scaled_{k}.jpg" for i in range(40) for k in range(1 + i % 3)]
    splits = dict(zip(names, split_by_name(names, 0.2, 0, r"(.+)_scaled_\d"), strict=True))
    for i in range(40):
        assert len({splits[name] for name in names if name.startswith(f"house{i}_")}) == 1
    assert 0.15 < sum(split == "val" for split in splits.values()) / len(names) < 0.25
    assert split_by_name(names, 0.2, 0, r"(.+)_scaled_\d") == list(splits.values())
    with pytest.raises(ValueError, match="no regular expression"):
        split_by_name(names, 0.2, 0, "(")
    with pytest.raises(ValueError, match="1 group of images by --group-by"):
        split_by_name(names, 0.2, 0, "house")
    with pytest.raises(ValueError, match=r"--group-by '.frame': no image name matches, the first is 'house0_scaled_0"):
        split_by_name(names, 0.2, 0, "^frame")


def test_rectangles_of_four_corners_and_rotated_shapes(run_tool, tmp_path):
    forms.save(tmp_path / "p.png", np.zeros((20, 20, 3), np.uint8))
    corners = [[2, 2], [12, 2], [12, 12], [2, 12]]
    shapes = [("box", "rectangle", corners), ("turned", "rotation", [[14, 5], [18, 10], [14, 15], [13, 14]])]
    shapes.append(("click", "polygon", [[1, 1], [2, 2]]))
    (tmp_path / "p.json").write_text(json.dumps(forms.labelme("p.png", (20, 20), shapes)))
    args = ("labelme", "--annotations", tmp_path, "--output", tmp_path / "out")
    code, out, err = run_tool("datasets/convert.py", *args)
    assert code == 0, err
    found = areas(tmp_path / "out")
    assert found["box"] == [100]
    assert 15 <= found["turned"][0] <= 30
    assert "1 regions without a pixel" in out


@pytest.mark.parametrize(
    "place",
    [
        "a/cat_1", "a/cat1_2", "cat/a_1", "cat/a-001", "a_cat_1", "cat_a_1", "1_cat_a", "a.cat.7", "cat/a/1",
        "a/cat/mask_1",
    ],
)  # fmt: skip
def test_a_mask_finds_its_image_and_class_under_any_naming(run_tool, tmp_path, place):
    forms.save(tmp_path / "images/a.png", np.zeros((10, 12, 3), np.uint8))
    forms.save(tmp_path / "images/b.png", np.zeros((10, 12, 3), np.uint8))
    mask = np.zeros((10, 12), np.uint8)
    mask[1:5, 1:5] = 255
    forms.save(tmp_path / f"masks/{place}.png", mask)
    args = ("masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--output", tmp_path / "out")
    code, _, err = run_tool("datasets/convert.py", *args)
    assert code == 0, err
    data = forms.opened(tmp_path / "out")
    assert [data.file_name(i) for i in range(len(data))] == ["a.png"]
    assert areas(tmp_path / "out") == {"cat1" if "cat1" in place else "cat": [16]}


def test_masks_that_each_became_a_class_are_pointed_out(run_tool, tmp_path):
    forms.save(tmp_path / "images/a.png", np.zeros((10, 12, 3), np.uint8))
    for number in range(3):
        mask = np.zeros((10, 12), np.uint8)
        mask[number] = 255
        forms.save(tmp_path / f"masks/a/mask{number}.png", mask)
    args = ("masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--output")
    code, out, err = run_tool("datasets/convert.py", *args, tmp_path / "out")
    assert code == 0, err
    assert "each of the 3 mask files became a class of its own" in out
    assert "--label NAME makes them one class" in out
    code, out, _ = run_tool("datasets/convert.py", *args, tmp_path / "one", "--label", "cat")
    assert code == 0
    assert areas(tmp_path / "one") == {"cat": [12, 12, 12]}
    for number in range(3, 256):
        forms.save(tmp_path / f"masks/a/mask{number}.png", mask)
    require_mistake(run_tool("datasets/convert.py", *args, tmp_path / "many"), "256 classes", "--label NAME")


def test_gif_masks_are_read_and_lossy_or_multi_page_ones_named(run_tool, tmp_path):
    forms.save(tmp_path / "images/a.png", np.zeros((10, 12, 3), np.uint8))
    mask = np.zeros((10, 12), np.uint8)
    mask[1:5, 1:5] = 255
    folder = tmp_path / "masks/a"
    folder.mkdir(parents=True)
    Image.fromarray(mask).save(folder / "cat_1.gif")
    args = ("masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--output", tmp_path / "out")
    code, _, err = run_tool("datasets/convert.py", *args)
    assert code == 0, err
    assert areas(tmp_path / "out") == {"cat": [16]}
    for suffix in ("gif", "tif"):
        pages = [Image.fromarray(mask), Image.fromarray(mask.T[:10, :10].repeat(2, axis=1)[:, :12].copy())]
        pages[0].save(folder / f"cat_2.{suffix}", save_all=True, append_images=pages[1:])
        require_mistake(
            run_tool("datasets/convert.py", *args, "--split", "val"), f"cat_2.{suffix}", "2 pages, expected one"
        )
        (folder / f"cat_2.{suffix}").unlink()
    Image.fromarray(mask).save(folder / "cat_2.jpg")
    require_mistake(run_tool("datasets/convert.py", *args, "--split", "val"), "cat_2.jpg: a lossy format")


def test_ids_in_an_alpha_channel_are_instances(run_tool, tmp_path):
    """BDD100K keeps the class in red and the instance in blue and alpha."""
    forms.save(tmp_path / "images/a.png", np.zeros((10, 12, 3), np.uint8))
    pixels, classes = np.zeros((10, 12, 4), np.uint8), np.full((10, 12), 1, np.uint8)
    for number in (1, 2, 3):
        pixels[1:9, 3 * number - 2 : 3 * number] = (13, 0, 0, number)
        classes[1:9, 3 * number - 2 : 3 * number] = 13
    forms.save(tmp_path / "instances/a.png", pixels)
    forms.save(tmp_path / "semantic/a.png", classes)
    (tmp_path / "c.yaml").write_text("- {name: road, isthing: 0, id: 1}\n- {name: car, isthing: 1, id: 13}")
    args = ["id-pngs", "--images", tmp_path / "images", "--instances", tmp_path / "instances"]
    args += ["--semantic", tmp_path / "semantic", "--classes", tmp_path / "c.yaml", "--output", tmp_path / "out"]
    code, _, err = run_tool("datasets/convert.py", *args)
    assert code == 0, err
    assert areas(tmp_path / "out") == {"road": [72], "car": [16, 16, 16]}
    forms.save(tmp_path / "semantic/a.png", pixels)
    require_mistake(
        run_tool("datasets/convert.py", *args, "--split", "val"), "semantic/a.png", "alpha channel", "BDD100K"
    )


def test_a_coco_panoptic_json_needs_no_conversion(convert, tmp_path):
    path = export(tmp_path / "photos", [])
    document = json.loads(path.read_text())
    document["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": []}]
    path.write_text(json.dumps(document))
    require_mistake(convert(path), "a COCO panoptic JSON, which needs no conversion")


def test_reading_one_item_twice_gives_the_same(tmp_path):
    path = export(tmp_path / "photos", [{}])
    source = CocoInstances([path], [], ClassOptions())
    assert [item.name for item in source.items] == ["a.png"]
