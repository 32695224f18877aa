"""Supervisely's projects."""

import base64
import io
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.convert import forms
from tests.convert import forms_more as more
from upsnet.convert.classes import ClassOptions
from upsnet.convert.source import STRICT, Tolerance
from upsnet.convert.supervisely import Supervisely
from upsnet.data.coco import CocoPanoptic
from upsnet.data.shapes import CATEGORIES

SKIP_BAD, SKIP_MISSING = Tolerance(bad=True), Tolerance(missing=True)
SIZE = (20, 30)
CORNERS = [[2, 3], [9, 3], [9, 8], [2, 8]]


def opened(path, tolerance=STRICT, images=()):
    return Supervisely(path, images, ClassOptions(), tolerance)


def area(top, left, bottom, right):
    expected = np.zeros(SIZE, bool)
    expected[top:bottom, left:right] = True
    return expected


def rectangle(*points, label="cat", **values):
    points = {"exterior": [list(point) for point in points], "interior": []}
    return {"classTitle": label, "geometryType": "rectangle", "points": points, **values}


def bitmap(image, origin=(3, 4), pack=zlib.compress, **options):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    data = base64.b64encode(pack(buffer.getvalue())).decode()
    return {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": data, "origin": list(origin)}}


def test_every_object_with_an_area(tmp_path):
    """Whole numbers name pixels, and the pixels of an outline belong to the object, those of a hole's not."""
    painted = area(3, 4, 9, 20)
    painted[5, 7:19] = False
    hole = [[4, 5], [6, 5], [6, 6], [4, 6]]
    parts = [{"exterior": [[20, 10], [22, 10], [22, 12], [20, 12]]}, {"exterior": [[25, 1], [27, 1], [27, 2], [25, 2]]}]
    objects = [
        more.sly_polygon(CORNERS, "cat", hole), rectangle((10, 12), (5, 10), label="dog"),
        more.sly_bitmap(painted, "dog"), {"classTitle": "cat", "geometryType": "multipolygon", "parts": parts},
        {"classTitle": "cat", "geometryType": "point"}, {"classTitle": "cat", "geometryType": "graph"},
    ]  # fmt: skip
    more.write_sly(tmp_path, objects, classes=("unused", "dog", "cat"))
    source = opened(tmp_path)
    found = more.masks(source)
    expected = [area(3, 2, 9, 10) & ~area(5, 4, 7, 7), area(10, 5, 13, 11), painted]
    expected.append(area(10, 20, 13, 23) | area(1, 25, 3, 28))
    assert [name for name, _ in found] == ["cat", "dog", "dog", "cat"]
    for (_, pixels), right in zip(found, expected, strict=True):
        assert np.array_equal(pixels, right)
    assert more.read(source).skipped == {"point": 1, "graph": 1}
    assert [c.name for c in source.classes.categories.categories] == ["background", "unused", "dog", "cat"]
    assert source.items[0].is_annotated


def test_fractions_count_from_the_corner_of_the_image(tmp_path):
    """The server stores them; a polygon keeps the pixels that its points lie in, as Supervisely's own program does."""
    polygon = [[x + 0.5, y + 0.5] for x, y in CORNERS]
    edge = [[28.5, 18.5], [30.0, 18.5], [30.0, 20.0], [28.5, 20.0]]
    objects = [more.sly_polygon(polygon, "cat"), more.sly_polygon(edge, "cat"), rectangle((2.4, 3.2), (7.6, 9.4))]
    more.write_sly(tmp_path, objects)
    (_, first), (_, last), (_, box) = more.masks(opened(tmp_path))
    assert np.array_equal(first, area(3, 2, 9, 10))
    assert np.array_equal(last, area(18, 28, 20, 30))
    assert np.array_equal(box, area(3, 2, 9, 8))


PIXELS = np.zeros((4, 5), np.uint8)
PIXELS[1:3, 1:4] = 1


@pytest.mark.parametrize("pack", [zlib.compress, bytes])
@pytest.mark.parametrize("kind", ["palette", "one bit", "grey", "colours", "alpha", "black with alpha"])
def test_bitmaps_of_every_kind(tmp_path, kind, pack):
    """The alpha channel is the mask; without one, what is not black."""
    options = {}
    if kind == "palette":
        image = Image.fromarray(PIXELS)
        image.putpalette([0, 0, 0, 255, 255, 255])
        options["transparency"] = 0
    elif kind == "one bit":
        image = Image.fromarray(PIXELS > 0)
    elif kind == "grey":
        image = Image.fromarray(PIXELS * 200)
    elif kind == "colours":
        image = Image.fromarray(PIXELS[..., None] * np.array([0, 90, 0], np.uint8))
    else:
        color = [0, 0, 0, 128] if kind == "black with alpha" else [255, 0, 0, 255]
        image = Image.fromarray(np.where(PIXELS[..., None] > 0, color, [9, 9, 9, 0]).astype(np.uint8))
    more.write_sly(tmp_path, [bitmap(image, pack=pack, **options)])
    assert np.array_equal(more.masks(opened(tmp_path))[0][1], area(5, 4, 7, 7))


def test_a_bitmap_of_supervisely(tmp_path):
    """The example in the documentation of its Python package: a ring of 3 x 3 pixels."""
    data = (
        "eJzrDPBz5+WS4mJgYOD19HAJAtLMIMwIInOeqf8BUmwBPiGuQPr///9Lb86/C2QxlgT5BTM4PLuRBuTwebo4hlTMSa44sKHhISMDuxpTYrr0"
        "3F6gDIOnq5/LOqeEJgDM5ht6"
    )
    row = {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [5, 6]}}
    more.write_sly(tmp_path, [row])
    ring = area(6, 5, 9, 8)
    ring[7, 6] = False
    assert np.array_equal(more.masks(opened(tmp_path))[0][1], ring)


def test_bound_objects_of_one_class_are_one_instance(tmp_path):
    objects = [
        rectangle((0, 0), (4, 4), instance="k"), rectangle((0, 0), (2, 2), label="dog", instance="k"),
        rectangle((10, 0), (14, 4), instance="k"), rectangle((20, 0), (24, 4)),
    ]  # fmt: skip
    more.write_sly(tmp_path, objects)
    found = more.masks(opened(tmp_path))
    assert [name for name, _ in found] == ["dog", "cat", "cat"]
    assert np.array_equal(found[1][1], area(0, 0, 5, 5) | area(0, 10, 5, 15))


def test_generated_samples_come_back_exactly(tmp_path):
    samples = more.shapes_without_crowds()
    path = more.write_supervisely(samples, CATEGORIES, tmp_path / "in")
    data = more.converted(Supervisely(path, [], ClassOptions(stuff=more.STUFF)), tmp_path / "out")
    by_name = {s.file_name: s for s in samples}
    assert len(data) == len(samples)
    for i in range(len(data)):
        forms.require_equal(data[i], by_name[data[i].file_name], data.categories, CATEGORIES)


def test_fruits_come_back_exactly(real_data, tmp_path):
    root = real_data / "fruits_nuts"
    truth = CocoPanoptic(root / "val", root / "annotations" / "panoptic_val.json")
    sample = truth[1]
    more.write_supervisely([sample], truth.categories, tmp_path)
    source = Supervisely(tmp_path, [], ClassOptions(background="background"))
    expected = sorted((category.name, pixels.tobytes()) for category, pixels in more.segments(sample, truth.categories))
    assert sorted((name, pixels.tobytes()) for name, pixels in more.masks(source)) == expected


def test_data_sets_of_a_project(tmp_path):
    """Also a data set in another one, an image of the same name, images elsewhere, and one of the data sets alone."""
    path = more.write_sly(tmp_path, [rectangle((0, 0), (4, 4))])
    inner = tmp_path / "ds0" / "datasets" / "inner"
    for folder in ("ann", "img"):
        (inner / folder).mkdir(parents=True)
    (inner / "ann" / path.name).write_text(path.read_text().replace("cat", "dog"))
    forms.save(inner / "img" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    forms.save(inner / "img" / "other.png", np.zeros((*SIZE, 3), np.uint8))
    source = opened(tmp_path)
    assert [(item.name, item.image_id) for item in source.items] == [
        ("img/a.png", 1), ("datasets/inner/img/a.png", 2),
    ]  # fmt: skip
    assert [more.masks(source, row)[0][0] for row in (0, 1)] == ["cat", "dog"]
    assert source.left_out == [inner / "img" / "other.png"]
    (inner / "ann" / path.name).unlink()
    assert [item.name for item in opened(tmp_path / "ds0").items] == ["a.png"]
    (tmp_path / "ds0" / "img").rename(tmp_path / "photos")
    more.error_of(lambda: opened(tmp_path), "img: no such folder of images")
    assert [item.path for item in opened(tmp_path, images=[tmp_path / "photos"]).items] == [
        tmp_path / "photos" / "a.png"
    ]


def test_an_annotation_of_an_old_project_has_no_suffix_of_the_image(tmp_path):
    path = more.write_sly(tmp_path, [])
    path.rename(path.with_name("a.json"))
    assert [(item.name, item.is_annotated) for item in opened(tmp_path).items] == [("a.png", False)]


def test_labels_that_cannot_have_an_area_are_no_classes(tmp_path):
    more.write_sly(tmp_path, [rectangle((0, 0), (4, 4), label="new")])
    kinds = ("point", "bitmap", "graph", "any", "line", "polygon", "alpha_mask")
    rows = [{"title": name, "shape": name} for name in kinds]
    (tmp_path / "meta.json").write_text(json.dumps({"classes": rows}))
    names = [c.name for c in opened(tmp_path).classes.categories.categories]
    assert names == ["background", "bitmap", "any", "polygon", "alpha_mask", "new"]


def corrupted(**values):
    row = more.sly_bitmap(area(1, 1, 4, 5), "cat")
    row["bitmap"] |= values
    return row


MISTAKES = [
    (more.sly_polygon(CORNERS[:2], "cat"), "object 1, polygon 'cat': polygon of 2 points, expected at least 3"),
    (more.sly_polygon([[0, 0], [500, 0], [4, 4]], "cat"), "x from 0 to 500, expected 0 to 30"),
    (more.sly_polygon([[0, 0], [5, "x"], [4, 4]], "cat"), "expected numbers"),
    (more.sly_polygon(CORNERS, 7), "polygon '': label '' is no class of"),
    (more.sly_polygon(7, "cat"), "points 7, expected a list of [x, y]"),
    (more.sly_polygon(CORNERS, "cat", CORNERS[:1]), "polygon of 1 points"),
    ({"classTitle": "cat", "geometryType": "polygon"}, "points None, expected an object"),
    ({"classTitle": "cat", "geometryType": "multipolygon", "parts": 1}, "parts 1, expected a list"),
    (rectangle((1, 1)) | {"geometryType": "alpha_mask"}, "alpha_mask 'cat': shape type 'alpha_mask', expected bitmap"),
    (rectangle((1, 1)) | {"geometryType": None}, "unknown 'cat': shape type 'unknown', expected bitmap, multipolygon"),
    (rectangle((1, 1)), "rectangle of 1 points, expected 2"),
    (rectangle((1, 1), (200, 2)), "x from 1 to 201, expected 0 to 30"),
    (rectangle((1, 1), (5, 5), instance=[1]), "instance [1], expected a text"),
    (corrupted(origin=[1]), "origin [1], expected [x, y]"),
    (corrupted(origin=[-1, 2]), "origin [-1, 2], expected [x, y]"),
    (corrupted(origin=[28, 2]), "4 x 3 at (28, 2), expected it inside the image of 30 x 20"),
    (corrupted(data=None), "bitmap: cannot be read as"),
    (corrupted(data="!"), "bitmap: data cannot be read"),
    (corrupted(data="QUJD"), "bitmap: data cannot be read"),
    (corrupted(data=base64.b64encode(zlib.compress(b"GIF")).decode()), "bitmap: cannot be read as an image"),
    (bitmap(Image.new("1", (5_000, 5_000))), "5000 x 5000 at (3, 4), expected it inside"),
    (bitmap(Image.new("1", (5_000, 5_000)), pack=bytes), "5000 x 5000 at (3, 4), expected it inside"),
]


@pytest.mark.parametrize(("row", "part"), MISTAKES)
def test_a_mistake_of_an_object_is_named_and_can_be_left_out(tmp_path, row, part):
    path = more.write_sly(tmp_path, [row, rectangle((10, 10), (15, 15), label="dog")])
    more.error_of(lambda: more.read(opened(tmp_path)), f"{path}: object 1, ", part)
    layers = more.read(opened(tmp_path, SKIP_BAD))
    assert len(layers.regions) == 1
    assert len(layers.mistakes) == 1
    assert part in layers.mistakes[0]


def test_the_place_of_an_object_that_was_left_out_is_known(tmp_path):
    objects = [
        more.sly_polygon([[2, 3], [9, 8]], "cat"), rectangle((1, 2), (5, 6), instance=[]), corrupted(origin=[28, 2]),
        corrupted(origin=None),
    ]  # fmt: skip
    more.write_sly(tmp_path, objects)
    layers = more.read(opened(tmp_path, SKIP_BAD))
    assert layers.unknown == [(3, 2, 9, 10), (2, 1, 7, 6), (2, 28, 20, 30)]
    assert len(layers.mistakes) == 4


def test_data_that_would_unpack_to_much_more_than_the_image_is_refused(tmp_path):
    data = base64.b64encode(zlib.compress(b"\x89PNG" + bytes(20_000_000))).decode()
    more.write_sly(tmp_path, [corrupted(data=data), bitmap(Image.new("1", (4_000, 4_000)), pack=bytes)])
    source = opened(tmp_path, SKIP_BAD)
    tracemalloc.start()
    layers = more.read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "bitmap: data of more than" in layers.mistakes[0]
    assert "4000 x 4000" in layers.mistakes[1]
    assert peak < 2_000_000


def test_files_that_are_missing_or_damaged(tmp_path):
    more.error_of(lambda: opened(tmp_path / "x"), "x: no such folder of a Supervisely project")
    more.error_of(lambda: opened(tmp_path), "meta.json: no such file, expected the folder of a Supervisely project")
    meta = tmp_path / "meta.json"
    for text in ("[]", '{"classes": {}}', '{"classes": [{"shape": "any"}]}'):
        meta.write_text(text)
        more.error_of(lambda: opened(tmp_path), f"{meta}: no list 'classes' of objects with a title")
    meta.write_text('{"classes": []}')
    more.error_of(lambda: opened(tmp_path), f"{tmp_path}: no folder 'ann' in it")
    more.write_sly(tmp_path, [], name="b.png")
    path = more.write_sly(tmp_path, [])
    for text, part in (
        ("[" * 100_000, "not valid JSON"), ("[]", "no list 'objects'"), ('{"objects": [1]}', "no list 'objects'"),
        ('{"objects": [], "size": []}', "size [], expected an object with height and width"),
    ):  # fmt: skip
        path.write_text(text)
        more.error_of(lambda: opened(tmp_path), f"{path}: ", part)
        source = opened(tmp_path, SKIP_BAD)
        assert [item.name for item in source.items] == ["b.png"]
        assert len(source.mistakes.lines) == 1
    path.unlink()
    missing = more.write_sly(tmp_path, [], name="c.png")
    (tmp_path / "ds0" / "img" / "c.png").unlink()
    more.error_of(lambda: opened(tmp_path), "c.png: no such image, which", str(missing), "--skip-missing")
    assert len(opened(tmp_path, SKIP_MISSING).mistakes.lines) == 1
    missing.unlink()
    path = more.write_sly(tmp_path, [], size=(19, 30), name="b.png")
    forms.save(tmp_path / "ds0" / "img" / "b.png", np.zeros((*SIZE, 3), np.uint8))
    more.error_of(lambda: more.read(opened(tmp_path), -1), "b.png", "made for 30 x 19 pixels")
    path.write_text('{"objects": [], "size": {"height": -1, "width": 3}}')
    more.error_of(lambda: more.read(opened(tmp_path), -1), f"{path}: height -1 and width 3")
