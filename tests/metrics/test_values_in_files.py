"""Numbers, flags and ids as people's programs write them: they score as plain ones do, or a line names them."""

import copy
import json

import numpy as np
import pytest

from tests.metrics.test_panoptic_quality import CATEGORIES, write_random
from upsnet.cli.main import main
from upsnet.io.panoptic_png import read_panoptic_png, write_panoptic_png
from upsnet.metrics.instance_ap import mask_rows
from upsnet.metrics.score_files import evaluate_files

SIZE = (20, 30)
IDS = np.ones(SIZE, dtype=np.int32)
IDS[2:10, 2:10], IDS[2:10, 14:24] = 2, 3
SEGMENTS = [
    {"id": 1, "category_id": 7, "area": 456, "iscrowd": 0},
    {"id": 2, "category_id": 1, "area": 64, "iscrowd": 0},
    {"id": 3, "category_id": 1, "area": 80, "iscrowd": 0},
]


def ground_truth():
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in (1, 2)],
        "annotations": [
            {"image_id": i, "file_name": f"{i}.png", "segments_info": copy.deepcopy(SEGMENTS)} for i in (1, 2)
        ],
        "categories": [{"id": 7, "name": "grass", "isthing": 0}, {"id": 1, "name": "cow", "isthing": 1}],
    }


def predictions():
    document = ground_truth()
    for annotation in document["annotations"]:
        for row in annotation["segments_info"]:
            row["score"] = 0.9
    return document


def instances():
    rows = [
        {
            "id": 2 * image + number, "image_id": image, "category_id": 1, "iscrowd": 0, "area": 8 * width,
            "bbox": [x, 2, width, 8], "segmentation": [[x, 2, x + width, 2, x + width, 10, x, 10]],
        }
        for image in (1, 2)
        for number, (x, width) in enumerate(((2, 8), (14, 10)))
    ]  # fmt: skip
    return {"images": ground_truth()["images"], "annotations": rows}


def nothing(document):
    """Changes nothing."""


@pytest.fixture
def score(tmp_path):
    """Writes a ground truth and a prediction of it without a fault, with changes, and scores them."""

    def run(truth=nothing, pred=nothing, inst=None, true_ids=IDS, pred_ids=IDS, **options):
        for name, document, edit in (
            ("gt", ground_truth(), truth), ("pred", predictions(), pred), ("inst", instances(), inst or nothing)
        ):  # fmt: skip
            edit(document)
            (tmp_path / f"{name}.json").write_text(json.dumps(document))
        for name, ids in (("gt", true_ids), ("pred", pred_ids)):
            for number in (1, 2):
                write_panoptic_png(tmp_path / name / f"{number}.png", ids)
        options |= {} if inst is None else {"instances": tmp_path / "inst.json"}
        return evaluate_files(tmp_path / "gt.json", tmp_path / "pred.json", progress=False, workers=1, **options)

    return run


def respelled(value, rng, key=""):
    """A copy in which each number is a whole number, a whole fraction or a text, at random."""
    if isinstance(value, dict):
        return {name: respelled(inner, rng, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [respelled(inner, rng, key) for inner in value]
    if isinstance(value, int):
        forms = [value, float(value), str(value), f"{value}.0"]
        return forms[rng.integers(0, 4)]
    return repr(value) if isinstance(value, float) and rng.random() < 0.5 else value


def random_instances(folder):
    """The things of the ground truth as a COCO instance file."""
    document = json.loads((folder / "gt.json").read_text())
    things = {category.id for category in CATEGORIES.categories if category.is_thing}
    rows = []
    for annotation in document["annotations"]:
        segments = [row for row in annotation["segments_info"] if row["category_id"] in things]
        for row in mask_rows(read_panoptic_png(folder / "gt" / annotation["file_name"]), segments):
            row["segmentation"]["counts"] = row["segmentation"]["counts"].decode()
            rows.append({**row, "id": len(rows) + 1, "image_id": annotation["image_id"]})
    return {"annotations": rows}


@pytest.mark.parametrize("seed", range(6))
def test_numbers_in_any_form_give_the_same_scores(tmp_path, seed):
    rng = np.random.default_rng(seed)
    write_random(rng, tmp_path, images=5)
    documents = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("gt", "pred")}
    for annotation in documents["pred"]["annotations"]:
        for row in annotation["segments_info"]:
            row["score"] = rng.random()
    documents["inst"] = random_instances(tmp_path)
    results = []
    for change in (lambda d: d, lambda d: respelled(d, rng), lambda d: respelled(d, rng)):
        for name, document in documents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(change(document)))
        paths = tmp_path / "gt.json", tmp_path / "pred.json"
        options = {"progress": False, "workers": 1, "strict": True}
        results.append(evaluate_files(*paths, **options)[0])
        results.append(evaluate_files(*paths, instances=tmp_path / "inst.json", **options)[0])
    assert results[0]["panoptic"]["All"]["pq"] > 0
    assert results[0]["panoptic_ap"]["ap"] > 0
    assert results[0] == results[2] == results[4]
    assert results[1] == results[3] == results[5]


def every_annotation(**values):
    return lambda document: [annotation.update(values) for annotation in document["annotations"]]


def of_segment(row, **values):
    return lambda d: [annotation["segments_info"][row].update(values) for annotation in d["annotations"]]


@pytest.mark.parametrize(("value", "things"), [
    (0, 200 / 3), ("0", 200 / 3), (None, 200 / 3), (1, 100), ("1", 100), (1.0, 100), (True, 100),
])  # fmt: skip
def test_an_object_that_is_marked_as_a_crowd_in_any_form_need_not_be_found(score, value, things):
    def without_it(document):
        for annotation in document["annotations"]:
            annotation["segments_info"].pop(1)

    metrics = score(of_segment(1, iscrowd=value), without_it, pred_ids=np.where(IDS == 2, 0, IDS))[0]
    assert metrics["panoptic"]["Things"]["pq"] == pytest.approx(things)


@pytest.mark.parametrize("form", [str, float, "{}.0".format, "{:012d}".format])
def test_ids_of_images_in_any_form_are_those_of_the_ground_truth(score, form):
    def pred(document):
        for annotation in document["annotations"]:
            annotation["image_id"] = form(annotation["image_id"])

    metrics = score(pred=pred, inst=pred, strict=True)[0]
    assert metrics["panoptic"]["All"] == {"pq": 100, "sq": 100, "rq": 100, "n": 2}
    assert metrics["panoptic_ap"]["ap"] == pytest.approx(100)


def test_predictions_of_other_images_only_are_an_error_that_shows_an_id_of_each(score):
    message = r"pred\.json: none of its 2 annotations is for an image of .*gt\.json: .*'1\.jpg' here and 1 there"
    with pytest.raises(ValueError, match=message):
        score(pred=lambda d: [a.update(image_id=f"{a['image_id']}.jpg") for a in d["annotations"]])
    message = r"inst\.json: none of its 4 annotations is for an image of .*gt\.json: .* 51 here and 1 there"
    with pytest.raises(ValueError, match=message):
        score(inst=lambda d: [a.update(image_id=a["image_id"] + 50) for a in d["annotations"]])


def test_some_predictions_of_other_images_are_counted_and_named(score):
    def more(document):
        document["annotations"] += [{**document["annotations"][0], "image_id": key} for key in (8, 9)]

    metrics, problems = score(pred=more, inst=more)
    assert metrics["panoptic"]["All"]["pq"] == 100
    assert metrics["panoptic_ap"]["ap"] == pytest.approx(100)
    assert len(problems) == 2
    assert "pred.json: 2 of 4 annotations are for images that" in problems[0]
    assert "the first has image_id 8: they are not scored" in problems[0]
    assert "inst.json: 2 of 6 annotations are for images that" in problems[1]
    assert "the first has image_id 8: they are left out of AP" in problems[1]


def test_images_that_the_ground_truth_lists_but_does_not_annotate_are_no_fault(score):
    def first_alone(document):
        del document["annotations"][1]

    metrics, problems = score(truth=first_alone, inst=nothing, strict=True)
    assert not problems
    assert metrics["panoptic"]["per_class"]["1"]["tp"] == 2
    assert metrics["panoptic_ap"]["ap"] == pytest.approx(100)


def test_categories_that_the_ground_truth_does_not_have_are_counted(score):
    metrics, problems = score(pred=of_segment(2, category_id=99))
    assert metrics["panoptic"]["per_class"]["1"]["fn"] == 2
    assert len(problems) == 1
    assert "pred.json: category_id 99 is not among the 2 categories of the ground truth" in problems[0]
    assert "count as void: 2, the first is segment 3 of '1.png'" in problems[0]

    def all_other(document):
        for annotation in document["annotations"]:
            for row in annotation["segments_info"]:
                row["category_id"] += 100

    with pytest.raises(ValueError, match=r"none of its 6 segments has a category .* is 107 here and 7 there"):
        score(pred=all_other)


def first(**values):
    return lambda document: document["annotations"][0].update(values)


@pytest.mark.parametrize("edit", [
    every_annotation(iscrowd=None), every_annotation(iscrowd="0"), first(category_id="1"), first(category_id=1.0),
    first(area="64", bbox=["2", 2.0, "8.0", 8]), first(segmentation=[2, 2, 10, 2, 10, 10, 2, 10]),
    first(segmentation=[[2, 2], [10, 2], [10, 10], [2, 10]]), first(image_id="1"),
    first(segmentation={"size": ["20", 30.0], "counts": ["42", 8.0] + [12, 8] * 7 + [410]}),
])  # fmt: skip
def test_instances_in_any_form_score_alike(score, edit):
    assert score(inst=edit, strict=True)[0]["panoptic_ap"]["ap"] == pytest.approx(100)


@pytest.mark.parametrize(("edit", "message"), [
    (first(segmentation={"size": [20, 30], "counts": "b'abc'"}), r"inst\.json: annotation 2: compressed run lengths"),
    (first(segmentation=None), r"inst\.json: annotation 2: no segmentation, expected polygons or run lengths"),
    (lambda d: d["annotations"][0].pop("segmentation"), r"inst\.json: annotation 2: lacks segmentation"),
    (lambda d: d.update(annotations=None), r"inst\.json: 'annotations' is no list of objects"),
    (lambda d: d.update(annotations={"1": {}}), r"inst\.json: 'annotations' is no list of objects"),
    (first(image_id=[1]), r"inst\.json: annotation 2: image_id \[1\], expected a whole number or a text"),
    (first(category_id=[1]), r"inst\.json: annotation 2: category_id \[1\], expected a thing"),
    (first(category_id=True), r"inst\.json: annotation 2: category_id True, expected a thing"),
    (first(iscrowd="false"), r"inst\.json: annotation 2: iscrowd 'false', expected 0 or 1"),
    (first(area=[64]), r"inst\.json: annotation 2: area \[64\], expected a number of pixels"),
    (first(area=float("nan")), r"inst\.json: annotation 2: area nan, expected a number of pixels"),
    (first(bbox=[1, 2, 3]), r"inst\.json: annotation 2: bbox \[1, 2, 3\], expected four numbers"),
])  # fmt: skip
def test_instances_that_cannot_be_used_are_named(score, edit, message):
    with pytest.raises(ValueError, match=message):
        score(inst=edit)


def test_instances_without_a_pixel_are_left_out_and_counted(score):
    def more(document):
        row = document["annotations"][0]
        document["annotations"] += [{**row, "id": 50 + i, "segmentation": s} for i, s in enumerate(([], [[3, 3]]))]

    metrics, problems = score(inst=more)
    assert metrics["panoptic_ap"]["ap"] == pytest.approx(100)
    assert len(problems) == 1
    assert "inst.json: 2 of 6 annotations have no pixel, the first is annotation 50" in problems[0]


def only_stuff(document):
    for annotation in document["annotations"]:
        annotation["segments_info"] = [{**annotation["segments_info"][0], "area": 600}]


def empty(document):
    for annotation in document["annotations"]:
        annotation["segments_info"] = []


def run(folder, capsys, *words):
    """Exit code, the values of the screen by name, and the warnings."""
    paths = ["--gt", folder / "gt.json", "--pred", folder / "pred.json", "--output", folder / "out", "--workers", "1"]
    code = main(["evaluate", *map(str, [*paths, *words])])
    captured = capsys.readouterr()
    shown = dict(line.split(maxsplit=1) for line in captured.out.splitlines() if not line.startswith("report"))
    return code, shown, [line for line in captured.err.splitlines() if line.startswith("warning: ")]


def test_a_group_without_segments_is_a_dash_on_the_screen_and_null_in_the_files(score, tmp_path, capsys):
    one = np.ones_like(IDS)
    score(only_stuff, only_stuff, true_ids=one, pred_ids=one)
    code, shown, warnings = run(tmp_path, capsys, "--boundary", "--report")
    assert (code, warnings) == (0, [])
    assert [shown[name] for name in ("pq", "pq_stuff", "pq_things", "sq_things", "rq_things")] == [
        "100.000", "100.000", "-", "-", "-",
    ]  # fmt: skip
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["panoptic"]
    nothing_found = {"pq": None, "sq": None, "rq": None, "n": 0}
    assert found["Things"] == found["boundary"]["Things"] == nothing_found
    assert found["pq_dagger"]["Things"] is None
    assert found["interval"]["Things"] is None
    assert found["per_class"]["1"]["pq"] is None
    assert found["per_class"]["7"]["pq"] == 100
    page = (tmp_path / "out" / "report.html").read_text()
    assert "PQ, all" in page
    assert "PQ, things" not in page
    row = page[page.index('data-seen="0"') :].partition("</tr>")[0]
    assert row.count('data-value="-1">\N{EN DASH}</td>') == 3, "PQ, SQ and RQ of cow"


def test_nothing_to_score_at_all_is_null_and_no_zero(score, tmp_path, capsys):
    void = np.zeros_like(IDS)
    score(empty, empty, true_ids=void, pred_ids=void)
    code, shown, _ = run(tmp_path, capsys, "--report")
    assert code == 0
    names = ("pq", "sq", "rq", "pq_things", "pq_stuff", "miou_from_panoptic", "pq_dagger")
    assert {shown[name] for name in names} == {"-"}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["panoptic"]["All"]["pq"] is None
    assert metrics["semantic_from_panoptic"]["miou"] is None
    rows = json.loads((tmp_path / "out" / "per_image.json").read_text())["images"]
    assert [row["pq"] for row in rows] == [None, None]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No errors." in page
    assert "None" not in page


def test_the_command_warns_of_predictions_for_other_images(score, tmp_path, capsys):
    score(pred=lambda d: d["annotations"].append({**d["annotations"][0], "image_id": 9}))
    code, shown, warnings = run(tmp_path, capsys)
    assert (code, shown["pq"]) == (0, "100.000")
    assert len(warnings) == 1
    assert "1 of 3 annotations are for images" in warnings[0]
