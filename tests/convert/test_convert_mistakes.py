"""Each mistake in an annotation is one line that names the file, and leaves nothing behind."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from tests.convert import forms
from upsnet.convert.classes import ClassOptions
from upsnet.convert.coco_instances import CocoInstances
from upsnet.convert.labelme import LabelMe
from upsnet.convert.layers import compose
from upsnet.convert.orientation import inspect, must_turn


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
        (("images", 0, "file_name"), "b.png", ["b.png: no such image", "--images"]),
        (("images", 0, "height"), 12, ["a.png", "10 x 12", "expected 10 x 10"]),
        (("images", 0, "id"), 2, ["annotation 1", "image_id 1"]),
        (("images", 0, "id"), None, ["a.png", "id None, expected a file_name and an id"]),
        (("annotations", 0, "category_id"), 4, ["annotation 1", "category_id 4", "expected one of"]),
        (("annotations", 0, "segmentation"), [[1, 1, 5, 1, 5, 5, 5]], ["annotation 1 of a.png", "7 numbers"]),
        (("annotations", 0, "segmentation"), [[1, 1, 5, 1, 5, "x"]], ["polygon with 'x', expected numbers"]),
        (("annotations", 0, "segmentation"), [[1, 1, 500, 1, 5, 5]], ["x from 1 to 500", "another size"]),
        (("annotations", 0, "segmentation"), None, ["no segmentation", "export masks"]),
        (("annotations", 1, "segmentation", "counts"), [20, 30, 40], ["annotation 2", "add up to 100"]),
        (("annotations", 1, "segmentation", "counts"), "abc", ["annotation 2", "damaged"]),
        (("annotations", 1, "segmentation", "counts"), "", ["annotation 2", "without counts"]),
        (("annotations", 1, "segmentation", "size"), [9, 10], ["annotation 2", "[9, 10]", "[10, 10]"]),
        (("categories", 0, "name"), None, ["category with id 1 and name None"]),
        (("categories",), [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], ["'b'", "appears twice"]),
        (("images",), [{"id": i, "file_name": "a.png"} for i in (1, 2)], ["a.png has two annotations"]),
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
        (coco, lambda: CocoInstances([path], [path.parent], ClassOptions())),
        (labelme, lambda: LabelMe(path.parent, [], ClassOptions())),
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
    require_mistake(run_tool("datasets/convert.py", *args, "--stuff", "3=sky"), "images/a.png", "repair or remove it")
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
    require_mistake(run(ids, classes), "b.png", "no b.* in", "--skip-missing")
    (folders[1] / "b.png").rename(folders[1] / "a.jpg")
    require_mistake(run(ids, classes), "a.jpg", "one map per image")
    (folders[1] / "a.jpg").unlink()
    assert not (tmp_path / "out").exists()
    code, out, err = run(ids, classes)
    assert code == 0, err
    sample = forms.opened(tmp_path / "out")[0]
    assert sample.is_crowd.tolist() == [False, True, False], "pixels of a thing without an id are a crowd"
    assert "+ 1 crowds" in out


def test_mistakes_in_labelme_files_are_named(run_tool, tmp_path):
    forms.save(tmp_path / "p.png", np.zeros((8, 8, 3), np.uint8))
    square, args = [[0, 0], [4, 0], [4, 4]], ("labelme", "--annotations", tmp_path, "--output", tmp_path / "out")

    def run(*shapes, picture="p.png", size=(8, 8)):
        (tmp_path / "p.json").write_text(json.dumps(forms.labelme(picture, size, shapes)))
        return run_tool("datasets/convert.py", *args)

    require_mistake(run(("a", "polygon", square, [1])), "group_id [1], expected a whole number or a text")
    require_mistake(run(("a", "circle", square)), "p.json: shape 0, circle 'a': circle of 3 points, expected 2")
    require_mistake(run(("a", "blob", square)), "shape type 'blob', expected circle, mask, oriented_rectangle, polygon")
    require_mistake(run(("a", "mask", square[:2])), "p.json: shape 0, mask 'a': mask: cannot be read")
    require_mistake(run(("a", "polygon", square), picture="q.png"), "q.png: no such image", "p.json")
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
    require_mistake(run_tool("datasets/convert.py", *bowl, "--label", "cat"), "no annotated image")
    require_mistake(run_tool("datasets/convert.py", *bowl, "--label", "cat", "--workers", 0), "--workers is 0")
    args += ["--masks", tmp_path / "masks"]
    forms.save(tmp_path / "masks" / "a" / "cat_2.png", np.ones((7, 8), bool))
    require_mistake(run_tool("datasets/convert.py", *args), "cat_2.png", "8 x 7", "expected 8 x 8")
    (tmp_path / "masks" / "a" / "cat_2.png").rename(tmp_path / "masks" / "a" / "cat_2.jpg")
    require_mistake(run_tool("datasets/convert.py", *args), "cat_2.jpg", "lossy")
    (tmp_path / "masks" / "a" / "cat_2.jpg").rename(tmp_path / "masks" / "cat_2.png")
    require_mistake(run_tool("datasets/convert.py", *args), "cat_2.png: neither a folder nor its name")
    shutil.rmtree(tmp_path / "masks")
    forms.save(tmp_path / "masks" / "b_cat_1.png", np.ones((8, 8), bool))
    require_mistake(run_tool("datasets/convert.py", *args), "b_cat_1.png", "STEM_CLASS_k.png")
    (tmp_path / "masks" / "b_cat_1.png").rename(tmp_path / "masks" / "a_cat_1.png")
    require_mistake(run_tool("datasets/convert.py", *args, "--split-val", "1.5"), "--split-val 1.5", "0.2")
    require_mistake(run_tool("datasets/convert.py", *args, "--split-val", "0.5"), "1 annotated image")
    assert not (tmp_path / "out").exists()
