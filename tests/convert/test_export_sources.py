"""What all sources of annotation programs' exports have in common."""

import json
import pickle

import numpy as np
import pytest

from tests.convert import forms
from tests.convert import forms_more as more
from upsnet.convert.classes import ClassOptions
from upsnet.convert.cvat import Cvat
from upsnet.convert.label_studio import LabelStudio
from upsnet.convert.layers import compose
from upsnet.convert.run import convert
from upsnet.convert.source import Tolerance
from upsnet.convert.supervisely import Supervisely
from upsnet.convert.voc import Voc
from upsnet.convert.yolo import Yolo
from upsnet.data.shapes import CATEGORIES

SIZE = (20, 20)
SOURCES = {
    Cvat: more.write_cvat, LabelStudio: more.write_label_studio, Supervisely: more.write_supervisely,
    Voc: more.write_voc, Yolo: more.write_yolo,
}  # fmt: skip


@pytest.mark.parametrize("source_type", SOURCES)
def test_a_source_travels_to_other_processes(source_type, tmp_path):
    path = SOURCES[source_type](more.shapes_without_crowds()[:2], CATEGORIES, tmp_path)
    source = source_type(path, [], ClassOptions())
    copied = pickle.loads(pickle.dumps(source))
    for (name, mask), (other, same) in zip(more.masks(source, 1), more.masks(copied, 1), strict=True):
        assert name == other
        assert np.array_equal(mask, same)


def two_objects(kind, folder):
    """One sound object in pixels 1 to 5 and one with a mistake in pixels 10 to 15, of an image of 20 x 20."""
    forms.save(folder / "images" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    if kind is Cvat:
        boxes = [{"label": "cat", "xtl": p, "ytl": p, "xbr": p + 5, "ybr": p + 5} for p in (1, 10)]
        boxes[1]["z_order"] = "front"
        image = {"id": 0, "name": "a.png", "width": 20, "height": 20}
        (folder / "a.xml").write_text(more.cvat_document([(image, [("box", values) for values in boxes])]))
        return folder / "a.xml"
    if kind is LabelStudio:
        values = [{"x": p * 5, "y": p * 5, "width": 25, "height": 25, "rectanglelabels": ["cat"]} for p in (1, 10)]
        results = [more.label_studio_result("rectanglelabels", SIZE, value) for value in values]
        results[1]["image_rotation"] = 90
        (folder / "a.json").write_text(f"[{json.dumps(more.label_studio_task(1, 'a.png', results))}]")
        return folder / "a.json"
    if kind is Supervisely:
        squares = [[[p, p], [p + 4, p], [p + 4, p + 4], [p, p + 4]] for p in (1, 10)]
        objects = [more.sly_polygon(squares[0], "cat"), more.sly_polygon(squares[1], "cat", instance=[])]
        more.write_sly(folder, objects, SIZE)
        return folder
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("0 .05 .05 .3 .05 .3 .3 .05 .3\n7 .5 .5 .75 .5 .75 .75 .5 .75\n")
    (folder / "data.yaml").write_text("names: [cat]")
    return folder / "data.yaml"


@pytest.mark.parametrize("source_type", [Cvat, LabelStudio, Supervisely, Yolo])
def test_an_object_that_is_left_out_is_listed_and_its_pixels_are_void(source_type, tmp_path):
    path = two_objects(source_type, tmp_path)
    source = source_type(path, [], ClassOptions(), Tolerance(bad=True))
    summary = convert(source, tmp_path / "out", ["train"], workers=1, progress=False)
    assert len(summary.mistakes) == 1
    assert str(tmp_path) in summary.mistakes[0]
    sample = forms.opened(tmp_path / "out")[0]
    expected = np.ones(SIZE, int)
    expected[1:6, 1:6], expected[10:15, 10:15] = 2, 0
    assert np.array_equal(sample.segment_map, expected)
    more.error_of(
        lambda: convert(source_type(path, [], ClassOptions()), tmp_path / "strict", ["train"], progress=False),
        summary.mistakes[0],
    )
    assert not (tmp_path / "strict").exists()


def unknown_object(kind, folder):
    """An image of 20 x 20 whose only object is of a kind that cannot be drawn."""
    forms.save(folder / "images" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    if kind is Cvat:
        image = {"id": 0, "name": "a.png", "width": 20, "height": 20}
        (folder / "a.xml").write_text(more.cvat_document([(image, [("cuboid", {"label": "cat"})])]))
        return folder / "a.xml"
    if kind is LabelStudio:
        result = more.label_studio_result("bitmasklabels", SIZE, {"bitmasklabels": ["cat"]})
        (folder / "a.json").write_text(f"[{json.dumps(more.label_studio_task(1, 'a.png', [result]))}]")
        return folder / "a.json"
    more.write_sly(folder, [{"classTitle": "cat", "geometryType": "alpha_mask"}], SIZE)
    return folder


@pytest.mark.parametrize("source_type", [Cvat, LabelStudio, Supervisely])
def test_an_image_of_objects_that_cannot_be_drawn_is_not_background(source_type, tmp_path):
    path = unknown_object(source_type, tmp_path)
    more.error_of(lambda: more.read(source_type(path, [], ClassOptions())), str(tmp_path), "'cat': shape type ")
    source = source_type(path, [], ClassOptions(), Tolerance(bad=True))
    assert [item.is_annotated for item in source.items] == [True]
    made = compose(more.read(source), source.classes.categories, source.classes.background)
    assert source.classes.background is not None
    assert (made.segment_map == 0).all()
