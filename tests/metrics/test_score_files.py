"""Files that contradict each other: what is said, and how it counts."""

import json
import re

import numpy as np
import pytest

from tests.metrics.test_panoptic_quality import CATEGORIES, change, write_random
from upsnet.io.panoptic_png import read_panoptic_png, write_panoptic_png
from upsnet.io.predictions import PanopticWriter
from upsnet.metrics.score_files import evaluate_files, score_files
from upsnet.report.collector import ReportCollector

RIGHT = np.array([[1, 1, 2, 2], [1, 1, 3, 3]], dtype=np.int32) * 70000
CLASSES = {70000: 2, 140000: 8, 210000: 11}  # a stuff and two things


def write(folder, name, images):
    writer = PanopticWriter(folder / f"{name}.json", CATEGORIES)
    for number, ids in enumerate(images):
        names, areas = np.unique(ids, return_counts=True)
        rows = [
            {"id": i, "category_id": CLASSES[i], "area": area}
            for i, area in zip(names.tolist(), areas.tolist(), strict=True)
        ]
        writer.add(number, f"{number}.jpg", ids, rows)
    writer.close()


@pytest.fixture
def pair(tmp_path):
    """Two images, predicted without a fault."""
    for name in ("gt", "pred"):
        write(tmp_path, name, [RIGHT, RIGHT])
    return tmp_path


def evaluate(folder, **options):
    return evaluate_files(folder / "gt.json", folder / "pred.json", progress=False, **options)


def counts(metrics):
    """Category id -> (tp, fp, fn)."""
    rows = {key: (row["tp"], row["fp"], row["fn"]) for key, row in metrics["panoptic"]["per_class"].items()}
    return {int(key): row for key, row in rows.items() if any(row)}


ALL = {2: (2, 0, 0), 8: (2, 0, 0), 11: (2, 0, 0)}
ONE_MISSED = {2: (1, 0, 1), 8: (1, 0, 1), 11: (1, 0, 1)}


def first(folder, name="pred"):
    return folder / name / "0.png"


def overwrite(path, old, new):
    ids = read_panoptic_png(path)
    write_panoptic_png(path, np.where(ids == old, new, ids))


def of_segments(edit, name="pred"):
    return lambda folder: change(folder / f"{name}.json", lambda d: edit(d["annotations"][0]["segments_info"]))


FAULTS = {
    "no prediction": (
        lambda f: change(f / "pred.json", lambda d: d["annotations"].pop(0)),
        r"pred\.json: no prediction for 1 of 2 images, the first is 0\.png",
        ONE_MISSED,
    ),
    "no png": (lambda f: first(f).unlink(), r"pred/0\.png: no such panoptic PNG", ONE_MISSED),
    "damaged png": (
        lambda f: first(f).write_bytes(first(f).read_bytes()[:-30]),
        r"pred/0\.png: cannot be read as a panoptic PNG",
        ONE_MISSED,
    ),
    "another size": (
        lambda f: write_panoptic_png(first(f), RIGHT[:, :3]),
        r"pred/0\.png: prediction has size \(2, 3\), expected \(2, 4\)",
        ONE_MISSED,
    ),
    "id only in the png": (
        lambda f: overwrite(first(f), 140000, 5),
        r"pred/0\.png: segment id 5 is not in .*pred\.json",
        {2: (2, 0, 0), 8: (1, 0, 1), 11: (2, 0, 0)},
    ),
    "id only in the json": (
        of_segments(lambda rows: rows.append({"id": 7, "category_id": 2, "area": 3})),
        r"pred\.json: segment 7 of 0\.png has no pixel",
        ALL,
    ),
    "unknown category": (
        of_segments(lambda rows: rows[1].update(category_id=99)),
        r"pred\.json: category_id 99 is not among the 5 categories of .*: 1, the first is segment 140000 of '0\.png'",
        {2: (2, 0, 0), 8: (1, 0, 1), 11: (2, 0, 0)},
    ),
    "id twice": (
        of_segments(lambda rows: rows.append(dict(rows[0]))),
        r"pred\.json: annotation '0\.png': segment id 70000 appears twice, expected once",
        ALL,
    ),
    "two annotations": (
        lambda f: change(f / "pred.json", lambda d: d["annotations"].append(d["annotations"][0])),
        r"pred\.json: image 0 has two annotations",
        ALL,
    ),
    "no segments": (
        lambda f: change(f / "pred.json", lambda d: d["annotations"][0].pop("segments_info")),
        r"pred\.json: annotation '0\.png' lacks segments_info, expected a list of objects",
        ONE_MISSED,
    ),
    "segments that are none": (
        lambda f: change(f / "pred.json", lambda d: d["annotations"][0].update(segments_info=None)),
        r"pred\.json: annotation '0\.png' lacks segments_info, expected a list of objects",
        ONE_MISSED,
    ),
    "odd id": (
        of_segments(lambda rows: rows[1].update(id="140000.5")),
        r"pred\.json: annotation '0\.png': segment id '140000\.5', expected a whole number",
        {2: (2, 0, 0), 8: (1, 0, 1), 11: (2, 0, 0)},
    ),
    "huge id": (
        of_segments(lambda rows: rows[1].update(id=2**70)),
        r"pred\.json: annotation '0\.png': segment id 1180591620717411303424, expected a whole number",
        {2: (2, 0, 0), 8: (1, 0, 1), 11: (2, 0, 0)},
    ),
    "odd category": (
        of_segments(lambda rows: rows[1].update(category_id=None)),
        r"pred\.json: category_id None is not among the 5 categories",
        {2: (2, 0, 0), 8: (1, 0, 1), 11: (2, 0, 0)},
    ),
    "no image id": (
        lambda f: change(f / "pred.json", lambda d: d["annotations"][0].pop("image_id")),
        r"pred\.json: annotation '0\.png' lacks image_id",
        ONE_MISSED,
    ),
    "image that the ground truth does not have": (
        lambda f: change(f / "pred.json", lambda d: d["annotations"][0].update(image_id="other")),
        r"pred\.json: 1 of 2 annotations are for images that .*gt\.json does not have, the first has image_id 'other'",
        ONE_MISSED,
    ),
    "odd score": (
        of_segments(lambda rows: rows[1].update(score="high")),
        r"pred\.json: annotation '0\.png': score 'high' of segment 140000, expected a number",
        ALL,
    ),
    "odd crowd flag": (
        of_segments(lambda rows: rows[1].update(iscrowd="yes")),
        r"pred\.json: annotation '0\.png': iscrowd 'yes' of segment 140000, expected 0 or 1",
        ALL,
    ),
    "wrong area": (
        of_segments(lambda rows: rows[0].update(area=669)),
        r"pred\.json: segment 70000 of 0\.png has area 669, its pixels are 4",
        ALL,
    ),
    "wrong true area": (
        of_segments(lambda rows: rows[0].update(area=669), "gt"),
        r"gt\.json: segment 70000 of 0\.png has area 669, its pixels are 4",
        ALL,
    ),
    "true id only in the png": (
        of_segments(lambda rows: rows.pop(), "gt"),
        r"gt/0\.png: segment id 210000 is not in .*gt\.json",
        {2: (2, 0, 0), 8: (2, 0, 0), 11: (1, 0, 0)},
    ),
    "true id only in the json": (
        of_segments(lambda rows: rows.append({"id": 7, "category_id": 2}), "gt"),
        r"gt\.json: segment 7 of 0\.png has no pixel",
        {**ALL, 2: (2, 0, 1)},
    ),
    "no true png": (
        lambda f: first(f, "gt").unlink(),
        r"gt/0\.png: no such panoptic PNG",
        dict.fromkeys(ALL, (1, 0, 0)),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_counts_as_documented_and_is_an_error_if_strict(pair, name):
    assert counts(evaluate(pair)[0]) == ALL
    break_it, message, expected = FAULTS[name]
    break_it(pair)
    metrics, problems = evaluate(pair)
    assert counts(metrics) == expected
    assert any(re.search(message, line) for line in problems), problems
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(pair, strict=True)


def test_files_without_a_fault_pass_strictly(pair):
    metrics, problems = evaluate(pair, strict=True)
    assert not problems
    assert metrics["panoptic"]["All"] == {"pq": 100, "sq": 100, "rq": 100, "n": 3}
    assert metrics["semantic_from_panoptic"]["miou"] == 100
    assert metrics["semantic"] is metrics["instance_ap"] is metrics["panoptic_ap"] is None
    assert metrics["panoptic"]["boundary"] is None
    assert evaluate(pair, boundary=True)[0]["panoptic"]["boundary"]["All"]["pq"] == 100


def test_an_area_that_the_json_does_not_give_contradicts_nothing(pair):
    for name in ("gt", "pred"):
        of_segments(lambda rows: [row.pop("area") for row in rows], name)(pair)
    assert counts(evaluate(pair, strict=True)[0]) == ALL


@pytest.mark.parametrize("edit", [lambda d: d.pop("annotations"), lambda d: d["categories"].pop(0)])
def test_a_truth_that_is_none_is_an_error_anyway(pair, edit):
    change(pair / "gt.json", edit)
    with pytest.raises(ValueError, match=r"gt\.json"):
        evaluate(pair)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_workers_gives_the_same_bits(tmp_path):
    write_random(np.random.default_rng(1), tmp_path, images=50)
    (tmp_path / "pred" / "30.png").unlink()
    results = [json.dumps(evaluate(tmp_path, workers=workers, boundary=True), sort_keys=True) for workers in (1, 2, 3)]
    assert results[0] == results[1] == results[2]
    assert "30.png: no such" in results[0]


def test_miou_counts_predicted_void_as_a_miss(pair):
    overwrite(first(pair), 140000, 0)
    change(pair / "pred.json", lambda d: d["annotations"][0]["segments_info"].pop(1))
    semantic = evaluate(pair, strict=True)[0]["semantic_from_panoptic"]
    assert semantic["per_class"]["8"] == {"name": "c2", "iou": 50.0}
    assert {key: row["iou"] for key, row in semantic["per_class"].items()} == {
        "2": 100.0, "5": None, "8": 50.0, "11": 100.0, "14": None,
    }  # fmt: skip
    assert semantic["miou"] == pytest.approx(250 / 3)
    assert semantic["pixel_accuracy"] == 100 * 14 / 16


def test_ap_needs_scores_and_takes_the_instance_file_where_given(pair):
    def give_scores(document):
        for annotation in document["annotations"]:
            for row in annotation["segments_info"]:
                if row["category_id"] > 5:
                    row["score"] = 0.9

    change(pair / "pred.json", give_scores)
    assert evaluate(pair, strict=True)[0]["panoptic_ap"]["ap"] == pytest.approx(100)
    instances = {
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 8, "area": 2, "bbox": [2, 0, 2, 1], "iscrowd": 0,
             "segmentation": [[2, 0, 4, 0, 4, 1, 2, 1]]},
        ]
    }  # fmt: skip
    (pair / "instances.json").write_text(json.dumps(instances))
    found = evaluate(pair, strict=True, instances=pair / "instances.json")[0]["panoptic_ap"]
    assert found["ap"] == pytest.approx(100), "one object of class 8; class 11 has none"
    assert found["ground_truth"] == "instances"
    per_class = {key: row["ap"] for key, row in found["per_class"].items()}
    assert per_class == {"8": pytest.approx(100), "11": None, "14": None}
    instances["annotations"][0]["category_id"] = 2
    (pair / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(ValueError, match="category_id 2, expected a thing"):
        evaluate(pair, instances=pair / "instances.json")
    change(pair / "pred.json", lambda d: d["annotations"][0]["segments_info"][1].pop("score"))
    metrics, problems = evaluate(pair)
    assert metrics["panoptic_ap"] is None
    assert "1 of 4 things lack a score" in problems[0]


@pytest.mark.parametrize(("score", "with_ap"), [(0, True), (None, False)])
def test_a_score_of_zero_is_one_and_null_is_none(pair, score, with_ap):
    change(
        pair / "pred.json",
        lambda d: [row.update(score=score) for image in d["annotations"] for row in image["segments_info"]],
    )
    assert (evaluate(pair, strict=True)[0]["panoptic_ap"] is not None) == with_ap


def test_rows_of_images_name_the_worst(pair):
    overwrite(first(pair), 140000, 0)
    rows = score_files(pair / "gt.json", pair / "pred.json", progress=False).panoptic.per_image()["images"]
    assert [row["pq"] for row in rows] == [pytest.approx(200 / 3), 100]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("area", 1e30, "an area that is no number"), ("area", {}, "an area that is no number"),
        ("area", 4.5, "an area that is no number"), ("category_id", [1], "category_id [1]"),
        ("id", "x", "segment id 'x'"), ("score", {}, "score {}"), ("score", 10**400, "score a number of more than 100"),
        ("score", float("inf"), "score inf"), ("score", float("nan"), None), ("iscrowd", "0", None),
    ],
)  # fmt: skip
def test_nonsense_in_a_field_is_named_or_counts_as_nothing(pair, field, value, said):
    change(pair / "pred.json", lambda d: d["annotations"][0]["segments_info"][0].update({field: value}))
    metrics, problems = evaluate(pair)
    assert metrics["panoptic"]["All"]["n"] == 3
    assert (not problems) if said is None else said in problems[0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(annotations=None), r"pred\.json: 'annotations' is no list of objects"),
        (lambda d: d.update(annotations=[5]), r"pred\.json: 'annotations' is no list of objects"),
    ],
)
def test_a_json_of_another_kind_is_named(pair, edit, message):
    change(pair / "pred.json", edit)
    with pytest.raises(ValueError, match=message):
        evaluate(pair)


def test_no_thing_among_scored_predictions_is_an_ap_of_zero(pair):
    def only_stuff(document):
        for annotation in document["annotations"]:
            annotation["segments_info"] = [{**annotation["segments_info"][0], "score": 1.0}]

    change(pair / "pred.json", only_stuff)
    assert evaluate(pair)[0]["panoptic_ap"]["ap"] == 0


def test_a_broken_photograph_costs_its_picture_alone(pair):
    def collector(categories):
        return ReportCollector(categories, 1)

    (pair / "photographs").mkdir()
    for number in range(2):
        (pair / "photographs" / f"{number}.jpg").write_bytes(b"no picture")
    scores = score_files(
        pair / "gt.json", pair / "pred.json", report=collector, image_dir=pair / "photographs", progress=False
    )
    assert len(scores.problems) == 1, "one image is both the worst and the best"
    assert "0.jpg: cannot be read as an image" in scores.problems[0]
    assert counts(scores.metrics()) == ALL
