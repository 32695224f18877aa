"""Label Studio's JSON."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.convert import forms
from tests.convert import forms_more as more
from upsnet.convert.classes import ClassOptions
from upsnet.convert.label_studio import LabelStudio, decode_brush
from upsnet.convert.source import STRICT, Tolerance
from upsnet.data.coco import CocoPanoptic
from upsnet.data.shapes import CATEGORIES

SKIP_BAD, SKIP_MISSING = Tolerance(bad=True), Tolerance(missing=True)
SIZE = (20, 40)


def polygon(*points, label="cat", **values):
    value = {"points": [list(point) for point in points], "closed": True, "polygonlabels": [label]}
    return more.label_studio_result("polygonlabels", SIZE, value, **values)


def rectangle(x, y, width, height, label="cat", rotation=0, **values):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation, "rectanglelabels": [label]}
    return more.label_studio_result("rectanglelabels", SIZE, value, **values)


def ellipse(x, y, radius_x, radius_y, rotation=0, **values):
    value = {"x": x, "y": y, "radiusX": radius_x, "radiusY": radius_y, "rotation": rotation, "ellipselabels": ["cat"]}
    return more.label_studio_result("ellipselabels", SIZE, value, **values)


def write(folder, *tasks):
    forms.save(folder / "a.png", np.zeros((*SIZE, 3), np.uint8))
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


def task(*results, image="a.png", **annotation):
    return more.label_studio_task(1, image, list(results), **annotation)


def opened(path, tolerance=STRICT, images=()):
    return LabelStudio(path, images, ClassOptions(), tolerance)


def area(top, left, bottom, right):
    expected = np.zeros(SIZE, bool)
    expected[top:bottom, left:right] = True
    return expected


def test_every_shape_with_an_area(tmp_path):
    painted = area(3, 4, 9, 30)
    painted[5, 7:19] = False
    results = [
        polygon((5, 15), (25, 15), (25, 45), (5, 45)), rectangle(50, 50, 25, 10, "dog"), ellipse(50, 50, 10, 20),
        more.brush_result(painted, "dog"), {"type": "choices", "value": {"choices": ["sharp"]}},
        more.label_studio_result("keypointlabels", SIZE, {"x": 1, "y": 1, "keypointlabels": ["eye"]}),
        {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"},
    ]  # fmt: skip
    source = opened(write(tmp_path, task(*results)))
    found = more.masks(source)
    y, x = np.mgrid[:20, :40] + 0.5
    expected = [area(3, 2, 9, 10), area(10, 20, 12, 30), ((x - 20) / 4) ** 2 + ((y - 10) / 4) ** 2 <= 1, painted]
    assert [name for name, _ in found] == ["cat", "dog", "cat", "dog"]
    for (_, pixels), right in zip(found, expected, strict=True):
        assert np.array_equal(pixels, right)
    assert more.read(source).skipped == {"choices": 1, "keypointlabels": 1, "relation": 1}
    assert [c.name for c in source.classes.categories.categories] == ["background", "cat", "dog"]
    assert source.items[0].is_annotated


def bare(result, label=None):
    """What `<Labels>` beside `<Polygon>` and the like write: a shape without a label, and its label."""
    kind = result["type"].removesuffix("labels")
    value = {key: value for key, value in result["value"].items() if key != result["type"]}
    rows = [result | {"type": kind, "value": value}]
    return rows if label is None else [*rows, result | {"type": "labels", "value": {**value, "labels": [label]}}]


def test_labels_that_are_results_of_their_own(tmp_path):
    """They are found by the id of their region, wherever they are in the list."""
    painted = area(3, 4, 9, 30)
    first, second = bare(polygon((5, 15), (25, 15), (25, 45), (5, 45), id="p"), "cat")
    point = more.label_studio_result("keypoint", SIZE, {"x": 1, "y": 1}, id="k")
    results = [
        second, *bare(rectangle(50, 50, 25, 10, id="r"), "dog"), first, *bare(ellipse(50, 50, 10, 20, id="e"), "cat"),
        *bare(more.brush_result(painted, "") | {"id": "b"}, "dog"), point,
        point | {"type": "labels", "value": {"labels": ["eye"]}}, {"type": "choices", "id": "p", "value": {}},
        {"type": "labels", "id": "t", "value": {"start": 1, "end": 2, "text": "a", "labels": ["word"]}},
    ]  # fmt: skip
    source = opened(write(tmp_path, task(*results)))
    y, x = np.mgrid[:20, :40] + 0.5
    expected = [("dog", area(10, 20, 12, 30)), ("cat", area(3, 2, 9, 10))]
    expected += [("cat", ((x - 20) / 4) ** 2 + ((y - 10) / 4) ** 2 <= 1), ("dog", painted)]
    for (name, pixels), (label, right) in zip(more.masks(source), expected, strict=True):
        assert name == label
        assert np.array_equal(pixels, right)
    assert more.read(source).skipped == {"keypoint": 1, "choices": 1, "labels": 1}
    assert [c.name for c in source.classes.categories.categories] == ["background", "cat", "dog"]


def test_rotations_are_clockwise(tmp_path):
    """A rectangle rotates around its upper left corner, an ellipse around its centre."""
    source = opened(write(tmp_path, task(rectangle(50, 25, 25, 10, rotation=90), ellipse(50, 50, 20, 10, rotation=90))))
    (_, box), (_, oval) = more.masks(source)
    assert np.array_equal(box, area(5, 18, 15, 20))
    y, x = np.mgrid[:20, :40] + 0.5
    assert np.array_equal(oval, ((x - 20) / 2) ** 2 + ((y - 10) / 8) ** 2 <= 1)


@pytest.mark.parametrize("sizes", [(3, 4, 8, 16), (1, 2, 3, 4)])
def test_brushes_of_any_pixels_come_back(sizes):
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (40, 33)):
        for pixels in (rng.integers(0, 2, (*shape, 4)) * 255, np.zeros((*shape, 4)), np.full((*shape, 4), 9)):
            assert np.array_equal(decode_brush(bytes(more.brush(pixels, sizes)), shape), pixels[..., 3] > 0)


def test_a_brush_that_label_studio_wrote():
    """The code that its converter writes for 3 x 2 pixels, of which the first and the last are on."""
    code = [0, 0, 0, 24, 57, 27, 252, 127, 247, 192, 35, 255, 0]
    assert np.array_equal(decode_brush(bytes(code), (2, 3)), np.array([[1, 0, 0], [0, 0, 1]], bool))


def test_generated_samples_come_back_exactly(tmp_path):
    samples = more.shapes_without_crowds()
    path = more.write_label_studio(samples, CATEGORIES, tmp_path / "in")
    kinds = {result["type"] for row in json.loads(path.read_text()) for result in row["annotations"][0]["result"]}
    assert kinds == {"brushlabels", "polygonlabels"}
    data = more.converted(LabelStudio(path, [], ClassOptions(stuff=more.STUFF)), tmp_path / "out")
    by_name = {s.file_name: s for s in samples}
    assert len(data) == len(samples)
    for i in range(len(data)):
        forms.require_equal(data[i], by_name[data[i].file_name], data.categories, CATEGORIES)


def test_fruits_come_back_exactly(real_data, tmp_path):
    root = real_data / "fruits_nuts"
    truth = CocoPanoptic(root / "val", root / "annotations" / "panoptic_val.json")
    sample = truth[1]
    path = more.write_label_studio([sample], truth.categories, tmp_path, (255,) * 4)
    source = LabelStudio(path, [], ClassOptions(background="background"))
    expected = sorted((category.name, pixels.tobytes()) for category, pixels in more.segments(sample, truth.categories))
    assert sorted((name, pixels.tobytes()) for name, pixels in more.masks(source)) == expected


def test_the_annotation_that_counts(tmp_path):
    """The ground truth, else the one updated last; never a cancelled one or a prediction."""
    rows = [
        {"result": [rectangle(0, 0, 10, 10, label)], "updated_at": f"2024-01-0{day}T10:00:00Z"}
        for day, label in enumerate(("first", "last", "skipped", "true"), start=1)
    ]
    rows[2]["was_cancelled"] = rows[3]["ground_truth"] = True
    wrong = [{"result": [rectangle(0, 0, 10, 10, "guess")]}]
    for annotations, label in (
        (rows[:3], "last"),
        (rows[2::-1], "last"),
        (rows[3:] + rows[:2], "true"),
        (rows[:1], "first"),
    ):
        path = write(tmp_path, {"id": 1, "data": {"image": "a.png"}, "annotations": annotations, "predictions": wrong})
        source = opened(path)
        assert [name for name, _ in more.masks(source)] == [label]
        assert bool(source.notes) == (len(annotations) > 1)
    assert "1 tasks have several annotations" in opened(write(tmp_path, task() | {"annotations": rows})).notes[0]
    for annotations in (rows[2:3], []):
        source = opened(write(tmp_path, task() | {"annotations": annotations}))
        assert (source.items, source.left_out) == ([], [tmp_path / "a.png"])
    source = opened(write(tmp_path, task()))
    assert [item.is_annotated for item in source.items] == [False]
    assert source.left_out == []


@pytest.mark.parametrize(
    "image",
    [
        "a.png", "photos/a.png", "/data/upload/3/a.png", "/data/upload/3/abcd1234-a.png", "s3://bucket/x/a.png",
        "/data/local-files/?d=some%20folder/a.png", "http://host:80/x/a.png?token=abc/d.png#f", "C:\\photos\\a.png",
        "/data/local-files/?d=c%3A%5Cphotos%5Ca.png",
    ],
)  # fmt: skip
def test_names_of_images(tmp_path, image):
    source = opened(write(tmp_path, task(rectangle(0, 0, 10, 10), image=image)))
    assert [(item.path, item.image_id) for item in source.items] == [(tmp_path / "a.png", 1)]
    data = {"note": "sharp", "number": 7, "picture": image}
    assert len(opened(write(tmp_path, task() | {"data": data})).items) == 1


def test_names_with_a_prefix_or_with_codes(tmp_path):
    """A name counts as it is before its prefix or its codes are taken away; folders are kept if they exist."""
    names = ["abcd1234-b.png", "b.png", "so%20to.png", "ü o.png", "deep/er/c.png"]
    for name in names:
        forms.save(tmp_path / "images" / name, np.zeros((*SIZE, 3), np.uint8))
    images = [
        "/data/upload/1/abcd1234-b.png",
        "/data/upload/1/12345678-b.png",
        "http://x/so%20to.png",
        "%C3%BC%20o.png",
    ]
    images.append("/data/local-files/?d=deep/er/c.png")
    tasks = [more.label_studio_task(number, image, []) for number, image in enumerate(images)]
    assert [item.name for item in opened(write(tmp_path, *tasks)).items] == names


def test_a_date_is_no_prefix_of_an_upload(tmp_path):
    """The eight digits of an upload are a prefix only in the address of an upload, where each name has one."""
    date = "photos/20240101-x.png"
    path = write(tmp_path, task(image=date))
    forms.save(tmp_path / "x.png", np.zeros((*SIZE, 3), np.uint8))
    more.error_of(lambda: opened(path), "20240101-x.png: no such image, which")
    forms.save(tmp_path / "20240101-x.png", np.zeros((*SIZE, 3), np.uint8))
    assert [item.name for item in opened(path).items] == ["20240101-x.png"]
    for prefix, name in (("/data/upload/1/20240102", "x.png"), ("a0240101", "x.png"), ("A0240101", None)):
        path = write(tmp_path, task(image=f"{prefix}-x.png"))
        assert [item.name for item in opened(path, SKIP_MISSING).items] == ([name] if name else [])


def test_several_files_with_the_same_ids(tmp_path):
    forms.save(tmp_path / "b.png", np.zeros((*SIZE, 3), np.uint8))
    path = write(tmp_path, task(rectangle(0, 0, 10, 10)))
    (tmp_path / "more.json").write_text(json.dumps([task(rectangle(0, 0, 10, 10, "dog"), image="b.png")]))
    for annotations in (tmp_path, [path, tmp_path / "more.json"]):
        source = opened(annotations)
        assert [(item.name, item.image_id) for item in source.items] == [("a.png", 1), ("b.png", 2)]
        assert [more.masks(source, row)[0][0] for row in (0, 1)] == ["cat", "dog"]


def test_several_labels_of_a_shape(tmp_path):
    shape = rectangle(0, 0, 10, 10)
    shape["value"]["rectanglelabels"] = ["dog", "cat"]
    source = opened(write(tmp_path, task(shape)))
    assert [name for name, _ in more.masks(source)] == ["dog"]
    assert source.notes == ["1 shapes have several labels: the first one counts"]


def test_annotations_are_on_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 40)).save(tmp_path / "a.jpg", exif=exif)
    source = opened(write(tmp_path, task(rectangle(0, 0, 50, 25), image="a.jpg")))
    assert np.array_equal(more.masks(source)[0][1], area(0, 0, 5, 20))


def value_of(shape, **values):
    shape["value"] |= values
    return shape


CUT_OFF = more.brush(np.arange(3200) % 256)[:30]
MISTAKES = [
    (polygon((1, 1), (5, 1)), "result 'Xy12', polygonlabels 'cat': polygon of 2 points, expected at least 3"),
    (polygon((1, 1), (500, 1), (5, 5)), "x from 0.4 to 200, expected 0 to 40"),
    (polygon((1, 1), (5, "x"), (5, 5)), "y 'x', expected a number (percent of the image)"),
    (value_of(polygon(), points={"a": 1}), "points {'a': 1}, expected a list of [x, y]"),
    (rectangle(1, 1, None, 5), "width None, expected a number"),
    (rectangle(1, 1, 5, 5, rotation="a"), "rotation 'a', expected a number (degrees)"),
    (ellipse(10, 10, 5, -1), "radii 2 and -0.2, expected positive"),
    (value_of(rectangle(1, 1, 5, 5), rectanglelabels=[]), "rectanglelabels None: no label, expected one"),
    (rectangle(1, 1, 5, 5, label="a\n"), "label 'a\\n' is no class of"),
    (rectangle(1, 1, 5, 5, image_rotation=90), "image_rotation 90, expected 0"),
    (rectangle(1, 1, 5, 5, original_width=41), "made for an image of another size, expected 40 x 20"),
    (rectangle(1, 1, 5, 5, original_width="wide"), "width 'wide', expected two positive whole numbers"),
    (rectangle(1, 1, 5, 5) | {"value": None}, "no label"),
    (bare(rectangle(1, 1, 5, 5))[0], "rectanglelabels None: no label, expected one"),
    (bare(rectangle(1, 1, 5, 5), "cat")[1], "labels 'cat': shape type 'labels', expected brushlabels, ellipselabels, "),
    (
        more.label_studio_result("bitmasklabels", SIZE, {"imageDataURL": "data:", "bitmasklabels": ["cat"]}),
        "bitmasklabels 'cat': shape type 'bitmasklabels', expected brushlabels",
    ),
    (
        more.label_studio_result("vectorlabels", SIZE, {"vertices": [], "vectorlabels": ["cat"]}),
        "vectorlabels 'cat': shape type 'vectorlabels', expected brushlabels",
    ),
    (rectangle(1, 1, 5, 5) | {"type": None}, "unknown None: shape type 'unknown', expected brushlabels"),
    (value_of(more.brush_result(area(1, 1, 5, 5), "cat"), format="png"), "brush of format 'png', expected 'rle'"),
    (
        value_of(more.brush_result(area(1, 1, 5, 5), "cat"), rle=[1, 256]),
        "expected 'rle' with a list of numbers 0 to 255",
    ),
    (value_of(more.brush_result(area(1, 1, 5, 5), "cat"), rle=[]), "brush is cut off"),
    (
        value_of(more.brush_result(area(1, 1, 5, 5), "cat"), rle=more.brush(np.arange(3200) % 256)[:30]),
        "brush is cut off",
    ),
    (value_of(more.brush_result(area(1, 1, 5, 5), "cat"), rle=[255] * 60), "brush of 4294967295 values of 32 bits"),
    (value_of(more.brush_result(area(1, 1, 5, 5), "cat"), rle=more.brush(np.ones(3196))), "brush of 3196 values of 8"),
    (
        value_of(more.brush_result(area(1, 1, 5, 5), "cat"), rle=[0, 0, 12, 128, 57, 28, 255, *[255] * 60]),
        "brush is damaged: it has more values than the image",
    ),
]


@pytest.mark.parametrize(("shape", "part"), MISTAKES)
def test_a_mistake_of_a_result_is_named_and_can_be_left_out(tmp_path, shape, part):
    path = write(tmp_path, task(rectangle(50, 50, 10, 10, "dog", id="other"), shape))
    more.error_of(lambda: more.read(opened(path)), f"{path}: task 1: result 'Xy12', ", part)
    layers = more.read(opened(path, SKIP_BAD))
    assert len(layers.regions) == 1
    assert len(layers.mistakes) == 1
    assert part in layers.mistakes[0]


def test_the_place_of_a_result_that_was_left_out_is_known(tmp_path):
    results = [
        rectangle(10, 10, 20, 50, image_rotation=90), ellipse(50, 50, 10, 10, image_rotation=90),
        polygon((5, 5), (50, 50)), value_of(more.brush_result(area(1, 1, 5, 5), "cat"), rle=[]),
        rectangle(1, 1, None, 1),
    ]  # fmt: skip
    layers = more.read(opened(write(tmp_path, task(*results)), SKIP_BAD))
    assert layers.unknown == [(2, 4, 12, 12), (8, 16, 12, 24), (1, 2, 10, 20), (0, 0, *SIZE)]
    assert len(layers.mistakes) == 5


def test_the_size_of_another_image(tmp_path):
    path = write(tmp_path, task(rectangle(1, 1, 5, 5, original_width=50)))
    more.error_of(lambda: more.read(opened(path)), "a.png", "made for 50 x 20 pixels, expected 40 x 20")


def test_files_and_tasks_that_are_damaged(tmp_path):
    more.error_of(lambda: opened(tmp_path / "x.json"), "x.json: no such file")
    more.error_of(lambda: opened(tmp_path), "no .json file, expected the export 'JSON' of Label Studio")
    path = write(tmp_path)
    for text, part in (
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "[1], expected a list of tasks"),
        ('{"annotations": []}', "expected a list of tasks"),
        ('[{"image": "a.png", "id": 1, "annotation_id": 2}]', "an export 'JSON-MIN' of Label Studio, expected 'JSON'"),
    ):
        path.write_text(text)
        more.error_of(lambda: opened(path), f"{path}: ", part)
    for row, part in (
        ({"id": 5}, "task 5: no list 'annotations'"),
        ({"annotations": []}, "task 'in row 1': no list 'annotations'"),
        (task() | {"data": {"text": "hello"}}, "task 1: data {'text': 'hello'}, expected the name of an image file"),
        (task() | {"annotations": [1]}, "annotations [1], expected objects"),
        (task() | {"annotations": [{"result": {}}]}, "result {}, expected a list of objects"),
        (task(image="a\n.png"), "image name 'a\\n.png' has control characters"),
    ):
        path = write(tmp_path, row, task(rectangle(1, 1, 5, 5)))
        more.error_of(lambda: opened(path), f"{path}: ", part)  # noqa: B023
        source = opened(path, SKIP_BAD)
        assert len(source.items) == len(source.mistakes.lines) == 1
    path = write(tmp_path, task(rectangle(1, 1, 5, 5)), task(image="/data/upload/1/12345678-b.png"))
    more.error_of(lambda: opened(path), "12345678-b.png: no such image, which", "--skip-missing")
    source = opened(path, SKIP_MISSING)
    assert len(source.items) == len(source.mistakes.lines) == 1
