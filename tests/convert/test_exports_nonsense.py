"""Nonsense in the files of annotation programs is one line that names a file, or harmless; it never takes memory."""

import json
import tracemalloc
from itertools import islice

import numpy as np
import pytest

from tests.convert import forms
from tests.convert import forms_more as more
from tests.convert.test_convert_mistakes import ODD, variants
from upsnet.convert.classes import ClassOptions
from upsnet.convert.cvat import Cvat
from upsnet.convert.label_studio import LabelStudio
from upsnet.convert.layers import compose
from upsnet.convert.orientation import inspect, must_turn
from upsnet.convert.source import Tolerance
from upsnet.convert.supervisely import Supervisely
from upsnet.convert.voc import Voc
from upsnet.convert.yolo import Yolo

SIZE = (10, 12)
TEXTS = ("", "x", "-1", "0", "1e9", "1e400", "nan", "9" * 30, "1,1;2", "\x7f", "\u2028", "../a.png", "a" * 3000, "0x10")


def consume(source):
    for item in source.items:
        picture = inspect(item.path)
        layers = source.read(item, picture)
        must_turn(picture, layers.size, applies_exif=source.applies_exif, annotation=str(item.path))
        compose(layers, source.classes.categories, source.classes.background)


def outcomes(folder, inputs, source_of):
    """How many inputs are an error and how many are harmless. Every second time mistakes are left out."""
    messages, harmless = [], 0
    for row, write in enumerate(inputs):
        write()
        try:
            consume(source_of(Tolerance(bad=row % 2 > 0, missing=row % 2 > 0)))
            harmless += 1
        except (OSError, ValueError) as error:
            messages.append(str(error))
    for message in messages:
        assert len(message.splitlines()) == 1, message
        assert len(message) < 3000
        assert str(folder) in message, message
    return min(len(messages), harmless)


def writers(path, document):
    """A function for every third variant of a document, which writes it."""
    for variant in islice(variants(document), 0, None, 3):
        text = json.dumps(variant)
        yield lambda text=text: path.write_text(text)


@pytest.fixture
def image(tmp_path):
    forms.save(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8))
    return "a.png"


def test_label_studio(tmp_path, image):
    square = {"points": [[1, 1], [50, 1], [50, 50]], "polygonlabels": ["cat"]}
    box = {"x": 1, "y": 1, "width": 20, "height": 20, "rotation": 3, "rectanglelabels": ["cat"]}
    oval = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 20, "rotation": 3, "ellipselabels": ["cat"]}
    pairs = (("polygonlabels", square), ("rectanglelabels", box), ("ellipselabels", oval))
    results = [more.label_studio_result(kind, SIZE, value) for kind, value in pairs]
    results.append(more.brush_result(np.ones(SIZE, bool), "cat", (255,) * 4))
    path = tmp_path / "export.json"
    least = outcomes(
        tmp_path,
        writers(path, [more.label_studio_task(1, image, results)]),
        lambda tolerance: LabelStudio(path, [], ClassOptions(), tolerance),
    )
    assert least > 100


def test_supervisely(tmp_path):
    ring = [[1, 1], [8, 1], [8, 8], [1, 8]]
    mask = np.zeros(SIZE, bool)
    mask[2:4, 3:5] = True
    box = {"classTitle": "dog", "geometryType": "rectangle", "points": {"exterior": [[1, 1], [5, 5]], "interior": []}}
    parts = {"classTitle": "dog", "geometryType": "multipolygon", "parts": [{"exterior": ring[:3]}]}
    objects = [
        more.sly_polygon(ring, "cat", [[2, 2], [3, 2], [3, 3]]),
        box,
        more.sly_bitmap(mask, "cat", instance="k"),
        parts,
    ]
    path = more.write_sly(tmp_path, objects, SIZE)
    least = outcomes(
        tmp_path,
        writers(path, json.loads(path.read_text())),
        lambda tolerance: Supervisely(tmp_path, [], ClassOptions(), tolerance),
    )
    assert least > 100
    more.write_sly(tmp_path, objects, SIZE)
    meta = tmp_path / "meta.json"
    least = outcomes(
        tmp_path,
        writers(meta, json.loads(meta.read_text())),
        lambda tolerance: Supervisely(tmp_path, [], ClassOptions(), tolerance),
    )
    assert least > 10


def test_cvat(tmp_path, image):
    painted = more.cvat_mask(np.ones((3, 4), bool))
    shapes = [
        ("polygon", {"label": "cat", "points": "1,1;5,1;5,5", "z_order": 1, "group_id": 1}),
        ("box", {"label": "cat", "xtl": 1, "ytl": 1, "xbr": 5, "ybr": 5, "rotation": 3, "z_order": 0}),
        ("ellipse", {"label": "dog", "cx": 5, "cy": 5, "rx": 3, "ry": 2, "rotation": 3}),
        ("mask", {"label": "dog", **painted}),
    ]
    sound = {"id": 0, "name": image, "width": SIZE[1], "height": SIZE[0], "subset": "train"}
    path = tmp_path / "a.xml"

    def inputs():
        for row, values in enumerate([sound, *(values for _, values in shapes)]):
            for key in values:
                for text in TEXTS:
                    rows = [dict(v) for v in (sound, *(values for _, values in shapes))]
                    rows[row][key] = text
                    kinds = [kind for kind, _ in shapes]
                    document = more.cvat_document([(rows[0], list(zip(kinds, rows[1:], strict=True)))], ["cat"])
                    yield lambda document=document: path.write_text(document, encoding="utf-8")
        document = more.cvat_document([(sound, shapes)], ["cat"]).encode()
        for place in range(0, len(document), 17):
            yield lambda place=place: path.write_bytes(document[:place])
            yield lambda place=place: path.write_bytes(document[:place] + b"\x00<&" + document[place:])

    least = outcomes(tmp_path, inputs(), lambda tolerance: Cvat(path, [], ClassOptions(), tolerance))
    assert least > 100


def test_yolo(tmp_path):
    forms.save(tmp_path / "images" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    (tmp_path / "labels").mkdir()
    labels, config = tmp_path / "labels" / "a.txt", tmp_path / "data.yaml"
    sound = {"names": ["cat", "dog"], "nc": 2, "path": ".", "train": "images", "val": ["images"]}
    config.write_text(json.dumps(sound))

    def lines():
        for place in range(7):
            for text in TEXTS:
                values = ["0", "0.1", "0.1", "0.9", "0.1", "0.9", "0.9"]
                values[place] = text
                line = " ".join(values)
                yield lambda line=line: labels.write_text(f"1 0.1 0.1 0.9 0.1 0.9 0.9\n{line}\n", "utf-8")

    least = outcomes(tmp_path, lines(), lambda tolerance: Yolo(tmp_path, [], ClassOptions(), tolerance))
    assert least > 25
    labels.write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    texts = [json.dumps({**sound, key: value}) for key in sound for value in (*ODD, *TEXTS)]
    texts += ["x: [", "a: &a [*a]", "&a [*a]", "names: !!python/object:os.system x", "\x00", "[" * 5000]
    least = outcomes(
        tmp_path,
        [lambda text=text: config.write_text(text) for text in texts],
        lambda tolerance: Yolo(config, [], ClassOptions(), tolerance),
    )
    assert least > 10
    config.write_text(json.dumps({**sound, "train": "train.txt", "val": None}))
    least = outcomes(
        tmp_path,
        [lambda text=text: (tmp_path / "train.txt").write_text(f"images/a.png\n{text}\n", "utf-8") for text in TEXTS],
        lambda tolerance: Yolo(config, [], ClassOptions(), tolerance),
    )
    assert least > 2


def test_voc(tmp_path):
    for folder in ("JPEGImages", "SegmentationObject", "SegmentationClass"):
        forms.save(tmp_path / folder / "a.png", np.full((*SIZE, 3), 5, np.uint8))
    labelmap, lists = tmp_path / "labelmap.txt", tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    inputs = [
        lambda text=text: labelmap.write_text(f"a:5,5,5::\n{text}\n", "utf-8") for text in (*TEXTS, "b:::", "c:1,1,1::")
    ]
    least = outcomes(tmp_path, inputs, lambda tolerance: Voc(tmp_path, [], ClassOptions(), tolerance))
    assert least > 2
    labelmap.unlink()
    inputs = [lambda text=text: (lists / "train.txt").write_text(f"a\n{text}\n", "utf-8") for text in TEXTS]
    least = outcomes(tmp_path, inputs, lambda tolerance: Voc(tmp_path, [], ClassOptions(), tolerance))
    assert least > 1


def test_sizes_that_are_declared_take_no_memory(tmp_path, image):
    """The size of an image, of a mask or of its code is compared with the image before anything is made of it."""
    huge = 2**31 - 1
    values = {"label": "cat", "left": 0, "top": 0, "width": huge, "height": huge, "rle": f"0,{huge * huge}"}
    path = tmp_path / "a.xml"
    code = [*more.brush(np.zeros(8)), *[0] * 50]
    code[:4] = [255] * 4
    brush = more.label_studio_result("brushlabels", SIZE, {"format": "rle", "rle": code, "brushlabels": ["cat"]})
    tracemalloc.start()
    for size in ((huge, huge), SIZE):
        declared = {"id": 0, "name": image, "width": size[1], "height": size[0]}
        path.write_text(more.cvat_document([(declared, [("mask", values)])]))
        more.error_of(lambda: consume(Cvat(path, [], ClassOptions())), str(path) if size == SIZE else "made for")
        result = brush | {"original_width": size[1], "original_height": size[0]}
        (tmp_path / "a.json").write_text(json.dumps([more.label_studio_task(1, image, [result])]))
        part = "brush of 4294967295 values" if size == SIZE else "made for"
        more.error_of(lambda: consume(LabelStudio(tmp_path / "a.json", [], ClassOptions())), part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
