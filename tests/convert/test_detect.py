"""`upsnet convert PATH` says what annotations are there, and a wrong form's error names the right one."""

import json
import shlex

import numpy as np
import pytest

from tests.convert import forms
from tests.convert.test_exports import export
from upsnet.convert.detect import detect

IMAGE = np.zeros((10, 12, 3), np.uint8)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def coco(root):
    return export(root / "photos", [{}])


def roboflow(root):
    for split in ("train", "valid"):
        export(root / split, [{}]).rename(root / split / "_annotations.coco.json")


def labelme(root):
    forms.save(root / "p.png", IMAGE)
    document = forms.labelme("p.png", (10, 12), [("cat", "rectangle", [[1, 1], [5, 5]])])
    return write(root / "p.json", json.dumps(document))


def yolo(root):
    forms.save(root / "train/images/p.png", IMAGE)
    write(root / "train/labels/p.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    return write(root / "data.yaml", "names: [cat]\ntrain: ../train/images\n")


def cvat(root):
    return write(root / "annotations.xml", '<?xml version="1.0"?><annotations><version>1.1</version></annotations>')


def label_studio(root):
    return write(root / "tasks.json", json.dumps([{"id": 1, "data": {"image": "p.png"}, "annotations": []}]))


def supervisely(root):
    write(root / "meta.json", json.dumps({"classes": []}))
    write(root / "ds/ann/p.png.json", json.dumps({"objects": [], "size": {"height": 10, "width": 12}}))
    forms.save(root / "ds/img/p.png", IMAGE)


def voc(root):
    for name in ("SegmentationObject", "SegmentationClass", "JPEGImages"):
        forms.save(root / name / "p.png", IMAGE)


def masks(root):
    forms.save(root / "images/p.png", IMAGE)
    forms.save(root / "masks/p/cat_1.png", IMAGE[..., 0])


def bundles(root):
    for stem in "ab":
        forms.save(root / stem / "images/p.png", IMAGE)
        forms.save(root / stem / "masks/1.png", IMAGE[..., 0])


MAKERS = {
    "coco": [coco, roboflow], "labelme": [labelme], "yolo": [yolo], "cvat": [cvat], "label-studio": [label_studio],
    "supervisely": [supervisely], "voc": [voc], "masks": [masks, bundles],
}  # fmt: skip
CASES = [(form, maker) for form, makers in MAKERS.items() for maker in makers]


@pytest.mark.parametrize(("form", "make"), CASES, ids=[make.__name__ for _, make in CASES])
def test_each_form_is_recognised_in_its_folder_and_the_command_names_it(run_tool, tmp_path, form, make):
    make(tmp_path)
    found = detect(tmp_path)
    assert [one.form for one in found] == [form]
    words = shlex.split(found[0].command())
    assert words[:3] == ["upsnet", "convert", form]
    code, out, err = run_tool("datasets/convert.py", tmp_path)
    assert code == 0, err
    assert found[0].command() in out


@pytest.mark.parametrize("make", [coco, roboflow, labelme, masks])
def test_the_command_that_is_named_works(run_tool, tmp_path, make):
    make(tmp_path / "set")
    words = shlex.split(detect(tmp_path / "set")[0].command())[2:]
    words[words.index("OUTPUT")] = str(tmp_path / "out")
    if "--split-val" in words:  # there is one image
        del words[words.index("--split-val") : words.index("--output")]
    code, _, err = run_tool("datasets/convert.py", *words)
    assert code == 0, err


@pytest.mark.parametrize("make", [coco, labelme, yolo, cvat, label_studio])
def test_a_file_is_recognised_alone(tmp_path, make):
    path = make(tmp_path)
    assert [one.form for one in detect(path)] == [make.__name__.replace("_", "-")]


@pytest.mark.parametrize(
    ("given", "make", "right"),
    [("coco", labelme, "labelme"), ("coco", label_studio, "label-studio"), ("cvat", coco, "coco"),
     ("yolo", cvat, "cvat"), ("labelme", coco, "coco"), ("label-studio", coco, "coco"), ("coco", cvat, "cvat")],
)  # fmt: skip
def test_a_wrong_form_is_an_error_that_names_the_right_command(run_tool, tmp_path, given, make, right):
    path = make(tmp_path)
    path = path.parent if given in ("labelme", "yolo") else path
    more = ("--images", tmp_path) if given in ("cvat", "label-studio") else ()
    code, _, err = run_tool("datasets/convert.py", given, "--annotations", path, *more, "--output", tmp_path / "out")
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert f"upsnet convert {right} --annotations" in lines[0]


def test_what_needs_no_conversion_or_cannot_be_converted_is_said(run_tool, tmp_path):
    write(tmp_path / "p.json", json.dumps({"images": [], "annotations": [{"segments_info": []}]}))
    assert "needs no conversion" in run_tool("datasets/convert.py", tmp_path / "p.json")[1]
    write(tmp_path / "a.zip", "")
    assert "unpack it" in run_tool("datasets/convert.py", tmp_path / "a.zip")[1]
    write(tmp_path / "voc/a.xml", "<annotation><object><bndbox></bndbox></object></annotation>")
    assert "have no masks" in run_tool("datasets/convert.py", tmp_path / "voc")[1]
    for words in ((tmp_path / "nothing",), ("kitti",), (tmp_path, "--output", "x")):
        code, _, err = run_tool("datasets/convert.py", *words)
        assert code == 2
        assert "no such form, file or folder" in err
    (tmp_path / "empty").mkdir()
    code, _, err = run_tool("datasets/convert.py", tmp_path / "empty")
    assert code == 2
    assert "no annotations that upsnet knows, expected one of: coco, labelme, cvat" in err
