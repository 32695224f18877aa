"""Differences of two evaluations: by hand, in simulations with a known difference, and from files of every format."""

import json
import math

import numpy as np
import pytest

from upsnet.categories import CategorySet
from upsnet.io.files import write_json
from upsnet.metrics.comparison import Side, changed_images, compare, paired_differences, read_sides
from upsnet.metrics.document import compute_metrics
from upsnet.metrics.panoptic_quality import PanopticQuality, SegmentTable
from upsnet.metrics.per_image import read_evaluation, write_per_image
from upsnet.metrics.score_table import EVERYTHING, MATCHED, MISSED, SPURIOUS, ScoreTable, group_scores, partition_sums
from upsnet.metrics.slices import read_attributes

CATEGORIES = CategorySet.from_json(
    [{"id": 10 + i, "name": f"c{i}", "isthing": int(i > 0), "color": [i, 0, 0]} for i in range(3)], source="test"
)
FOUND = ([[1, 1, 2, 2]], [0, 1])
SHIFTED = ([[1, 1, 1, 2]], [0, 1])
MISSES = ([[1, 1, 0, 0]], [0])
NOTHING = ([[0, 0, 0, 0]], [])
CONFUSED = ([[1, 1, 2, 2]], [0, 2])


def write(folder, *predictions, truth=FOUND, first=0):
    """An evaluation folder of images with one ground truth and the given predictions (ids, classes)."""
    meter = PanopticQuality(CATEGORIES)
    for key, (ids, classes) in enumerate(predictions, first):
        tables = SegmentTable.of(truth[1]), SegmentTable.of(classes)
        meter.update(key, np.array(truth[0]), tables[0], np.array(ids), tables[1], f"{key}.png")
    write_json(folder / "metrics.json", compute_metrics(meter))
    write_per_image(folder / "per_image.json", meter.per_image())
    return folder


def compared(*folders, **options):
    a, b = read_sides([[folder] if not isinstance(folder, list) else folder for folder in folders])
    return compare(a, b, **options)


def test_differences_by_hand(tmp_path):
    a, b = write(tmp_path / "a", FOUND, FOUND), write(tmp_path / "b", FOUND, MISSES)
    found = compared(a, b)
    assert (found["All"]["pq"]["a"], found["All"]["pq"]["b"]) == (100, pytest.approx((100 + 100 / 1.5) / 2))
    assert found["All"]["pq"]["difference"] == pytest.approx(-50 / 3)
    low, high = found["All"]["pq"]["interval"]
    assert (low, high) == (-50, 0), "the second image twice, and the first image twice"
    assert found["Things"]["rq"]["difference"] == pytest.approx(-100 / 3)
    assert found["per_class"]["10"]["pq"] == {"a": 100, "b": 100, "difference": 0, "interval": [0, 0]}
    assert found["per_class"]["12"]["pq"] == {"a": None, "b": None, "difference": None, "interval": None}
    assert found["causes"]["void"]["errors"]["difference"] == 1
    assert found["causes"]["void"]["lost_pq"]["difference"] == pytest.approx(50 / 3), "fixed, it gives all of it back"
    assert found["causes"]["missed"]["errors"]["difference"] == 0
    small = found["slices"]["object_size"]["small"]
    assert (small["images"], small["segments"], small["All"]) == (2, 4, found["All"])
    assert [(row["file_name"], row["difference"]) for row in found["images"]] == [("1.png", -50), ("0.png", 0)]
    assert found["others"]["miou_from_panoptic"]["difference"] < 0
    assert found["notes"] == []


@pytest.mark.parametrize(("b", "verdict"), [(FOUND, "better"), (NOTHING, "worse"), (SHIFTED, "not shown")])
def test_the_verdict_says_on_which_side_of_0_the_interval_is(tmp_path, b, verdict):
    a = write(tmp_path / "a", *[SHIFTED] * 4)
    assert compared(a, write(tmp_path / "b", *[b] * 4))["verdict"] == verdict


def test_an_evaluation_against_itself_differs_by_0_with_a_zero_interval(tmp_path):
    rng = np.random.default_rng(0)
    folder = write(tmp_path / "a", *[[FOUND, SHIFTED, MISSES, CONFUSED][i] for i in rng.integers(0, 4, 30)])
    found = compared(folder, folder)
    scores = [found["All"]["pq"], found["Things"]["sq"], *(row["pq"] for row in found["per_class"].values())]
    scores += [found["causes"]["void"]["lost_pq"], found["slices"]["crowding"]["1 to 4"]["Stuff"]["rq"]]
    for score in scores:
        assert score["a"] == score["b"] is not None
        assert score["difference"] == 0
        assert score["interval"] == [0, 0]


def test_one_image_has_differences_without_intervals(tmp_path):
    found = compared(write(tmp_path / "a", FOUND), write(tmp_path / "b", MISSES))
    assert found["All"]["pq"]["difference"] < 0
    assert found["All"]["pq"]["interval"] is None
    assert found["verdict"] == "no interval"


def test_an_image_without_segments_counts_as_right_where_the_other_side_invents_some(tmp_path):
    empty = ([[0, 0, 0, 0]], [])
    labelled = ([[0, 0, 0, 1]], [1])
    a = write(tmp_path / "a", empty, empty, truth=([[1, 1, 1, 1]], [0]))
    b = write(tmp_path / "b", empty, labelled, truth=([[1, 1, 1, 1]], [0]))
    assert [row["difference"] for row in changed_images(*read_sides([[a], [b]]))] == [0, 0], "PQ 0 on both sides"
    none = write(tmp_path / "none", empty, empty, truth=([[0, 0, 0, 0]], []))
    rows = changed_images(*read_sides([[none], [b]]))
    assert [(row["a"], row["b"], row["difference"]) for row in rows] == [(100, 0, -100)] * 2


def test_other_images_or_classes_are_refused(tmp_path):
    a, b = write(tmp_path / "a", *[FOUND] * 5), write(tmp_path / "b", *[FOUND] * 3, first=3)
    with pytest.raises(
        ValueError, match=r"b: lacks 3 of the 5 images of .*a \(the first is 0\) and has 1 other images"
    ):
        compared(a, b)
    other = write(tmp_path / "other", *[FOUND] * 5)
    change(other / "per_image.json", lambda d: d["categories"][1].update(name="cat"))
    with pytest.raises(ValueError, match="category id 11 is"):
        compared(a, other)


def test_classes_may_have_another_order(tmp_path):
    a, b = write(tmp_path / "a", FOUND, CONFUSED), write(tmp_path / "b", FOUND, CONFUSED)
    change(b / "per_image.json", lambda d: d["categories"].reverse())
    found = compared(a, b)
    for row in (found["All"], *found["per_class"].values()):
        assert row["pq"]["a"] == row["pq"]["b"] is not None
        assert row["pq"]["interval"] == [0, 0]
    assert found["notes"] == []


def test_folders_that_would_give_wrong_numbers_are_refused(tmp_path):
    a, b = write(tmp_path / "a", FOUND, FOUND), write(tmp_path / "b", MISSES, FOUND)
    with pytest.raises(ValueError, match="a: appears twice on one side, expected each run once"):
        compared([a, tmp_path / "b" / ".." / "a"], b)
    change(b / "per_image.json", lambda d: d["images"][1].update(image_id="0"))
    with pytest.raises(
        ValueError, match=r"b: lacks 1 of the 2 images of .*a \(the first is 1\) and has 1 other images"
    ):
        compared(a, b)
    mixed = write(tmp_path / "mixed", MISSES, FOUND)
    (mixed / "metrics.json").write_bytes((a / "metrics.json").read_bytes())
    with pytest.raises(ValueError, match=r"mixed: per_image.json gives PQ .* and metrics.json gives 100.0, expected"):
        compared(a, mixed)
    (mixed / "metrics.json").write_text("null")
    with pytest.raises(ValueError, match="not a JSON object"):
        compared(a, mixed)


def test_ids_may_be_numbers_on_one_side_and_texts_on_the_other(tmp_path):
    a, b = write(tmp_path / "a", FOUND, MISSES), write(tmp_path / "b", FOUND, MISSES)
    change(b / "per_image.json", lambda d: [row.update(image_id=f"00{row['image_id']}") for row in d["images"]])
    assert compared(a, b)["All"]["pq"]["interval"] == [0, 0]


def test_a_corrected_ground_truth_is_noted(tmp_path):
    a = write(tmp_path / "a", FOUND, FOUND)
    b = write(tmp_path / "b", FOUND, FOUND, truth=([[1, 1, 1, 2]], [0, 1]))
    assert compared(a, b)["notes"] == [
        f"{b} has another ground truth than {a} in 2 of 2 images: the ground truth causes a part of the differences"
    ]


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def as_format_1(folder):
    """Rewrites an evaluation as earlier versions wrote it."""
    document, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("per_image", "metrics"))
    names = ("image_id", "pq", "sq", "rq", "n", "tp", "fp", "fn")
    write_json(folder / "per_image.json", [{name: row[name] for name in names} for row in document["images"]])
    semantic = metrics["semantic_from_panoptic"]
    write_json(folder / "metrics.json", {"panoptic": metrics["panoptic"], "semantic": semantic, "instance": None})


def test_files_of_format_1_are_compared_with_what_they_have(tmp_path):
    a, b = write(tmp_path / "a", FOUND, FOUND), write(tmp_path / "b", FOUND, MISSES)
    today = compared(a, b)
    as_format_1(a)
    found = compared(a, b)
    for place in (("All", "pq"), ("Things", "rq"), ("Stuff", "sq")):
        old, new = found[place[0]][place[1]], today[place[0]][place[1]]
        assert old["difference"] == pytest.approx(new["difference"])
        assert old["interval"] is None
    assert found["per_class"]["11"]["pq"]["difference"] == pytest.approx(today["per_class"]["11"]["pq"]["difference"])
    assert [row["difference"] for row in found["images"]] == [row["difference"] for row in today["images"]]
    assert found["images"][0]["file_name"] == "1.png", "the other side knows it"
    assert (found["slices"], found["causes"], found["others"]) == ({}, {}, {})
    assert [note.partition(" has ")[0] for note in found["notes"]] == [
        f"{a / name}.json" for name in ("per_image", "metrics")
    ]


FAULTS = {
    "no file": (
        lambda f: f.unlink(),
        r"per_image\.json: no such file, expected a folder that `upsnet evaluate --output",
    ),
    "no json": (lambda f: f.write_text("{"), r"per_image\.json: not valid JSON"),
    "no format": (lambda f: change(f, lambda d: d.pop("format")), "no format number"),
    "newer": (lambda f: change(f, lambda d: d.update(format=3)), "format 3, expected 1 to 2; update upsnet"),
    "no images": (lambda f: change(f, lambda d: d.update(images=5)), "no list of images"),
    "image twice": (lambda f: change(f, lambda d: d["images"].append(d["images"][0])), "image 0 appears twice"),
    "no pq": (lambda f: change(f, lambda d: d["images"][1].pop("pq")), "row 1 of `images` lacks image_id or one of"),
    "odd pq": (
        lambda f: change(f, lambda d: d["images"][0].update(pq="x")),
        "image 0: pq is 'x', expected null or a number from 0 to 100",
    ),
    "high pq": (lambda f: change(f, lambda d: d["images"][0].update(pq=1e308)), r"pq is 1e\+308, expected null or"),
    "no size": (
        lambda f: change(f, lambda d: d["images"][0].pop("height")),
        "image 0 lacks file_name, height or width",
    ),
    "no list": (
        lambda f: change(f, lambda d: d["images"][0].pop("missed")),
        "image 0: `missed` is missing or has a row",
    ),
    "category": (lambda f: change(f, lambda d: d["images"][0].update(matched=[[99, 1, 1]])), "`matched` is missing or"),
    "cause": (lambda f: change(f, lambda d: d["images"][0].update(missed=[[11, 1, "x"]])), "`missed` is missing or"),
    "odd area": (lambda f: change(f, lambda d: d["images"][0].update(matched=[[11, "x", 1]])), "area or an IoU"),
    "nan": (lambda f: change(f, lambda d: d["images"][0].update(matched=[[11, 1, math.nan]])), "out of range"),
    "huge": (lambda f: change(f, lambda d: d["images"][0].update(missed=[[11, 10**400, "void"]])), "out of range"),
    "huge image": (lambda f: change(f, lambda d: d["images"][0].update(width=10**9)), "has size 1 x 1000000000"),
    "no categories": (lambda f: change(f, lambda d: d.pop("categories")), "categories"),
}


@pytest.mark.parametrize(("break_it", "message"), FAULTS.values(), ids=FAULTS)
def test_a_damaged_file_is_named(tmp_path, break_it, message):
    folder = write(tmp_path / "a", FOUND, MISSES)
    break_it(folder / "per_image.json")
    with pytest.raises((ValueError, OSError), match=message) as error:
        read_evaluation(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_attributes_make_slices(tmp_path):
    a, b = write(tmp_path / "a", *[FOUND] * 4), write(tmp_path / "b", FOUND, FOUND, MISSES, MISSES)
    (tmp_path / "s.csv").write_text("image,time\n0.png,day\n1,day\n2.png,night\n")
    found = compared(a, b, attributes=read_attributes(tmp_path / "s.csv"))["slices"]["time"]
    assert {label: (row["images"], row["All"]["pq"]["difference"]) for label, row in found.items()} == {
        "day": (2, 0), "night": (1, -50),
    }  # fmt: skip


def simulated(rng, num_images, seeds, seed_deviation):
    """Two sides of one difficulty: an image's and a segment's difficulty are shared, the rest is luck of each run."""
    counts = np.stack([np.ones(num_images, int), rng.poisson(3, num_images), rng.poisson(0.5, num_images)], 1).ravel()
    image, kind = (
        np.repeat(values, counts) for values in (np.arange(num_images).repeat(3), np.tile(range(3), num_images))
    )
    size = len(image)
    shared = rng.normal(0, 1, num_images)[image] + rng.normal(0, 0.7, size)

    def run(quality):
        logit = quality + rng.normal(0, seed_deviation) + shared + rng.normal(0, 0.7, size)
        hit, extra = logit > 0, rng.random(size) < 0.1
        iou = np.concatenate([np.where(hit, 0.5 + 0.5 / (1 + np.exp(-logit / 2)), 0), np.zeros(extra.sum())])
        outcome = np.concatenate([np.where(hit, MATCHED, MISSED), np.full(extra.sum(), SPURIOUS)])
        own, kinds = np.concatenate([image, image[extra]]), np.concatenate([kind, kind[extra]])
        cause = np.choose(outcome, [-1, 5, 6])
        return ScoreTable(num_images, own, kinds, np.full(len(own), 100), iou, outcome, cause)

    return [run(1.0) for _ in range(seeds)], [run(1.3) for _ in range(seeds)]


def pq(table):
    return group_scores(partition_sums(table, EVERYTHING, len(CATEGORIES))[0], CATEGORIES)["All"][0]


def coverage(simulations, num_images, seeds, seed_deviation, resamples):
    """The share of simulations whose interval of the difference of PQ holds the known difference."""
    rng = np.random.default_rng(99)
    many = simulated(rng, 1000, 200, seed_deviation) if seed_deviation else simulated(rng, 40_000, 1, 0)
    known = np.mean([pq(table) for table in many[1]]) - np.mean([pq(table) for table in many[0]])
    rng, inside = np.random.default_rng(7), 0
    for number in range(simulations):
        sides = simulated(rng, num_images, seeds, seed_deviation)
        found = paired_differences(*sides, CATEGORIES, resamples=resamples, seed=number)["All", "pq"]
        inside += found["interval"][0] <= known <= found["interval"][1]
    return inside / simulations


@pytest.mark.parametrize(("seeds", "deviation"), [(1, 0), (3, 0.3)])
def test_intervals_hold_a_known_difference_about_as_often_as_they_say(seeds, deviation):
    assert 0.83 <= coverage(60, 60, seeds, deviation, 200) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "deviation"), [(1, 0), (2, 0.1), (3, 0), (3, 0.05), (3, 0.3), (5, 0.2)])
def test_intervals_hold_a_known_difference_in_90_to_98_percent_of_400_simulations(seeds, deviation):
    assert 0.90 <= coverage(400, 100, seeds, deviation, 1000) <= 0.98


def test_several_seeds_widen_the_interval_by_what_they_differ(tmp_path):
    rng = np.random.default_rng(0)
    same = simulated(rng, 200, 3, 0)
    spread = simulated(np.random.default_rng(0), 200, 3, 0.5)
    widths = []
    for sides in (same, spread):
        low, high = paired_differences(*sides, CATEGORIES, resamples=300)["All", "pq"]["interval"]
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]
    side = [write(tmp_path / str(i), FOUND, predicted) for i, predicted in enumerate((FOUND, SHIFTED, MISSES))]
    found = compared([side[0]], side)
    assert found["All"]["pq"]["b"] == pytest.approx(np.mean([read_pq(folder) for folder in side])), (
        "the mean over the runs"
    )
    assert "One side has only one run" in found["notes"][0]


def read_pq(folder):
    return json.loads((folder / "metrics.json").read_text())["panoptic"]["All"]["pq"]


def test_the_result_depends_on_nothing_but_the_files(tmp_path):
    a, b = write(tmp_path / "a", *[FOUND, SHIFTED] * 5), write(tmp_path / "b", *[MISSES, SHIFTED] * 5)
    sides = [Side((read_evaluation(folder),)) for folder in (a, b)]
    shuffled = [Side((reversed_rows(side.runs[0]),)) for side in sides]
    assert compare(*sides) == compare(*shuffled)
    assert math.isfinite(compare(*sides)["All"]["pq"]["interval"][0])


def reversed_rows(run):
    return type(run)(**{**vars(run), "rows": dict(reversed(run.rows.items()))})
