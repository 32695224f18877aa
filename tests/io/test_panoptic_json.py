"""A COCO-panoptic JSON as programs write it: values whose meaning is certain are read, others are named."""

import json
from array import array

import pytest

from upsnet.io.annotation import ODD_AREA, SegmentColumns
from upsnet.io.panoptic_json import PanopticJson

SEGMENTS = [
    {"id": 1, "category_id": 7, "area": 456, "iscrowd": 0},
    {"id": 2, "category_id": 1, "area": 64, "iscrowd": 1},
]


def document():
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (1, 2)],
        "annotations": [
            {"image_id": i, "file_name": f"{i}.png", "segments_info": [dict(row) for row in SEGMENTS]} for i in (1, 2)
        ],
        "categories": [{"id": 7, "name": "grass", "isthing": 0}, {"id": 1, "name": "cow", "isthing": 1}],
    }


def read(folder, edit=lambda document: None):
    content = document()
    edit(content)
    (folder / "gt").mkdir(exist_ok=True)
    (folder / "gt.json").write_text(json.dumps(content))
    return PanopticJson(folder / "gt.json")


def facts(truth):
    """All that is read, in plain values."""
    rows = [truth.annotations.at(i) for i in range(len(truth.annotations))]
    return (
        [(key, *image) for key, image in truth.images.items()],
        list(truth.annotations),
        [(r.file_name, *(a.tolist() for a in (r.known, r.classes, r.is_crowd, r.areas))) for r in rows],
        truth.categories,
    )


def in_segment(**values):
    return lambda document: document["annotations"][0]["segments_info"][1].update(values)


def in_image(**values):
    return lambda document: document["images"][0].update(values)


def in_category(**values):
    return lambda document: document["categories"][1].update(values)


def in_annotation(**values):
    return lambda document: document["annotations"][0].update(values)


@pytest.mark.parametrize("edit", [
    in_image(height=20.0, width=30.0), in_image(height="20", width="30.0"), in_image(id=1.0),
    in_segment(iscrowd="1"), in_segment(iscrowd=1.0), in_segment(iscrowd=True),
    in_segment(id=2.0), in_segment(id="2"), in_segment(category_id=1.0), in_segment(category_id="1"),
    in_segment(area=64.0), in_segment(area="64"), in_category(id=1.0), in_category(id="1"),
    in_category(isthing=1.0), in_category(isthing="1"), in_category(isthing=True),
    in_annotation(image_id=1.0), in_annotation(image_id="1"), in_annotation(image_id="1.0"),
    in_annotation(image_id="001"),
])  # fmt: skip
def test_values_that_can_only_mean_one_thing_are_read(tmp_path, edit):
    assert facts(read(tmp_path, edit)) == facts(read(tmp_path))


@pytest.mark.parametrize(("value", "expected"), [(None, False), (0, False), ("0", False), (False, False), ("1", True)])
def test_the_crowd_flag_of_a_segment(tmp_path, value, expected):
    assert read(tmp_path, in_segment(iscrowd=value)).annotations[1].is_crowd.tolist() == [False, expected]


def test_a_missing_crowd_flag_and_area_are_no_fault(tmp_path):
    annotation = read(tmp_path, lambda d: [d["annotations"][0]["segments_info"][1].pop(k) for k in ("iscrowd", "area")])
    assert annotation.annotations[1].is_crowd.tolist() == [False, False]
    assert annotation.annotations[1].areas.tolist() == [456, -1]


@pytest.mark.parametrize(("edit", "message"), [
    (in_image(height=20.5), r"gt\.json: image '1\.jpg' height is 20\.5, expected a whole number from 1 to 1000000"),
    (in_image(width="wide"), r"image '1\.jpg' width is 'wide', expected a whole number"),
    (in_image(height=0), r"image '1\.jpg' has size 0 x 30, expected 1 to 1000000 a side"),
    (in_image(height=True), r"image '1\.jpg' height is True"),
    (in_image(height=None, width=[]), r"image '1\.jpg' lacks height; width is \[\], expected"),
    (in_image(id=1.5), r"image '1\.jpg' id is 1\.5, expected a whole number of 64 bits or a text"),
    (in_image(id=2**64), r"image '1\.jpg' id is 18446744073709551616"),
    (in_image(id=2.0), r"image id 2 appears twice in 'images'"),
    (in_image(file_name=5), r"image 5 file_name is 5, expected a text"),
    (in_image(file_name="../1.jpg"), r"image '\.\./1\.jpg' has a file name that leaves its folder, expected"),
    (in_annotation(file_name="../1.png"), r"annotation '\.\./1\.png' has a file name that leaves its folder"),
    (in_segment(iscrowd="yes"), r"gt\.json: annotation '1\.png': iscrowd 'yes' of segment 2, expected 0 or 1"),
    (in_segment(iscrowd=2), r"annotation '1\.png': iscrowd 2 of segment 2, expected 0 or 1"),
    (in_segment(iscrowd=[1]), r"annotation '1\.png': iscrowd \[1\] of segment 2, expected 0 or 1"),
    (in_segment(id=2.5), r"annotation '1\.png': segment id 2\.5, expected a whole number from 1 to 16777215"),
    (in_segment(id=True), r"segment id True, expected"),
    (in_segment(id=0), r"segment id 0, expected"),
    (in_segment(id="1"), r"annotation '1\.png': segment id 1 appears twice, expected once"),
    (in_segment(category_id="cow"), r"annotation '1\.png': category_id 'cow' of segment 2, expected one of the 2"),
    (in_segment(category_id=True), r"category_id True of segment 2, expected one of the 2 categories"),
    (in_segment(category_id=[1]), r"category_id \[1\] of segment 2, expected"),
    (in_category(isthing="yes"), r"category 'cow' has isthing='yes', expected 0 or 1"),
    (in_category(isthing=None), r"category 'cow' has isthing=None, expected 0 or 1"),
    (in_category(id=1.5), r"category 'cow' has id 1\.5, expected a whole number"),
    (in_category(id="7"), r"category id 7 appears more than once"),
    (in_annotation(image_id=9), r"annotation '1\.png' has image_id 9, expected one of 'images' \(the first is 1\)"),
    (in_annotation(image_id=[1]), r"annotation '1\.png' has image_id \[1\], expected one of 'images'"),
    (in_annotation(image_id=True), r"annotation '1\.png' has image_id True, expected one of 'images'"),
    (in_annotation(image_id=None), r"annotation '1\.png' lacks image_id"),
    (in_annotation(image_id="2"), r"image 2 has two annotations, expected one"),
    (in_annotation(file_name=5), r"annotation 5 file_name is 5, expected a text"),
    (in_annotation(segments_info=5), r"annotation '1\.png' lacks segments_info, expected a list of objects"),
])  # fmt: skip
def test_other_values_are_named(tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, edit)


def test_two_images_whose_ids_differ_only_in_kind_are_two_images(tmp_path):
    def edit(document):
        document["images"][1]["id"] = "1"
        document["annotations"][1]["image_id"] = "1"

    truth = read(tmp_path, edit)
    assert [truth.annotations[key].file_name for key in (1, "1")] == ["1.png", "2.png"]


def test_plain_numbers_and_odd_forms_of_them_are_packed():
    plain = SegmentColumns.of(SEGMENTS)
    as_text = SegmentColumns.of([{key: str(value) for key, value in row.items()} for row in SEGMENTS])
    assert plain == as_text
    assert all(isinstance(column, array) for column in plain[:4])
    assert SegmentColumns.of([{**SEGMENTS[0], "area": 4.5}]).areas.tolist() == [ODD_AREA]
    assert SegmentColumns.of([{"score": "0.5"}, {"score": 1}, {}]).scores[:2].tolist() == [0.5, 1.0]
    assert SegmentColumns.of([{"score": None}, {"score": float("nan")}]).scores == ()
