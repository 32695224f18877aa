"""Peculiarities of the files that annotation programs write."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.convert import forms

SQUARE = [[1.5, 1.5, 6.5, 1.5, 6.5, 6.5, 1.5, 6.5]]


def coco_document(names, **annotation):
    rows = [{"id": i, "file_name": name, "height": 10, "width": 12} for i, name in enumerate(names)]
    objects = [{"id": r["id"], "image_id": r["id"], "category_id": 1, "segmentation": SQUARE} for r in rows]
    return {
        "images": rows,
        "categories": [{"id": 1, "name": "große Dattel"}],
        "annotations": [row | annotation for row in objects],
    }


@pytest.fixture
def convert_coco(run_tool, tmp_path):
    def run(document, *more, encoding="utf-8"):
        (tmp_path / "a.json").write_text(json.dumps(document, ensure_ascii=False), encoding=encoding)
        args = ("coco", "--annotations", tmp_path / "a.json", "--images", tmp_path / "photos", "--background", "b")
        return run_tool("datasets/convert.py", *args, "--output", tmp_path / "out", *more)

    return run


def test_names_with_folders_backslashes_capitals_and_other_scripts(convert_coco, tmp_path):
    names = ["IMG 1.JPG", "sub dir/ü.jpg", "日本.png", "d.jpg"]
    for name in names:
        forms.save(tmp_path / "photos" / name, np.zeros((10, 12, 3), np.uint8))
    document = coco_document(["IMG 1.JPG", "sub dir\\ü.jpg", "日本.png", "C:\\Users\\me\\d.jpg"])
    document["images"][0] |= {"height": 10.0, "width": 12.0}
    code, _, err = convert_coco(document, encoding="utf-8-sig")
    assert code == 0, err
    data = forms.opened(tmp_path / "out")
    assert [data[i].file_name for i in range(4)] == names
    assert "große Dattel" in (tmp_path / "out" / "classes.yaml").read_text(encoding="utf-8")


def test_a_group_of_classes_that_has_the_name_of_one_is_no_class(convert_coco, tmp_path):
    forms.save(tmp_path / "photos" / "a.png", np.zeros((10, 12, 3), np.uint8))
    document = coco_document(["a.png"])
    group = {"id": 0, "name": "große Dattel", "supercategory": "none"}
    document["categories"].insert(0, group)
    code, _, err = convert_coco(document)
    assert code == 0, err
    assert [(c.id, c.name) for c in forms.opened(tmp_path / "out").categories.categories] == [
        (2, "b"), (1, "große Dattel"),
    ]  # fmt: skip
    document["annotations"].append(document["annotations"][0] | {"category_id": 0})
    code, _, err = convert_coco(document, "--split", "val")
    assert code == 2
    assert "'große Dattel' or its id 1 appears twice" in err


def test_all_pictures_with_mistakes_are_named_at_once(convert_coco, tmp_path):
    names = [f"{i:02d}.png" for i in range(30)]
    for name in names:
        forms.save(tmp_path / "photos" / name, np.zeros((10, 12, 3), np.uint8))
    document = coco_document(names)
    for number in (3, 17, 29):
        document["annotations"][number]["segmentation"] = None
    for workers in (1, 2):
        code, _, err = convert_coco(document, "--workers", workers)
        assert code == 2
        lines = [line.rpartition("\r")[2].strip() for line in err.splitlines()]
        named = [line for line in lines if line.startswith("mistake: ")]
        assert [n in line for n, line in zip(("03.png", "17.png", "29.png"), named, strict=True)] == [True] * 3
        assert any(line.startswith("error: 3 of 30 images") for line in lines)
    code, _, err = convert_coco(coco_document(names, segmentation=None))
    assert err.count("mistake: ") == 20
    assert "20 or more of 30 images" in err
    assert not (tmp_path / "out").exists()


def test_a_class_of_crowds_alone_is_pointed_out(convert_coco, tmp_path):
    for name in "ab":
        forms.save(tmp_path / "photos" / f"{name}.png", np.zeros((10, 12, 3), np.uint8))
    code, out, err = convert_coco(coco_document(["a.png", "b.png"], iscrowd=1), "--split-val", 0.5)
    assert code == 0, err
    assert "nothing but crowds of große Dattel" in out
    assert "no instance" not in out
    assert out.splitlines()[0].split()[-2:] == ["train", "val"]


def test_the_border_of_voc_is_void(run_tool, tmp_path):
    ids, classes = np.zeros((12, 12), np.uint8), np.zeros((12, 12), np.uint8)
    ids[1:9, 1:9] = classes[1:9, 1:9] = 255
    ids[2:8, 2:8], classes[2:8, 2:8] = 1, 15
    forms.save(tmp_path / "images" / "2007_1.jpg", np.zeros((12, 12, 3), np.uint8))
    for name, pixels in (("SegmentationObject", ids), ("SegmentationClass", classes)):
        picture = Image.fromarray(pixels, mode="P")
        picture.putpalette(list(range(256)) * 3)
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "2007_1.png")
    (tmp_path / "c.yaml").write_text(
        "- {name: rest, isthing: 0, id: 21, value: 0}\n- {name: person, isthing: 1, id: 15}"
    )
    args = ["--images", tmp_path / "images", "--instances", tmp_path / "SegmentationObject"]
    args += ["--semantic", tmp_path / "SegmentationClass", "--classes", tmp_path / "c.yaml"]
    code, _, err = run_tool("datasets/convert.py", "id-pngs", *args, "--output", tmp_path / "out")
    assert code == 0, err
    sample = forms.opened(tmp_path / "out")[0]
    assert np.array_equal(sample.segment_map == 0, classes == 255)
    assert np.array_equal(sample.segment_map == 2, ids == 1)
    assert sample.classes.tolist() == [0, 1]


@pytest.mark.parametrize("place", ["/home/somebody/p.png", "C:\\Users\\somebody\\p.png", "..\\elsewhere\\p.png"])
def test_pictures_of_labelme_files_that_were_moved_lie_beside_them(run_tool, tmp_path, place):
    forms.save(tmp_path / "p.png", np.zeros((8, 8, 3), np.uint8))
    document = forms.labelme(place, (8, 8), [("cat", "rectangle", [[1, 1], [5, 5]])])
    (tmp_path / "p.json").write_text(json.dumps(document | {"imageData": "AAAA", "flags": {"seen": True}}))
    code, _, err = run_tool("datasets/convert.py", "labelme", "--annotations", tmp_path, "--output", tmp_path / "out")
    assert code == 0, err
    assert (forms.opened(tmp_path / "out")[0].segment_map == 2).sum() == 16
