"""Pascal VOC's segmentation maps."""

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.convert import forms
from tests.convert import forms_more as more
from upsnet.class_edits import ClassEdits
from upsnet.convert.classes import ClassOptions
from upsnet.convert.label_maps import read_numbers
from upsnet.convert.source import STRICT, Tolerance
from upsnet.convert.voc import Voc
from upsnet.data.coco import CocoPanoptic
from upsnet.data.shapes import CATEGORIES

SKIP_BAD, SKIP_MISSING = Tolerance(bad=True), Tolerance(missing=True)
SIZE = (12, 16)


def voc_palette():
    """The colours of VOC: 0 black, 1 dark red, 2 dark green ..., 255 a light yellow."""
    rows = np.zeros((256, 3), np.uint8)
    for number in range(256):
        for bit in range(8):
            for channel in range(3):
                if number >> (3 * bit + channel) & 1:
                    rows[number, channel] |= 128 >> bit
    return rows


def maps(ids_of_class=((1, 15), (2, 12))):
    """Two objects of 4 x 4 pixels with a border of one pixel around each."""
    ids, classes = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    for place, (number, value) in enumerate(ids_of_class):
        left = 1 + 8 * place
        ids[2:8, left : left + 6] = classes[2:8, left : left + 6] = 255
        ids[3:7, left + 1 : left + 5], classes[3:7, left + 1 : left + 5] = number, value
    return ids, classes


def write(folder, ids, classes, name="2007_000001", photo=".jpg", kind="palette"):
    forms.save(folder / "JPEGImages" / f"{name}{photo}", np.zeros((*SIZE, 3), np.uint8))
    for part, pixels in (("SegmentationObject", ids), ("SegmentationClass", classes)):
        path = folder / part / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        if kind != "grey":
            image.putpalette(voc_palette().ravel().tolist())
        (image.convert("RGB") if kind == "colours" else image).save(path)


def opened(path, tolerance=STRICT, images=(), options=ClassOptions(), **more_options):  # noqa: B008
    return Voc(path, images, options, tolerance, **more_options)


def area(top, left, bottom, right):
    expected = np.zeros(SIZE, bool)
    expected[top:bottom, left:right] = True
    return expected


def test_the_objects_of_voc(tmp_path):
    write(tmp_path, *maps())
    source = opened(tmp_path)
    found = dict(more.masks(source))
    assert set(found) == {"person", "dog", "void"}
    assert np.array_equal(found["person"], area(3, 2, 7, 6))
    assert np.array_equal(found["dog"], area(3, 10, 7, 14))
    assert np.array_equal(found["void"], (area(2, 1, 8, 7) | area(2, 9, 8, 15)) & ~found["person"] & ~found["dog"])
    names = {c.name: c.id for c in source.classes.categories.categories}
    assert len(names) == 21
    assert (names["aeroplane"], names["person"], names["tvmonitor"]) == (1, 15, 20)


@pytest.mark.parametrize("kind", ["palette", "grey", "colours"])
def test_maps_become_a_data_set_whose_border_is_void(tmp_path, kind):
    """The background fills what is not annotated, but not the border."""
    ids, classes = maps()
    write(tmp_path / "in", ids, classes, kind=kind)
    if kind == "colours":
        names = {0: "background", 12: "dog", 15: "person"}
        lines = [f"{name}:{','.join(map(str, voc_palette()[value]))}::" for value, name in names.items()]
        (tmp_path / "in" / "labelmap.txt").write_text("\n".join(lines))
    data = more.converted(opened(tmp_path / "in"), tmp_path / "out")
    sample = data[0]
    assert [data.categories[channel].name for channel in sample.classes] == ["background", "person", "dog"]
    assert np.array_equal(sample.segment_map == 0, classes == 255)
    assert np.array_equal(sample.segment_map == 1, classes == 0)
    assert np.array_equal(sample.segment_map == 2, ids == 1)


def test_generated_samples_come_back_exactly(tmp_path):
    samples = more.shapes_without_crowds()
    path = more.write_voc(samples, CATEGORIES, tmp_path / "in")
    data = more.converted(Voc(path, [], ClassOptions(stuff=more.STUFF)), tmp_path / "out")
    by_name = {s.file_name: s for s in samples}
    assert len(data) == len(samples)
    for i in range(len(data)):
        forms.require_equal(data[i], by_name[data[i].file_name], data.categories, CATEGORIES)


def test_fruits_come_back_exactly(real_data, tmp_path):
    root = real_data / "fruits_nuts"
    truth = CocoPanoptic(root / "val", root / "annotations" / "panoptic_val.json")
    sample = truth[1]
    more.write_voc([sample], truth.categories, tmp_path)
    text = (tmp_path / "labelmap.txt").read_text().replace("background:0,0,0::\n", "", 1)
    (tmp_path / "labelmap.txt").write_text(text)
    source = Voc(tmp_path, [], ClassOptions())
    things = [(category.name, pixels.tobytes()) for category, pixels in more.things(sample, truth.categories)]
    things.append(("void", (sample.segment_map == 0).tobytes()))
    assert sorted((name, pixels.tobytes()) for name, pixels in more.masks(source)) == sorted(things)


def test_lists_of_images(tmp_path):
    names = ["a", "b", "street/c"]
    for name in names:
        write(tmp_path, *maps(), name=name, photo=".png")
    forms.save(tmp_path / "JPEGImages" / "d.png", np.zeros((*SIZE, 3), np.uint8))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nstreet/c\nwithout_map\n\n")
    (lists / "Validation.txt").write_text("b \n")
    (lists / "trainval.txt").write_text("a\nb\nstreet/c\n")
    source = opened(tmp_path)
    assert [(item.name, item.split) for item in source.items] == [
        ("a.png", "train"), ("b.png", "val"), ("street/c.png", "train"),
    ]  # fmt: skip
    assert source.left_out == [tmp_path / "JPEGImages" / "d.png"]
    assert source.notes == []
    (lists / "val.txt").write_text("../../secret\n")
    more.error_of(lambda: opened(tmp_path), "val.txt: '../../secret' leaves its folder")


def test_images_in_two_lists_count_for_the_first_and_are_counted(tmp_path):
    for name in "abc":
        write(tmp_path, *maps(), name=name)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("b\nc\n")
    source = opened(tmp_path)
    assert [item.name for item in source.items] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [item.split for item in source.items] == ["train", "train", "val"]
    assert source.notes == [f"{lists}: 1 images of val are in train too and count for train"]


def test_a_labelmap_names_the_classes(tmp_path):
    """Without colours a class has that of its line in VOC's palette; maps of numbers hold the number of the line."""
    ids, classes = maps(((1, 2), (2, 1)))
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n\nbackground:::\nnut:::\nbig: bolt:::\n")
    for kind in ("palette", "colours", "grey"):
        write(tmp_path, ids, classes, kind=kind)
        source = opened(tmp_path)
        assert [c.name for c in source.classes.categories.categories] == ["background", "nut", "big: bolt"]
        found = dict(more.masks(source))
        assert np.array_equal(found["nut"], ids == 2)
        assert np.array_equal(found["big: bolt"], ids == 1)
    for text, part in (
        ("nut", "line 1: 'nut', expected name:r,g,b::"), ("nut:1,2::", "expected name:r,g,b::"),
        ("nut:1,2,256::", "expected name:r,g,b::"), (":1,2,3::", "expected name:r,g,b::"),
        ("a:1,2,3::\nb:1,2,3::", "line 2: 'b:1,2,3::' has the name or the colour of an earlier line"),
        ("a:1,2,3::\na:1,2,4::", "line 2: 'a:1,2,4::' has the name or the colour"),
    ):  # fmt: skip
        write(tmp_path, ids, classes)
        (tmp_path / "labelmap.txt").write_text(text)
        more.error_of(lambda: opened(tmp_path), "labelmap.txt: ", part)
    (tmp_path / "labelmap.txt").write_bytes(b"\xff\xfe")
    more.error_of(lambda: opened(tmp_path), "labelmap.txt: not text in UTF-8")


def test_classes_that_are_dropped_are_void_and_merged_ones_are_one(tmp_path):
    write(tmp_path, *maps())
    source = opened(tmp_path, options=ClassOptions(edits=ClassEdits(drop=("dog",))))
    found = dict(more.masks(source))
    assert set(found) == {"person", "void"}
    assert found["void"][3:7, 10:14].all()
    source = opened(tmp_path, options=ClassOptions(edits=ClassEdits(merge={"animal": ("dog", "person")})))
    assert [name for name, _ in more.masks(source)] == ["animal", "animal", "void"]


def test_a_classes_file_gives_other_values(tmp_path):
    write(tmp_path, *maps(((1, 7), (2, 9))))
    (tmp_path / "c.yaml").write_text(
        "- {name: wall, isthing: 0, value: 0}\n- {name: nut, isthing: 1, value: 7}\n"
        "- {name: bolt, isthing: 1, value: 9}"
    )
    source = opened(tmp_path, options=ClassOptions(file=tmp_path / "c.yaml"))
    assert [name for name, _ in more.masks(source)] == ["nut", "bolt", "void"]
    assert (more.read(source).semantic[0] == 0).all()


def test_colours_of_16_bits_are_refused_and_16_columns_are_not(tmp_path):
    ids, classes = maps()
    assert ids.shape[1] == 16
    write(tmp_path, ids, classes, kind="colours")
    assert read_numbers(tmp_path / "SegmentationObject" / "2007_000001.png", "instances").shape == SIZE
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((*SIZE, 3), np.uint16))
    more.error_of(lambda: read_numbers(tmp_path / "deep.png", "instances"), "deep.png", "or RGB of 8")


def test_maps_that_are_missing_or_do_not_fit(tmp_path):
    more.error_of(lambda: opened(tmp_path), "SegmentationObject: no such folder of maps")
    more.error_of(lambda: opened([]), "0 folders of annotations, expected one")
    ids, classes = maps()
    write(tmp_path, ids, classes)
    write(tmp_path, ids, classes, name="b")
    path = tmp_path / "SegmentationClass" / "b.png"
    for broken_ids, broken_classes, part in (
        (ids, classes[1:], "16 x 12, expected 16 x 11"),
        (ids, np.where(classes == 15, 25, classes), "value 25 of 16 pixels is no class of"),
        (ids, np.where(classes == 15, 255, classes), "instance 1 has 16 unlabelled pixels"),
        (ids, np.where(ids == 1, np.tile([12, 15], 8), classes), "instance 1 has two classes"),
    ):
        write(tmp_path, broken_ids, broken_classes.astype(np.uint8), name="b")
        more.error_of(lambda: more.read(opened(tmp_path), 1), "b.png", part)
    path.unlink()
    more.error_of(lambda: opened(tmp_path), f"{tmp_path}: no SegmentationClass/b.png, expected one")
    source = opened(tmp_path, SKIP_BAD)
    assert [item.name for item in source.items] == ["2007_000001.jpg"]
    assert len(source.mistakes.lines) == 1
    write(tmp_path, ids, classes, name="b")
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    more.error_of(lambda: opened(tmp_path), "b.*: no such image, which", "--skip-missing")
    assert len(opened(tmp_path, SKIP_MISSING).mistakes.lines) == 1
    forms.save(tmp_path / "photos" / "b.png", np.zeros((*SIZE, 3), np.uint8))
    source = opened(tmp_path, images=[tmp_path / "JPEGImages", tmp_path / "photos"])
    assert [item.path.name for item in source.items] == ["2007_000001.jpg", "b.png"]
