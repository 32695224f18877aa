"""Annotations of one's own -> COCO's panoptic layout: by hand, there and back, and each mistake."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import yaml
from PIL import Image

from upsnet.data.categories import CategorySet
from upsnet.data.coco import CocoPanoptic
from upsnet.data.convert.classes import ClassOptions, parse_stuff
from upsnet.data.convert.coco_instances import CocoInstances
from upsnet.data.convert.label_maps import mask_of
from upsnet.data.convert.labelme import LabelMe
from upsnet.data.convert.layers import Layers, Region, compose
from upsnet.data.convert.pictures import inspect, must_turn
from upsnet.data.convert.run import split_by_name
from upsnet.data.panoptic_png import id_to_rgb, read_panoptic_png, segment_geometry
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.metrics.panoptic_json import evaluate_files

from . import forms

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
    made = compose(Layers((4, 4), [*regions, Region.of(CUP, mask(".... .... .... ...."))]), CLASSES, on_top=on_top)
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
    assert ClassOptions().resolve([(None, "a"), (None, "b")], "").categories.channels == {1: 0, 2: 1}
    with pytest.raises(ValueError, match=r"a\.json: label 'cop' is not a class of .*classes.yaml \(floor, cup, b\)"):
        classes.channel("cop", "a.json")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- {name: a, isthing: 1, id: 1}\n- {name: b, isthing: 1, id: 1}", "id 1 stands more than once"),
        ("- {name: a, isthing: 1}\n- {name: a, isthing: 0}", "name 'a' stands more than once"),
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


def opened(root, split="train"):
    """The converted set, after a look at what every one must satisfy."""
    path = root / "annotations" / f"panoptic_{split}.json"
    document = json.loads(path.read_text())
    data = CocoPanoptic(root / split, path)
    for image, row in zip(document["images"], document["annotations"], strict=True):
        ids = read_panoptic_png(path.with_suffix("") / row["file_name"])
        assert ids.shape == (image["height"], image["width"])
        segments = row["segments_info"]
        assert [s["id"] for s in segments] == list(range(1, len(segments) + 1)) == np.unique(ids[ids > 0]).tolist()
        areas, boxes = segment_geometry(ids, len(segments))
        assert [s["area"] for s in segments] == areas.tolist()
        assert [[x, y, x + w, y + h] for x, y, w, h in (s["bbox"] for s in segments)] == boxes.tolist()
    scores, problems = evaluate_files(path, path, progress=False, workers=1)
    assert not problems
    assert scores["panoptic"]["All"]["pq"] == 100
    return data


@pytest.fixture(scope="module")
def samples():
    """Six pictures with things, stuff, void and crowds."""
    data = Shapes(40, (64, 96))
    chosen = sorted((data[i] for i in range(40)), key=lambda s: (not s.is_crowd.any(), s.segment_map.all()))
    found = [*chosen[:2], *[s for s in chosen if not s.is_crowd.any()][:4]]
    assert found[0].is_crowd.any()
    assert any((s.segment_map == 0).any() for s in found)
    return found


@pytest.mark.parametrize("compressed", [True, False])
def test_coco_run_lengths_and_a_stuff_map_come_back_exactly(samples, run_tool, tmp_path, compressed):
    forms.write_coco(samples, CATEGORIES, tmp_path, lambda m: forms.run_lengths(m, compressed=compressed))
    for s in samples:
        forms.save(tmp_path / "stuff" / s.file_name, forms.stuff_map(s, CATEGORIES, offset=5))
    code, out, err = run_tool(
        "datasets/convert.py", "coco", "--annotations", tmp_path / "annotations.json", "--images", tmp_path,
        "--semantic", tmp_path / "stuff", "--stuff", "5=sky,6=grass,7=road", "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    assert "overlap: 0 pixels" in out
    data = opened(tmp_path / "out")
    assert [c.id for c in data.categories.categories] == [1, 2, 3, 4, 5, 6, 7]
    for i, sample in enumerate(samples):
        assert data[i].image_id == sample.image_id
        forms.require_equal(data[i], sample, data.categories, CATEGORIES)
        source, placed = (folder / sample.file_name for folder in (tmp_path, tmp_path / "out" / "train"))
        assert source.stat().st_ino == placed.stat().st_ino, "pictures are linked"


def test_several_processes_and_two_splits_give_the_same_files(samples, run_tool, tmp_path):
    many = [s for s in samples for _ in range(2)]
    many = [type(s)(s.image, s.segment_map, s.classes, s.is_crowd, i, f"{i}.png") for i, s in enumerate(many)]
    forms.write_coco(many, CATEGORIES, tmp_path, forms.outlines)
    for workers in (1, 2):
        code, _, err = run_tool(
            "datasets/convert.py", "coco", "--annotations", tmp_path / "annotations.json", "--images", tmp_path,
            "--background", "rest", "--split-val", 0.25, "--workers", workers, "--output", tmp_path / f"out{workers}",
        )  # fmt: skip
        assert code == 0, err
    assert len(opened(tmp_path / "out1", "train")) == 9
    assert len(opened(tmp_path / "out1", "val")) == 3
    files = [sorted(p.relative_to(root) for p in root.rglob("*")) for root in (tmp_path / "out1", tmp_path / "out2")]
    assert files[0] == files[1]
    for name in files[0]:
        if (tmp_path / "out1" / name).is_file():
            assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes()


@pytest.mark.parametrize("kind", ["grey8", "grey16", "palette", "colours"])
def test_id_maps_of_every_kind_come_back_exactly(samples, run_tool, tmp_path, kind):
    things = np.array([s.classes >= CATEGORIES.num_stuff for s in samples], dtype=object)
    forms.write_pictures(samples, tmp_path / "images")
    rows = CATEGORIES.to_json()
    for s, is_thing in zip(samples, things, strict=True):
        ids = np.concatenate([[0], np.where(is_thing & ~s.is_crowd, np.arange(len(is_thing)) + 1, 0)])[s.segment_map]
        values = np.concatenate([[0], s.classes + 1]).astype(np.uint8)[s.segment_map]
        if kind == "colours":
            ids = id_to_rgb(ids * 65793 % 2**24)
            values = np.array([[0] * 3, *(r["color"] for r in rows)], np.uint8)[values]
        elif kind == "grey16":
            ids = (ids * 700).astype(np.uint16)
        else:
            ids = ids.astype(np.uint8)
        for name, pixels in (("instances", ids), ("classes", values)):
            path = forms.save(tmp_path / name / s.file_name, pixels)
            if kind == "palette":
                picture = Image.fromarray(pixels, mode="P")
                picture.putpalette(list(range(255, -1, -1)) * 3)
                picture.save(path)
    for channel, row in enumerate(rows):
        row["value"] = row["color"] if kind == "colours" else channel + 1
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(rows))
    code, _, err = run_tool(
        "datasets/convert.py", "id-pngs", "--images", tmp_path / "images", "--instances", tmp_path / "instances",
        "--semantic", tmp_path / "classes", "--classes", tmp_path / "classes.yaml", "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    data = opened(tmp_path / "out")
    by_name = {s.file_name: s for s in samples}
    for sample in (data[i] for i in range(len(data))):
        forms.require_equal(sample, by_name[sample.file_name], data.categories, CATEGORIES)


def test_labelme_shapes_groups_and_painted_masks(run_tool, tmp_path):
    forms.save(tmp_path / "a.png", np.full((20, 30, 3), 90, np.uint8))
    forms.save(tmp_path / "empty.png", np.full((20, 30, 3), 90, np.uint8))
    forms.save(tmp_path / "unlabelled.png", np.full((20, 30, 3), 90, np.uint8))
    blob = np.zeros((20, 30), bool)
    blob[15:18, 20:24] = blob[18, 22] = True
    document = forms.labelme(
        "..\\photos\\a.png", (20, 30),
        [
            ("cat", "rectangle", [[2, 3], [8, 9]], 1), ("cat", "rectangle", [[14, 9], [12, 5]], 1),
            ("dog", "circle", [[20, 8], [23, 8]]), ("dog", "polygon", [[0, 0], [30, 0], [30, 2], [0, 2]]),
            ("tail", "line", [[1, 1], [2, 2]]), ("eye", "point", [[1, 1]]), ("eye", "point", [[2, 1]]),
        ],
    )  # fmt: skip
    document["shapes"].append({"label": "cat", "group_id": None, **forms.painted(blob)})
    (tmp_path / "a.json").write_text(json.dumps(document | {"imagePath": "a.png"}))
    (tmp_path / "empty.json").write_text(json.dumps(forms.labelme("empty.png", (20, 30), [])))
    args = ("labelme", "--annotations", tmp_path, "--background", "lawn", "--output", tmp_path / "out")
    code, out, err = run_tool("datasets/convert.py", *args)
    assert code == 0, err
    for part in ("2 shapes of type point", "1 shapes of type line ", "1 pictures without annotation", "unlabelled.png"):
        assert part in out
    data = opened(tmp_path / "out")
    assert [(c.id, c.name) for c in data.categories.categories] == [(3, "lawn"), (1, "cat"), (2, "dog")]
    ids = data[0].segment_map
    assert [data.categories[c].name for c in data[0].classes] == ["lawn", "cat", "dog", "dog", "cat"]
    joined = np.zeros((20, 30), bool)
    joined[3:9, 2:8] = joined[5:9, 12:14] = True
    assert np.array_equal(ids == 2, joined)
    assert np.array_equal(ids == 5, blob)
    y, x = np.mgrid[:20, :30] + 0.5
    assert np.array_equal(ids == 3, (x - 20) ** 2 + (y - 8) ** 2 <= 9)
    assert (ids[:2] == 4).all()
    assert (data[1].segment_map == 1).all()


def test_photographs_are_written_upright_where_the_annotation_is(run_tool, tmp_path):
    """LabelMe follows the EXIF orientation; COCO's truth lies on the stored pixels, unless the size says otherwise."""
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = 255
    exif = Image.Exif()
    for orientation, size in ((6, (30, 20)), (3, (20, 30))):  # on its side; upside down, which the size does not show
        exif[0x0112] = orientation
        upright = np.rot90(pixels, -1) if orientation == 6 else pixels[::-1, ::-1]
        photos = tmp_path / str(orientation)
        photos.mkdir()
        Image.fromarray(pixels).save(photos / "a.jpg", exif=exif, quality=95)
        box = np.argwhere(upright[..., 0] == 255)
        (y1, x1), (y2, x2) = box.min(0).tolist(), (box.max(0) + 1).tolist()
        shapes = [("white", "rectangle", [[x1, y1], [x2, y2]])]
        (photos / "a.json").write_text(json.dumps(forms.labelme("a.jpg", size, shapes)))
        document = {
            "images": [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}],
            "categories": [{"id": 1, "name": "white"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            ],
        }
        (tmp_path / "coco.json").write_text(json.dumps(document))
        for form, source in (("labelme", photos), ("coco", tmp_path / "coco.json")):
            output = tmp_path / f"{form}{orientation}"
            args = (form, "--annotations", source, "--images", photos, "--output", output, "--background", "b")
            code, out, err = run_tool("datasets/convert.py", *args)
            assert code == 0, err
            turned = form == "labelme" or orientation == 6
            assert ("written so" if turned else "sizes do not confirm") in out.replace("\n", " ")
            sample = opened(output)[0]
            assert sample.size == (size if turned else (20, 30))
            assert np.abs(sample.image[..., 0].astype(int) - 255 * (sample.segment_map == 2)).max() < 30 or not turned


def test_masks_in_folders_or_with_the_picture_in_their_names(samples, run_tool, tmp_path):
    for i, name in enumerate(("folders", "names")):
        kept = [s for s in samples if not s.is_crowd.any()]
        forms.write_pictures(kept, tmp_path / name / "images")
        for s in kept:
            stem = s.file_name[:-4]
            for k, (category, pixels, _) in enumerate(forms.things_of(s, CATEGORIES)):
                where = f"{stem}/{category.name}_{k}.png" if i == 0 else f"{stem}_{category.name}_{k}.png"
                forms.save(tmp_path / name / "masks" / where, pixels)
        out = tmp_path / name / "out"
        args = ("--images", tmp_path / name / "images", "--masks", tmp_path / name / "masks", "--output", out)
        code, _, err = run_tool("datasets/convert.py", "masks", *args)
        assert code == 0, err
        data = opened(out)
        for s, made in zip(sorted(kept, key=lambda s: s.file_name), (data[j] for j in range(len(data))), strict=True):
            things = np.concatenate([[False], s.classes >= CATEGORIES.num_stuff])[s.segment_map]
            assert np.array_equal(made.segment_map > 0, things)
            theirs = [c.name for c, _, _ in forms.things_of(s, CATEGORIES)]
            assert sorted(data.categories[c].name for c in made.classes) == sorted(theirs)


def test_one_classes_file_makes_train_and_val_agree(run_tool, tmp_path):
    for name, labels in (("train", "ab"), ("val", "b"), ("test", "c")):
        forms.save(tmp_path / name / "p.png", np.zeros((8, 8, 3), np.uint8))
        shapes = [(label, "rectangle", [[i, 0], [i + 1, 4]]) for i, label in enumerate(labels)]
        (tmp_path / name / "p.json").write_text(json.dumps(forms.labelme("p.png", (8, 8), shapes)))

    def run(name, *more):
        args = ("labelme", "--annotations", tmp_path / name, "--output", tmp_path / "out", "--split", name, *more)
        return run_tool("datasets/convert.py", *args)

    assert run("train")[0] == 0
    code, _, err = run("val")
    assert code == 2
    assert "add --classes" in err
    classes = ("--classes", tmp_path / "out" / "classes.yaml")
    assert run("val", *classes)[0] == 0
    opened(tmp_path / "out", "val").categories.require(opened(tmp_path / "out").categories, source="train")
    code, _, err = run("test", *classes)
    assert code == 2
    assert "p.json: shape 0 (c): label 'c' is not a class of" in err
    assert run("train", *classes)[0] == 2, "what is there is not overwritten"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["annotations", "classes.yaml", "train", "val"]


def coco_tree(root):
    """A sound picture with two annotations, and a map of stuff."""
    forms.save(root / "images" / "a.png", np.zeros((10, 10, 3), np.uint8))
    forms.save(root / "stuff" / "a.png", np.full((10, 10), 3, np.uint8))
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 10}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": {"size": [10, 10], "counts": [20, 30, 50]}},
        ],
    }


def change(*keys):
    """A function that puts a value into a document."""

    def apply(document, value):
        place = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("keys", "value", "parts"),
    [
        (("images", 0, "file_name"), "b.png", ["b.png: no such picture", "--images"]),
        (("images", 0, "height"), 12, ["a.png", "10 x 12", "expected 10 x 10"]),
        (("images", 0, "id"), 2, ["annotation 1", "image_id 1"]),
        (("images", 0, "id"), None, ["a.png", "id of its own"]),
        (("annotations", 0, "category_id"), 4, ["annotation 1", "category_id 4", "expected one of"]),
        (
            ("annotations", 0, "segmentation"),
            [[1, 1, 5, 1]],
            ["annotation 1 of a.png", "2 points, expected at least 3"],
        ),
        (("annotations", 0, "segmentation"), [[1, 1, 5, 1, 5, 5, 5]], ["annotation 1 of a.png", "7 numbers"]),
        (("annotations", 0, "segmentation"), [[1, 1, 5, 1, 5, "x"]], ["no list of numbers"]),
        (("annotations", 0, "segmentation"), [[1, 1, 500, 1, 5, 5]], ["x from 1 to 500", "another size"]),
        (("annotations", 0, "segmentation"), [], ["no segmentation", "export masks"]),
        (("annotations", 1, "segmentation", "counts"), [20, 30, 40], ["annotation 2", "add up to 100"]),
        (("annotations", 1, "segmentation", "counts"), "abc", ["annotation 2", "damaged"]),
        (("annotations", 1, "segmentation", "counts"), "", ["annotation 2", "without counts"]),
        (("annotations", 1, "segmentation", "size"), [9, 10], ["annotation 2", "[9, 10]", "[10, 10]"]),
        (("categories", 0, "name"), None, ["category", "lacks an id or a name"]),
        (("categories",), [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], ["'b'", "stands twice"]),
        (("images",), [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}], ["a.png", "rename one"]),
        (("annotations",), None, ["no list 'annotations'"]),
    ],
)
def test_mistakes_in_a_coco_file_are_one_line_and_leave_nothing(run_tool, tmp_path, keys, value, parts):
    document = coco_tree(tmp_path)
    change(*keys)(document, value)
    (tmp_path / "a.json").write_text(json.dumps(document))
    args = ("--annotations", tmp_path / "a.json", "--images", tmp_path / "images", "--output", tmp_path / "out")
    require_mistake(run_tool("datasets/convert.py", "coco", *args), *parts)
    assert not (tmp_path / "out").exists()


ODD = (None, [], {}, "", "x", -1, 0, 2.5, 10**30, float("nan"), float("inf"), [[]], [1], True, {"a": 1})


def variants(document, path=()):
    """The document with each of its values replaced by each odd one, or left out."""
    place = document
    for key in path:
        place = place[key]
    for key in list(place) if isinstance(place, dict) else range(len(place)):
        kept = place[key]
        if isinstance(kept, dict | list):
            yield from variants(document, (*path, key))
        for value in ODD:
            place[key] = value
            yield document
        if isinstance(place, dict):
            del place[key]
            yield document
        place[key] = kept


def test_nonsense_in_an_annotation_is_an_error_of_the_user_or_harmless(tmp_path):
    """Whatever stands in a field, no exception escapes that the command line does not turn into one line."""
    path = tmp_path / "images" / "a.json"
    square = ("cat", "polygon", [[1, 1], [5, 1], [5, 5]], 1)
    shapes = [square, ("cat", "rectangle", [[1, 1], [4, 4]]), ("cat", "circle", [[3, 3], [4, 4]])]
    labelme = forms.labelme("a.png", (10, 10), shapes)
    labelme["shapes"].append({"label": "cat", **forms.painted(np.ones((3, 3), bool))})
    coco = coco_tree(tmp_path)
    outcomes, messages = Counter(), set()
    for document, opened_by in (
        (coco, lambda: CocoInstances(path, path.parent, ClassOptions())),
        (labelme, lambda: LabelMe(path.parent, ClassOptions())),
    ):
        for variant in variants(document):
            path.write_text(json.dumps(variant))
            try:
                source = opened_by()
                for item in source.items:
                    picture = inspect(item.path)
                    layers = source.read(item, picture)
                    must_turn(picture, layers.size, applies_exif=source.applies_exif, annotation=str(path))
                    compose(layers, source.classes.categories)
                outcomes["harmless"] += 1
            except (OSError, ValueError) as error:
                messages.add(str(error))
                outcomes["error"] += 1
    assert not [text for text in messages if "\n" in text or str(tmp_path) not in text]
    assert min(outcomes.values()) > 100, outcomes


def require_mistake(result, *parts):
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2, err
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert all(part in lines[0] for part in parts), lines[0]


def test_mistakes_in_a_stuff_map_are_named(run_tool, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(coco_tree(tmp_path)))
    args = ["coco", "--annotations", tmp_path / "a.json", "--images", tmp_path / "images", "--output", tmp_path / "out"]
    args += ["--semantic", tmp_path / "stuff"]
    require_mistake(run_tool("datasets/convert.py", *args, "--stuff", "4=sky"), "a.png", "value 3 of 100 pixels")
    require_mistake(run_tool("datasets/convert.py", *args, "--stuff", "x=sky"), "expected NAME or VALUE=NAME")
    stuff = tmp_path / "stuff" / "a.png"
    for pixels, part in (
        (np.zeros((9, 10), np.uint8), "10 x 9"),
        (np.full((10, 10, 3), (1, 2, 3), np.uint8), "colours"),
    ):
        forms.save(stuff, pixels)
        require_mistake(run_tool("datasets/convert.py", *args, "--stuff", "3=sky"), "stuff/a.png", part)
    stuff.write_bytes(stuff.read_bytes()[:60])
    require_mistake(run_tool("datasets/convert.py", *args, "--stuff", "3=sky"), "stuff/a.png", "cannot be read")
    stuff.unlink()
    require_mistake(run_tool("datasets/convert.py", *args, "--stuff", "3=sky"), "stuff/a.png", "no such file")
    picture = tmp_path / "images" / "a.png"
    forms.save(stuff, np.full((10, 10), 3, np.uint8))
    forms.save(picture, np.random.default_rng(0).integers(0, 256, (10, 10, 3), dtype=np.uint8))
    picture.write_bytes(picture.read_bytes()[:200])
    require_mistake(run_tool("datasets/convert.py", *args, "--stuff", "3=sky"), "images/a.png", "mend it")
    assert not (tmp_path / "out").exists()


def test_mistakes_in_id_maps_are_named(run_tool, tmp_path):
    ids, classes = np.zeros((6, 6), np.uint8), np.ones((6, 6), np.uint8)
    ids[:2], classes[:2] = 7, 2
    classes[3] = 3
    (tmp_path / "c.yaml").write_text(
        "- {name: floor, isthing: 0}\n- {name: cat, isthing: 1}\n- {name: dog, isthing: 1}"
    )
    folders = [tmp_path / name for name in ("images", "instances", "classes")]
    options = [*zip(("--images", "--instances", "--semantic"), folders, strict=True)]
    args = ["id-pngs", *(part for option in options for part in option), "--output", tmp_path / "out"]

    def run(ids, classes, *more):
        for folder, pixels in zip(folders, (np.zeros((6, 6, 3), np.uint8), ids, classes), strict=True):
            forms.save(folder / "a.png", pixels)
        return run_tool("datasets/convert.py", *args, *(more or ("--classes", tmp_path / "c.yaml")))

    void, two = classes.copy(), classes.copy()
    void[0, 0], two[0, 0] = 0, 3
    require_mistake(run(ids, void), "instances/a.png: instance 7 has 1 unlabelled pixels in", "classes/a.png")
    require_mistake(run(ids, two), "instance 7 has two classes", "(cat, dog)")
    require_mistake(run(ids[1:], classes), "instances/a.png", "6 x 5")
    require_mistake(run(ids[1:], classes[1:]), "6 x 5", "expected 6 x 6")
    require_mistake(run(ids, classes + 5), "classes/a.png", "value 6 of ")
    require_mistake(run(ids, classes, "--background", "floor"), "--classes FILE is needed")
    forms.save(folders[1] / "b.png", ids)
    require_mistake(run(ids, classes), "b.png", "no b.* in", "remove this file")
    (folders[1] / "b.png").rename(folders[1] / "a.jpg")
    require_mistake(run(ids, classes), "a.jpg", "one map a picture")
    (folders[1] / "a.jpg").unlink()
    assert not (tmp_path / "out").exists()
    code, out, err = run(ids, classes)
    assert code == 0, err
    sample = opened(tmp_path / "out")[0]
    assert sample.is_crowd.tolist() == [False, True, False], "pixels of a thing without an id are a crowd"
    assert "+ 1 crowds" in out


def test_mistakes_in_labelme_files_are_named(run_tool, tmp_path):
    forms.save(tmp_path / "p.png", np.zeros((8, 8, 3), np.uint8))
    square, args = [[0, 0], [4, 0], [4, 4]], ("labelme", "--annotations", tmp_path, "--output", tmp_path / "out")

    def run(*shapes, picture="p.png", size=(8, 8)):
        (tmp_path / "p.json").write_text(json.dumps(forms.labelme(picture, size, shapes)))
        return run_tool("datasets/convert.py", *args)

    require_mistake(run(("a", "polygon", square[:2])), "p.json: shape 0 (a): polygon of 2 points", "delete it")
    require_mistake(run(("a", "polygon", square, 1), ("b", "polygon", square, 1)), "group_id 1 is 'a' too")
    require_mistake(run(("a", "circle", square)), "circle of 3 points, expected 2")
    require_mistake(run(("a", "blob", square)), "shape type 'blob'", "expected polygon")
    require_mistake(run(("a", "mask", square[:2])), "p.json: shape 0 (a): mask cannot be read")
    require_mistake(run(("a", "polygon", square), picture="q.png"), "q.png: no such picture", "p.json")
    require_mistake(run(("a", "polygon", square), size=(9, 8)), "8 x 9", "expected 8 x 8")
    require_mistake(run((None, "polygon", square)), "p.json: shape 0 lacks a label")
    (tmp_path / "p.json").write_text('{"images": []}')
    require_mistake(run_tool("datasets/convert.py", *args), "p.json: no 'shapes'", "LabelMe")
    shutil.copy(tmp_path / "p.png", tmp_path / "p.bmp")
    for name in ("p.json", "r.json"):
        picture = "p.png" if name == "p.json" else "p.bmp"
        (tmp_path / name).write_text(json.dumps(forms.labelme(picture, (8, 8), [("a", "polygon", square)])))
    require_mistake(run_tool("datasets/convert.py", *args), "p.bmp", "rename one")
    assert not (tmp_path / "out").exists()


def test_mistakes_with_masks_are_named(run_tool, tmp_path):
    forms.save(tmp_path / "images" / "a.png", np.zeros((8, 8, 3), np.uint8))
    forms.save(tmp_path / "masks" / "a" / "cat_1.png", np.ones((8, 8), bool))
    args = ["masks", "--images", tmp_path / "images", "--output", tmp_path / "out"]
    require_mistake(run_tool("datasets/convert.py", *args, "--label", "cat"), "no folders STEM/images", "--masks")
    forms.save(tmp_path / "bowl" / "a" / "images" / "a.png", np.zeros((8, 8, 3), np.uint8))
    bowl = ("masks", "--images", tmp_path / "bowl", "--output", tmp_path / "out")
    require_mistake(run_tool("datasets/convert.py", *bowl), "--label NAME")
    require_mistake(run_tool("datasets/convert.py", *bowl, "--label", "cat"), "no annotated picture")
    require_mistake(run_tool("datasets/convert.py", *bowl, "--label", "cat", "--workers", 0), "--workers is 0")
    args += ["--masks", tmp_path / "masks"]
    forms.save(tmp_path / "masks" / "a" / "cat_2.png", np.ones((7, 8), bool))
    require_mistake(run_tool("datasets/convert.py", *args), "cat_2.png", "8 x 7", "expected 8 x 8")
    (tmp_path / "masks" / "a" / "cat_2.png").rename(tmp_path / "masks" / "a" / "cat_2.jpg")
    require_mistake(run_tool("datasets/convert.py", *args), "cat_2.jpg", "lossy")
    (tmp_path / "masks" / "a" / "cat_2.jpg").rename(tmp_path / "masks" / "cat_2.png")
    require_mistake(run_tool("datasets/convert.py", *args), "cat_2.png", "beside folders")
    (tmp_path / "masks" / "cat_2.png").unlink()
    (tmp_path / "masks" / "b").mkdir()
    require_mistake(run_tool("datasets/convert.py", *args), "b: no picture b.*")
    shutil.rmtree(tmp_path / "masks")
    forms.save(tmp_path / "masks" / "b_cat_1.png", np.ones((8, 8), bool))
    require_mistake(run_tool("datasets/convert.py", *args), "b_cat_1.png", "STEM_CLASS_k.png")
    (tmp_path / "masks" / "b_cat_1.png").rename(tmp_path / "masks" / "a_cat_1.png")
    require_mistake(run_tool("datasets/convert.py", *args, "--split-val", "1.5"), "--split-val 1.5", "0.2")
    require_mistake(run_tool("datasets/convert.py", *args, "--split-val", "0.5"), "1 annotated picture")
    assert not (tmp_path / "out").exists()
