"""CVAT's XML."""

import numpy as np
import pytest
from PIL import Image

from tests.convert import forms
from tests.convert import forms_more as more
from upsnet.convert.classes import ClassOptions
from upsnet.convert.cvat import Cvat
from upsnet.convert.layers import Order, compose
from upsnet.convert.source import STRICT, Tolerance
from upsnet.data.coco import CocoPanoptic
from upsnet.data.shapes import CATEGORIES

SKIP_BAD, SKIP_MISSING = Tolerance(bad=True), Tolerance(missing=True)
SIZE = (20, 30)


def polygon(*points, label="cat", **more):
    return "polygon", {"label": label, "points": ";".join(f"{x},{y}" for x, y in points), **more}


def box(left, top, right, bottom, label="cat", **more):
    return "box", {"label": label, "xtl": left, "ytl": top, "xbr": right, "ybr": bottom, **more}


def mask(pixels, label="cat", **more_values):
    return "mask", {"label": label, **more.cvat_mask(pixels), **more_values}


def write(folder, *shapes, name="a.png", labels=("dog", "cat"), save=True, file="annotations.xml", **values):
    if save:
        forms.save(folder / "images" / name, np.zeros((*SIZE, 3), np.uint8))
    attributes = {"id": 0, "name": name, "width": SIZE[1], "height": SIZE[0], **values}
    (folder / file).write_text(more.cvat_document([(attributes, shapes)], labels), encoding="utf-8")
    return folder / file


def opened(path, tolerance=STRICT, images=()):
    return Cvat(path, images, ClassOptions(), tolerance)


def area(top, left, bottom, right):
    expected = np.zeros(SIZE, bool)
    expected[top:bottom, left:right] = True
    return expected


def test_every_shape_with_an_area(tmp_path):
    painted = area(3, 4, 6, 9)
    painted[4, 5:7] = False
    shapes = [
        polygon((2, 3), (10.0, 3), (10, 9), (2, 9)), box(5, 1, 8, 4, "dog"), mask(painted),
        ("ellipse", {"label": "cat", "cx": 15, "cy": 10, "rx": 6, "ry": 3}),
        ("polyline", {"label": "cat", "points": "1,1;2,2"}), ("points", {"label": "cat", "points": "1,1"}),
        ("points", {"label": "cat", "points": "3,1"}), ("tag", {"label": "cat"}), ("skeleton", {"label": "dog"}),
    ]  # fmt: skip
    source = opened(write(tmp_path, *shapes))
    found = more.masks(source)
    y, x = np.mgrid[:20, :30] + 0.5
    expected = [area(3, 2, 9, 10), area(1, 5, 4, 8), painted, ((x - 15) / 6) ** 2 + ((y - 10) / 3) ** 2 <= 1]
    assert [name for name, _ in found] == ["cat", "dog", "cat", "cat"]
    for (_, pixels), right in zip(found, expected, strict=True):
        assert np.array_equal(pixels, right)
    assert more.read(source).skipped == {"polyline": 1, "points": 2, "tag": 1, "skeleton": 1}
    assert [c.name for c in source.classes.categories.categories] == ["background", "dog", "cat"]
    assert source.items[0].is_annotated


def test_rotations_are_clockwise_around_the_centre(tmp_path):
    source = opened(
        write(
            tmp_path, box(10, 8, 20, 12, rotation=90), box(10, 5, 20, 15, rotation=45),
            ("ellipse", {"label": "cat", "cx": 15, "cy": 10, "rx": 9, "ry": 2, "rotation": 30}),
        )
    )  # fmt: skip
    (_, upright), (_, diamond), (_, ellipse) = more.masks(source)
    assert np.array_equal(upright, area(5, 13, 15, 17))
    y, x = np.mgrid[:20, :30] + 0.5
    distance = np.abs(x - 15) + np.abs(y - 10)  # the corners have 7.07
    assert diamond[distance <= 6].all()
    assert not diamond[distance >= 8].any()
    rows, columns = np.nonzero(ellipse)
    slope = np.polyfit(columns, rows, 1)[0]
    assert 0.3 < slope < 0.65, "on the screen the right end is lower"
    assert ellipse.sum() == pytest.approx(np.pi * 9 * 2, rel=0.1)


def test_the_order_of_drawing_and_groups(tmp_path):
    """A larger z_order is on top, then what comes later; parts of one label and group are one instance."""
    source = opened(
        write(
            tmp_path, box(0, 0, 10, 10, z_order=2), box(0, 0, 4, 4, "dog", z_order=1), box(2, 2, 6, 6, "dog"),
            box(20, 0, 25, 5, group_id=7), box(20, 10, 25, 15, group_id=7), box(20, 10, 25, 15, "dog", group_id=7),
        )
    )  # fmt: skip
    found = more.masks(source)
    assert [name for name, _ in found] == ["dog", "cat", "dog", "dog", "cat"]
    assert np.array_equal(found[1][1], area(0, 20, 5, 25) | area(10, 20, 15, 25))
    assert any("z_order differs in 1 images" in note and "--overlap later" in note for note in source.notes)
    made = compose(more.read(source), source.classes.categories, None, Order("later"))
    assert source.classes.categories[made.classes[made.segment_map[3, 3] - 1]].name == "cat"
    assert not opened(write(tmp_path, box(0, 0, 4, 4, z_order=3), box(0, 0, 4, 4, z_order=3))).notes


def test_generated_samples_come_back_exactly(tmp_path):
    samples = more.shapes_without_crowds()
    source = Cvat(more.write_cvat(samples, CATEGORIES, tmp_path / "in"), [], ClassOptions(stuff=more.STUFF))
    data = more.converted(source, tmp_path / "out")
    by_name = {s.file_name: s for s in samples}
    assert len(data) == len(samples)
    for i in range(len(data)):
        forms.require_equal(data[i], by_name[data[i].file_name], data.categories, CATEGORIES)


def test_fruits_come_back_exactly(real_data, tmp_path):
    root = real_data / "fruits_nuts"
    truth = CocoPanoptic(root / "val", root / "annotations" / "panoptic_val.json")
    sample = truth[1]
    options = ClassOptions(background="background")
    source = Cvat(more.write_cvat([sample], truth.categories, tmp_path), [], options)
    expected = sorted((category.name, pixels.tobytes()) for category, pixels in more.segments(sample, truth.categories))
    assert sorted((name, pixels.tobytes()) for name, pixels in more.masks(source)) == expected


def test_run_lengths_of_cvat(tmp_path):
    """Row by row in the mask's own box, off first: a shortened mask of a CVAT export."""
    values = {"label": "cat", "rle": "1, 2, 2, 3, 0, 1, 3", "left": 5, "top": 7, "width": 4, "height": 3}
    expected = np.zeros(SIZE, bool)
    expected[7:10, 5:9] = [[0, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]]
    assert np.array_equal(more.masks(opened(write(tmp_path, ("mask", values))))[0][1], expected)


def test_names_of_images(tmp_path):
    """Folders in names, subsets of a project, frames without a suffix, several files, and ids that repeat."""
    forms.save(tmp_path / "images" / "train" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    forms.save(tmp_path / "images" / "val" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    forms.save(tmp_path / "images" / "frame_000001.PNG", np.zeros((*SIZE, 3), np.uint8))
    forms.save(tmp_path / "images" / "other.png", np.zeros((*SIZE, 3), np.uint8))
    size = {"width": 30, "height": 20}
    images = [({"id": 0, "name": "a.png", "subset": subset, **size}, [box(1, 1, 5, 5)]) for subset in ("train", "val")]
    images.append(({"id": 1, "name": "frame_000001", **size}, []))
    (tmp_path / "1.xml").write_text(more.cvat_document(images[:2], ["cat"]))
    (tmp_path / "2.xml").write_text(more.cvat_document(images[2:], ["dog"]))
    for annotations in (tmp_path, [tmp_path / "1.xml", tmp_path / "2.xml"]):
        source = opened(annotations)
        assert [(item.name, item.split, item.is_annotated) for item in source.items] == [
            ("train/a.png", "train", True), ("val/a.png", "val", True), ("frame_000001.PNG", None, False),
        ]  # fmt: skip
        assert [item.image_id for item in source.items] == [1, 2, 3]
        assert source.left_out == [tmp_path / "images" / "other.png"]
        assert [c.name for c in source.classes.categories.categories] == ["background", "cat", "dog"]


def test_labels_that_cannot_have_an_area_are_no_classes(tmp_path):
    text = write(tmp_path, box(1, 1, 5, 5)).read_text()
    for kind in ("points", "tag", "skeleton", "polyline"):
        (tmp_path / "annotations.xml").write_text(text.replace("<type>any</type>", f"<type>{kind}</type>", 1))
        assert [c.name for c in opened(tmp_path).classes.categories.categories] == ["background", "cat"]


def test_the_size_tells_whether_the_image_was_rotated(tmp_path):
    """CVAT shows images upright since 2022; before, it showed the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "a.jpg", exif=exif)
    for width, height in ((30, 20), (20, 30)):
        path = write(tmp_path, box(1, 1, 5, 5), name="a.jpg", save=False, width=width, height=height)
        assert more.read(opened(path)).size == (height, width)
    path = write(tmp_path, box(1, 1, 5, 5), name="a.jpg", save=False, width=31)
    more.error_of(lambda: more.read(opened(path)), "a.jpg", "made for 31 x 20 pixels")


MISTAKES = [
    (polygon((1, 1), (5, 1)), "shape 1, polygon 'cat': polygon of 2 points, expected at least 3"),
    (polygon((1, 1), (500, 1), (5, 5)), "x from 1 to 500, expected 0 to 30"),
    (("polygon", {"label": "cat", "points": "1,1;2;3,3"}), "points '1,1;2;3,3', expected x,y;x,y;..."),
    (("polygon", {"label": "cat", "points": "1,1;2,nan;3,3"}), "expected x,y;x,y;..."),
    (("polygon", {"label": "cat"}), "points None"),
    (polygon((1, 1), (5, 1), (5, 5), label=""), "polygon '': label '' is no class of"),
    (polygon((1, 1), (5, 1), (5, 5), label="a" * 300), "is no class of"),
    (("box", {"label": "cat", "xtl": 1, "ytl": 1, "xbr": "x", "ybr": 3}), "xbr 'x', expected a number"),
    (box(1, 1, 5, 5, rotation="inf"), "rotation 'inf', expected a number"),
    (box(1, 1, 5, 5, z_order="top"), "z_order 'top', expected a whole number"),
    (box(1, 1, 5, 5, group_id="1.5"), "group_id '1.5', expected a whole number"),
    (("ellipse", {"label": "cat", "cx": 5, "cy": 5, "rx": 0, "ry": 3}), "radii 0 and 3, expected positive"),
    (("ellipse", {"label": "cat", "cx": 5, "cy": 5, "rx": 900, "ry": 3}), "x from -895 to 905, expected 0 to 30"),
    (mask(area(1, 1, 4, 4), left=28), "mask of 3 x 3 at (28, 1), expected it inside the image of 30 x 20"),
    (mask(area(1, 1, 4, 4), width=10**9, height=10**9), "mask of 1000000000 x 1000000000"),
    (mask(area(1, 1, 4, 4), width=10**8, height=10**8), "mask of 100000000 x 100000000 at (1, 1), expected it inside"),
    (mask(area(1, 1, 4, 4), rle="0, 8"), "rle '0, 8', expected run lengths that add up to 3 x 3 pixels"),
    (mask(area(1, 1, 4, 4), rle="-1, 10"), "expected run lengths"),
    (mask(area(1, 1, 4, 4), rle=""), "rle ''"),
    (mask(area(1, 1, 4, 4), left="0.5"), "left '0.5', expected a whole number"),
    (("cuboid", {"label": "cat", "xtl1": 1}), "shape type 'cuboid', expected box, ellipse, mask, polygon; draw"),
    (("blob-2", {"label": "cat"}), "shape 1, blob-2 'cat': shape type 'blob-2', expected box"),
]


@pytest.mark.parametrize(("shape", "part"), MISTAKES)
def test_a_mistake_of_a_shape_is_named_and_can_be_left_out(tmp_path, shape, part):
    path = write(tmp_path, shape, box(10, 10, 15, 15, "dog"))
    if "000000000" in part:
        part = "expected"  # a size beyond all images is no number
    more.error_of(lambda: more.read(opened(path)), f"{path}: image 'a.png': shape 1, ", part)
    layers = more.read(opened(path, SKIP_BAD))
    assert len(layers.regions) == 1
    assert len(layers.mistakes) == 1
    assert part in layers.mistakes[0]


def test_the_place_of_a_shape_that_was_left_out_is_known(tmp_path):
    shapes = [
        mask(area(2, 3, 6, 9), rle="1"),
        box(1, 2, 5, 8, z_order="x"),
        polygon((1, 1), (5, 3)),
        mask(area(1, 1, 2, 2)),
    ]
    shapes.append(("ellipse", {"label": "cat", "cx": 5, "cy": 6, "rx": 2, "ry": 3, "z_order": "x"}))
    layers = more.read(opened(write(tmp_path, *shapes), SKIP_BAD))
    assert layers.unknown == [(2, 3, 6, 9), (2, 1, 8, 5), (1, 1, 3, 5), (3, 3, 9, 7)]


def test_files_that_are_of_another_kind_or_damaged(tmp_path):
    path = tmp_path / "a.xml"
    more.error_of(lambda: opened(path), "a.xml: no such file")
    more.error_of(lambda: opened(tmp_path), "no .xml file, expected 'CVAT for images 1.1'")
    for text, part in (
        ("", "not valid XML (no element found"),
        ("<annotations><image>", "not valid XML (no element found"),
        ("<annotations>&lol;</annotations>", "not valid XML (undefined entity"),
        ("<annotation><object/></annotation>", "root element 'annotation', expected 'annotations'"),
        ("<annotations><track><box/></track></annotations>", "export as 'CVAT for images 1.1'"),
        ('<?xml version="1.0" encoding="klingon"?><annotations/>', "unknown encoding: klingon"),
    ):
        path.write_text(text)
        more.error_of(lambda: opened(path), f"{path}: ", part)
    write(tmp_path, box(1, 1, 5, 5), file="b.xml")
    source = opened(tmp_path, SKIP_BAD)
    assert [item.name for item in source.items] == ["a.png"]
    assert source.mistakes.lines == [f"{path}: unknown encoding: klingon"]


def test_images_that_are_missing_or_named_badly(tmp_path):
    path = write(tmp_path, box(1, 1, 5, 5))
    missing = write(tmp_path, name="b.png", save=False, file="b.xml")
    more.error_of(lambda: opened([path, missing]), "b.png: no such image, which", "b.xml", "--skip-missing")
    source = opened([path, missing], SKIP_MISSING)
    assert [item.name for item in source.items] == ["a.png"]
    assert len(source.mistakes.lines) == 1
    for name in ("", "a\nb.png", "x" * 300 + ".png"):
        bad = write(tmp_path, name=name, save=False, file="b.xml")
        more.error_of(lambda bad=bad: opened([path, bad]), f"{bad}: image name")
        assert len(opened([path, bad], SKIP_BAD).mistakes.lines) == 1
    twice = write(tmp_path, name="a.png", file="b.xml")
    more.error_of(lambda: opened([path, twice]), "a.png has two annotations", "merge or remove one")


def test_entities_are_refused_before_they_grow(tmp_path):
    path = tmp_path / "a.xml"
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE annotations [<!ENTITY l0 "ha">{entities}]><annotations><meta>&l11;</meta></annotations>'
    local = '<!DOCTYPE annotations [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>'
    other = '<!DOCTYPE annotations SYSTEM "http://127.0.0.1:9/a.dtd"><annotations/>'
    for text in (bomb, local, other):
        for encoding in ("utf-8", "utf-16"):
            head = f'<?xml version="1.0" encoding="{encoding}"?>'
            path.write_bytes((head + text).encode(encoding))
            more.error_of(lambda: opened(path), f"{path}: has a DOCTYPE, expected XML of CVAT, which has none")


def test_deep_elements_and_long_texts_are_harmless(tmp_path):
    text = write(tmp_path, box(1, 1, 5, 5)).read_text()
    deep = "<a>" * 100_000 + "</a>" * 100_000
    name = f"<label><name>{'x' * 2_000_000}</name></label></labels>"
    path = tmp_path / "annotations.xml"
    path.write_text(text.replace("</image>", f"{deep}</image>"))
    more.error_of(lambda: more.read(opened(path)), "shape 2, a '': shape type 'a', expected box, ellipse")
    layers = more.read(opened(path, SKIP_BAD))
    assert (len(layers.regions), len(layers.mistakes), layers.skipped) == (1, 1, {})
    path.write_text(text.replace("</image>", f"<{'a' * 100_000}/></image>"))
    more.error_of(lambda: more.read(opened(path)), "shape type 'unknown'")
    path.write_text(text.replace("</labels>", name))
    assert [c.name for c in opened(path).classes.categories.categories] == ["background", "dog", "cat"]
