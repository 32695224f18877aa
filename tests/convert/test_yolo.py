"""YOLO's segmentation files."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.convert import forms
from tests.convert import forms_more as more
from upsnet.convert.classes import ClassOptions
from upsnet.convert.source import STRICT, Tolerance
from upsnet.convert.yolo import Yolo
from upsnet.data.coco import CocoPanoptic
from upsnet.data.shapes import CATEGORIES

SQUARE = "0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6"
SKIP_BAD, SKIP_MISSING = Tolerance(bad=True), Tolerance(missing=True)


def write_set(folder, lines=(SQUARE,), name="a.png", where="", size=(20, 30)):
    """`folder/images/a.png` and `folder/labels/a.txt`, or in folders of a split: `train/images` or `images/train`."""
    before, _, behind = where.partition("images")
    forms.save(folder / before / "images" / behind.lstrip("/") / name, np.zeros((*size, 3), np.uint8))
    labels = folder / before / "labels" / behind.lstrip("/") / f"{name[:-4]}.txt"
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text("\n".join(lines))
    return labels


def write_yaml(folder, text="", names=("cat", "dog")):
    (folder / "data.yaml").write_text(f"names: {json.dumps(list(names))}\n{text}")
    return folder / "data.yaml"


def opened(path, tolerance=STRICT, images=(), **more):
    return Yolo(path, images, ClassOptions(), tolerance, **more)


def test_fractions_become_pixels(tmp_path):
    write_set(tmp_path, [SQUARE, "", "1 0.6 0 1.005 0 1.005 0.5 0.6 0.5"])
    source = opened(write_yaml(tmp_path))
    (first, cat), (second, dog) = more.masks(source)
    expected = np.zeros((20, 30), bool)
    expected[4:12, 3:15] = True
    assert (first, second) == ("cat", "dog")
    assert np.array_equal(cat, expected)
    expected = np.zeros((20, 30), bool)
    expected[0:10, 18:30] = True  # rounded beyond the edge
    assert np.array_equal(dog, expected)
    assert [c.name for c in source.classes.categories.categories] == ["background", "cat", "dog"]
    assert source.items[0].is_annotated


def test_generated_samples_come_back_exactly(tmp_path):
    """Things, also such of several parts, which a bridge joins; what is around them is background."""
    samples = more.shapes_without_crowds()
    assert any(len(forms.outlines(mask)) > 1 for s in samples for _, mask in more.things(s, CATEGORIES))
    source = opened(more.write_yolo(samples, CATEGORIES, tmp_path / "in"))
    data = more.converted(source, tmp_path / "out")
    by_name = {s.file_name: s for s in samples}
    assert len(data) == len(samples)
    for i in range(len(data)):
        more.require_things(data[i], by_name[data[i].file_name], data.categories, CATEGORIES)


def test_fruits_come_back_exactly(real_data, tmp_path):
    root = real_data / "fruits_nuts"
    truth = CocoPanoptic(root / "val", root / "annotations" / "panoptic_val.json")
    sample = truth[1]
    source = opened(more.write_yolo([sample], truth.categories, tmp_path, "valid"))
    found = sorted((name, mask.tobytes()) for name, mask in more.masks(source))
    assert found == sorted((category.name, mask.tobytes()) for category, mask in more.things(sample, truth.categories))


def test_an_export_of_roboflow_is_found_where_its_yaml_does_not_say(real_data):
    path = real_data / "cats_yolo" / "data.yaml"
    tried = f"(tried '{path.parent}/../train/images', "
    more.error_of(lambda: opened(path), f"{path}: train '../train/images' does not exist {tried}", "--skip-missing")
    source = opened(path, SKIP_MISSING)
    assert [item.split for item in source.items] == ["val"] * 195 + ["test"] * 101
    assert all(item.is_annotated for item in source.items)
    assert source.notes == [f"{path}: train '../train/images' does not exist and is left out"]
    first = real_data / "cats_yolo" / "valid" / "labels" / f"{source.items[0].path.stem}.txt"
    layers = more.read(source)
    assert len(layers.regions) == len(first.read_text().splitlines())
    values = np.array(first.read_text().splitlines()[0].split()[1:], float).reshape(-1, 2) * 448
    region = layers.regions[0]
    assert abs(region.left - values[:, 0].min()) < 1
    assert abs(region.top + region.mask.shape[0] - values[:, 1].max()) < 1


@pytest.mark.parametrize("places", [("train/images", "valid/images"), ("images/train", "images/val")])
@pytest.mark.parametrize("has_paths", [True, False])
def test_both_orders_of_folders(tmp_path, places, has_paths):
    for row, place in enumerate(places):
        write_set(tmp_path, [SQUARE.replace("0", str(row), 1)], where=place)
    path = write_yaml(tmp_path, f"train: {places[0]}\nval: {places[1]}\n" if has_paths else "")
    source = opened(path)
    assert [(item.name, item.split) for item in source.items] == [
        (f"{places[0]}/a.png", "train"),
        (f"{places[1]}/a.png", "val"),
    ] or [(item.name, item.split) for item in source.items] == [("train/a.png", "train"), ("val/a.png", "val")]
    assert [more.masks(source, row)[0][0] for row in (0, 1)] == ["cat", "dog"]
    assert source.notes == []


def test_paths_of_data_yaml(tmp_path):
    """`path` counts, and paths of another machine end like those here."""
    root = tmp_path / "set"
    write_set(root / "cats", where="images/train")
    for text in (
        "path: cats\ntrain: images/train\n",
        f"path: {root}/cats\ntrain: images/train\n",
        "path: /content/cats\ntrain: images/train\n",
        "path: /content/cats\ntrain: /content/drive/cats/images/train\n",
        "path: /content\ntrain: cats/images/train\n",
        "train: [..\\cats\\images\\train]\ntest:\n",
        "train: C:\\Users\\me\\cats\\images\\train\n",
        "path: D:\\data\\cats\ntrain: images/train\n",
        "train: \\\\server\\share\\cats\\images\\train\n",
    ):
        source = opened(write_yaml(root, text))
        assert [(item.name, item.split) for item in source.items] == [("a.png", "train")], text
        assert len(more.masks(source)) == 1
    source = opened(write_yaml(root / "cats", "path: images/train\ntrain: .\n"))
    assert [item.name for item in source.items] == ["a.png"]
    more.error_of(lambda: opened(write_yaml(root, "train: {a: 1}")), "data.yaml: train {'a': 1}, expected a path")
    more.error_of(lambda: opened(write_yaml(root, "train: ['']")), "data.yaml: train [''], expected a path")
    more.error_of(lambda: opened(write_yaml(root, "path: 7\ntrain: a")), "data.yaml: path 7, expected a folder")


def test_path_of_data_yaml_counts_before_its_folder(tmp_path):
    write_set(tmp_path, where="images/train", name="other.png")
    path = write_yaml(tmp_path, "path: cats\ntrain: images/train\n")
    assert [item.name for item in opened(path).items] == ["other.png"]
    write_set(tmp_path / "cats", where="images/train")
    assert [item.path for item in opened(path).items] == [tmp_path / "cats" / "images" / "train" / "a.png"]


def test_a_split_whose_folder_does_not_exist_is_an_error_unless_it_is_the_test_split(tmp_path):
    write_set(tmp_path, where="images/train")
    path = write_yaml(tmp_path, "path: cats\ntrain: images/train\nval: images/val\ntest: images/test\n")
    line = more.error_of(lambda: opened(path), "--skip-missing")
    tried = ", ".join(f"'{tmp_path}/{place}images/val'" for place in ("cats/", ""))
    assert line.startswith(f"{path}: val 'images/val' does not exist (tried {tried}); correct the paths there")
    lacking = [f"{path}: {key} 'images/{key}' does not exist and is left out" for key in ("val", "test")]
    source = opened(path, SKIP_MISSING)
    assert [item.name for item in source.items] == ["a.png"]
    assert source.notes == lacking
    more.error_of(lambda: opened(path, SKIP_BAD), "val 'images/val' does not exist")
    assert opened(write_yaml(tmp_path, "train: images/train\ntest: images/test\n")).notes == lacking[1:]
    write_yaml(tmp_path, "train: ../x/images\ntest: images/test\n")
    parts = ("no image found", "train '../x/images' does not exist", "test 'images/test' does not exist")
    more.error_of(lambda: opened(path, SKIP_MISSING), *parts)
    write_yaml(tmp_path, f"train: {'/'.join('abcdefgh')}\n")
    more.error_of(lambda: opened(path), f"'{tmp_path}/b/c/d/e/f/g/h', ", " and 1 more)")
    source = opened(path, images=[tmp_path / "images"])
    assert [(item.name, item.split) for item in source.items] == [("train/a.png", None)]
    assert source.notes == []
    more.error_of(lambda: opened(write_yaml(tmp_path, "train: t.txt\n"), images=[tmp_path / "images"]), "train 't.txt'")


def test_a_path_that_the_system_refuses_does_not_exist(tmp_path, monkeypatch):
    write_set(tmp_path, where="images/train")
    for start in ("/root/private", "x" * 300, "/\\ud800", "/\\0"):
        path = write_yaml(tmp_path, f'path: "{start}"\ntrain: images/train\n')
        with monkeypatch.context() as patch:
            if "private" in start:
                is_dir = type(tmp_path).is_dir
                patch.setattr(type(tmp_path), "is_dir", lambda p, is_dir=is_dir: refuse(p) or is_dir(p))
            assert [item.name for item in opened(path).items] == ["a.png"]


def refuse(path):
    if str(path).startswith("/root/private"):
        raise PermissionError(13, "Permission denied", str(path))


def test_images_of_two_splits_count_for_the_first_and_are_counted(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write_set(tmp_path, name=name, where="images/train")
    path = write_yaml(tmp_path, "train: images/train\nval: images/train\n")
    source = opened(path)
    assert [item.split for item in source.items] == ["train"] * 3
    assert source.notes == [
        f"{path}: all 3 images of val are in train too and count for train: there is no separate val split; "
        "--split-val makes a new one"
    ]
    (tmp_path / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    (tmp_path / "val.txt").write_text("images/train/b.png\nimages/train/c.png\n")
    source = opened(write_yaml(tmp_path, "train: train.txt\nval: val.txt\n"))
    assert [item.path.name for item in source.items] == ["a.png", "b.png", "c.png"]
    assert [item.split for item in source.items] == ["train", "train", "val"]
    assert source.notes == [f"{path}: 1 images of val are in train too and count for train"]


def test_lists_of_images(tmp_path):
    """CVAT writes a text file for each split; its images may be elsewhere."""
    write_set(tmp_path, where="images/train")
    (tmp_path / "train.txt").write_text("data/images/train/a.png\nimages/train/a.png\n\n")
    source = opened(write_yaml(tmp_path, "path: ./\ntrain: train.txt\n"))
    assert [(item.name, item.split) for item in source.items] == [("a.png", "train")]
    (tmp_path / "photos").mkdir()
    (tmp_path / "images" / "train" / "a.png").rename(tmp_path / "photos" / "a.png")
    more.error_of(lambda: opened(tmp_path / "data.yaml"), "a.png: no such image, which", "train.txt", "--images")
    assert opened(tmp_path / "data.yaml", SKIP_MISSING).mistakes.lines
    source = opened(tmp_path / "data.yaml", images=[tmp_path / "photos"])
    assert [item.path for item in source.items] == [tmp_path / "photos" / "a.png"]
    assert len(more.masks(source)) == 1


def test_a_list_names_no_image_outside_the_new_data_set(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    forms.save(tmp_path / "b.png", np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "b.txt").write_text(SQUARE)
    (tmp_path / "set" / "train.txt").write_text("images/../../b.png\n")
    assert [item.name for item in opened(write_yaml(tmp_path / "set", "train: train.txt")).items] == ["b.png"]


def test_folders_of_images_and_of_labels_apart(tmp_path):
    forms.save(tmp_path / "photos" / "a.png", np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "txt").mkdir()
    (tmp_path / "txt" / "a.txt").write_text(SQUARE)
    more.error_of(lambda: opened(tmp_path / "txt", images=[tmp_path / "photos"]), "data.yaml", "classes.txt")
    (tmp_path / "txt" / "classes.txt").write_text("cat\ndog\n\n")
    assert more.masks(opened(tmp_path / "txt", images=[tmp_path / "photos"]))[0][0] == "cat"


def test_an_image_without_labels_shows_no_object(tmp_path):
    write_set(tmp_path)
    write_set(tmp_path, [], "empty.png")
    write_set(tmp_path, [" ", ""], "blank.png")
    write_set(tmp_path, [], "lacking.png").unlink()
    source = opened(write_yaml(tmp_path))
    assert {item.name: item.is_annotated for item in source.items} == {
        "a.png": True, "blank.png": False, "empty.png": False, "lacking.png": False,
    }  # fmt: skip
    assert all(more.masks(source, number) == [] for number in (1, 2, 3))


def test_the_fractions_are_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "a.jpg", exif=exif)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(SQUARE)
    source = opened(write_yaml(tmp_path))
    expected = np.zeros((30, 20), bool)
    expected[6:18, 2:10] = True
    assert np.array_equal(more.masks(source)[0][1], expected)


def test_classes_that_names_list_in_any_form(tmp_path):
    write_set(tmp_path, [SQUARE.replace("0", "2", 1)])
    for names in ("[a, b, cat]", "{0: a, 2: cat}", "{'2': cat}", "[a, 1, cat]\nnc: 3"):
        (tmp_path / "data.yaml").write_text(f"names: {names}\n")
        assert more.masks(opened(tmp_path))[0][0] == "cat"
    for names, part in (
        ("", "names None, expected a list"), ("[]", "names []"), ("[a, b]\nnc: 3", "nc 3, expected 2"),
        ("[a, no, c]", "1: False, expected a number and a text in quotes"), ("{x: a}", "'x': 'a', expected a number"),
    ):  # fmt: skip
        (tmp_path / "data.yaml").write_text(f"names: {names}\n")
        more.error_of(lambda: opened(tmp_path), "data.yaml", part)
    (tmp_path / "data.yaml").write_text("- 1")
    more.error_of(lambda: opened(tmp_path), "data.yaml: [1], expected a mapping with 'names'")


MISTAKES = [
    ("2 0.1 0.2 0.5 0.2 0.5 0.6", "class '2', expected a number of", "(0 cat, 1 dog)"),
    ("cat 0.1 0.2 0.5 0.2 0.5 0.6", "class 'cat', expected a number of"),
    ("0 0.1 0.2 0.5 0.2 0.5", "5 coordinates, expected pairs x y"),
    ("0 0.1 0.2 0.5 0.2 0.5 x", "'x', expected a number"),
    ("0 0.1 0.2 0.5 0.2 0.5 nan", "'nan', expected a number"),
    (
        "0 12 30 150 30 150 90",
        "coordinate '12', expected 0 to 1 (fractions of the image's width and height, not pixels)",
    ),
    ("0 0.5 0.5 0.2 0.2", "5 numbers are a box, expected a polygon of 7 or more; draw 'cat' as a polygon"),
    ("0 0.1 0.2", "polygon of 1 points, expected at least 3"),
]


@pytest.mark.parametrize(("line", "parts"), [(m[0], m[1:]) for m in MISTAKES])
def test_a_mistake_of_a_line_is_named_and_can_be_left_out(tmp_path, line, parts):
    labels = write_set(tmp_path, [SQUARE, line])
    write_yaml(tmp_path)
    more.error_of(lambda: more.read(opened(tmp_path)), f"{labels}: line 2: ", *parts)
    layers = more.read(opened(tmp_path, SKIP_BAD))
    assert len(layers.regions) == 1
    assert len(layers.mistakes) == 1
    assert all(part in layers.mistakes[0] for part in parts)


def test_the_place_of_an_object_that_was_left_out_is_known(tmp_path):
    write_set(tmp_path, [SQUARE, "0 0.5 0.5 0.2 0.2", "7 0.1 0.2 0.5 0.2 0.5 0.6"])
    write_yaml(tmp_path)
    assert more.read(opened(tmp_path, SKIP_BAD)).unknown == [(8, 12, 12, 18), (4, 3, 12, 15)]


def test_an_export_of_boxes_is_refused(tmp_path):
    labels = write_set(tmp_path, ["", "0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 0.2"])
    write_yaml(tmp_path)
    parts = (f"{labels}: line 2: 5 numbers are a box, as in all 2 lines", "export for segmentation")
    for tolerance in (STRICT, SKIP_BAD):
        more.error_of(lambda t=tolerance: opened(tmp_path, t), *parts)


def test_files_that_are_missing_or_damaged(tmp_path):
    more.error_of(lambda: opened(tmp_path / "data.yaml"), "data.yaml: no such file, expected data.yaml or a folder")
    more.error_of(lambda: opened(tmp_path), "data.yaml: no such file, nor classes.txt")
    write_yaml(tmp_path)
    more.error_of(lambda: opened(tmp_path), "no image found")
    more.error_of(lambda: opened([tmp_path, tmp_path]), "2 annotations, expected one")
    labels = write_set(tmp_path)
    (labels.parent / "b.txt").write_text(SQUARE)
    more.error_of(lambda: opened(tmp_path), "labels/b.txt: a label file without an image", "--skip-missing")
    assert len(opened(tmp_path, SKIP_MISSING).mistakes.lines) == 1
    (labels.parent / "b.txt").unlink()
    labels.write_bytes(b"\xff\xfe0 1")
    more.error_of(lambda: opened(tmp_path), f"{labels}: not text in UTF-8")
    write_set(tmp_path, name="b.png")
    source = opened(tmp_path, SKIP_BAD)
    assert [item.name for item in source.items] == ["b.png"]
    assert len(source.mistakes.lines) == 1
    for path in labels.parent.iterdir():
        path.unlink()
    more.error_of(lambda: opened(tmp_path), "a.txt: no such label file, nor one of any other image")
