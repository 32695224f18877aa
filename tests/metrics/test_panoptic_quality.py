"""PQ by hand-computed cases and against cityscapesscripts, an independent implementation of the same rules."""

import contextlib
import io
import json

import numpy as np
import pytest
from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import pq_compute_single_core

from upsnet.categories import CategorySet
from upsnet.io.panoptic_json import PanopticJson
from upsnet.io.predictions import PanopticWriter
from upsnet.metrics.panoptic_quality import PanopticQuality, SegmentTable, class_sums, match_segments
from upsnet.metrics.score_files import evaluate_files
from upsnet.ops.id_maps import segment_geometry

CATEGORIES = CategorySet.from_json(
    [{"id": i * 3 + 2, "name": f"c{i}", "isthing": int(i >= 2), "color": [i, 0, 0]} for i in range(5)], source="test"
)


def scores(truth, truth_classes, predicted, predicted_classes, crowd=None):
    table = SegmentTable.of(truth_classes, crowd)
    found = match_segments(np.array(truth), table, np.array(predicted), SegmentTable.of(predicted_classes))
    rows = class_sums(found, 5)
    return {c: tuple(row) for c, row in enumerate(rows.tolist()) if any(row)}


def test_a_match_needs_more_than_half():
    truth = [[1, 1, 1, 1]]
    assert scores(truth, [2], [[1, 1, 1, 2]], [2, 3]) == {2: (0.75, 1, 0, 0), 3: (0, 0, 1, 0)}
    assert scores(truth, [2], [[1, 1, 2, 2]], [2, 3]) == {2: (0, 0, 1, 1), 3: (0, 0, 1, 0)}, "exactly half is no match"
    assert scores(truth, [2], [[1, 1, 1, 1]], [3]) == {2: (0, 0, 0, 1), 3: (0, 0, 1, 0)}


def test_predicted_void_stays_a_miss_and_void_truth_leaves_the_union():
    assert scores([[1, 1, 1, 1]], [2], [[1, 1, 1, 0]], [2]) == {2: (0.75, 1, 0, 0)}
    assert scores([[1, 1, 1, 0]], [2], [[1, 1, 1, 1]], [2]) == {2: (1.0, 1, 0, 0)}


def test_a_prediction_mostly_on_void_or_its_crowd_is_excused():
    assert scores([[0, 0, 0, 1]], [2], [[1, 1, 1, 1]], [3]) == {2: (0, 0, 0, 1)}
    assert scores([[0, 0, 1, 1]], [2], [[1, 1, 1, 1]], [3]) == {2: (0, 0, 0, 1), 3: (0, 0, 1, 0)}, "exactly half is not"
    crowd = [[1, 1, 1, 2]]
    assert scores(crowd, [2, 3], [[1, 1, 1, 1]], [2], [True, False]) == {3: (0, 0, 0, 1)}
    assert scores(crowd, [2, 3], [[1, 1, 1, 1]], [4], [True, False]) == {3: (0, 0, 0, 1), 4: (0, 0, 1, 0)}


def test_truth_against_itself_is_perfect_and_unseen_groups_are_empty():
    quality = PanopticQuality(CATEGORIES)
    ids = np.array([[1, 1, 2, 0]])
    table = SegmentTable.of([2, 3])
    quality.update(0, ids, table, ids, table)
    result = quality.compute()
    assert result["All"] == {"pq": 100.0, "sq": 100.0, "rq": 100.0, "n": 2}
    assert result["Things"]["n"] == 2
    assert result["Stuff"] == {"pq": None, "sq": None, "rq": None, "n": 0}
    assert set(result["per_class"]) == {"2", "5", "8", "11", "14"}
    assert result["per_class"]["2"] == {
        "name": "c0", "pq": None, "sq": None, "rq": None, "iou": 0.0, "tp": 0, "fp": 0, "fn": 0,
    }  # fmt: skip
    assert PanopticQuality(CATEGORIES).compute()["All"] == {"pq": None, "sq": None, "rq": None, "n": 0}


def test_a_class_that_is_only_missed_scores_0_and_not_none():
    quality = PanopticQuality(CATEGORIES)
    quality.update(0, np.array([[1, 1]]), SegmentTable.of([2]), np.array([[0, 0]]), SegmentTable.of([]))
    result = quality.compute()
    assert result["Things"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1}
    assert [result["per_class"]["8"][key] for key in ("pq", "sq", "rq", "fn")] == [0.0, 0.0, 0.0, 1]


def test_an_image_with_nothing_to_score_has_no_pq():
    quality = PanopticQuality(CATEGORIES)
    empty = np.zeros((2, 2), dtype=np.int64)
    quality.update(0, empty, SegmentTable.of([]), empty, SegmentTable.of([]))
    quality.update(1, empty, SegmentTable.of([]), empty + 1, SegmentTable.of([2]))  # on void: neither right nor wrong
    nothing = {"pq": None, "sq": None, "rq": None, "n": 0, "tp": 0, "fp": 0, "fn": 0}
    for number, row in enumerate(quality.per_image()["images"]):
        assert {name: row[name] for name in ("image_id", *nothing)} == {"image_id": number, **nothing}
        assert row["matched"] == row["missed"] == row["spurious"] == []
    result = quality.compute()
    assert result["All"]["pq"] is None
    assert result["pq_dagger"]["All"] is None
    assert result["interval"]["All"] is None


def test_bad_maps_are_refused():
    table = SegmentTable.of([2])
    with pytest.raises(ValueError, match=r"size \(1, 2\), expected \(1, 1\)"):
        match_segments(np.ones((1, 1), int), table, np.ones((1, 2), int), table)
    with pytest.raises(ValueError, match="ids from 2 to 2"):
        match_segments(np.ones((1, 1), int), table, np.full((1, 1), 2), table)


def random_map(rng, size, void):
    """Blocks of segments, some void; dense ids and the number of segments."""
    cell = int(rng.integers(2, 9))
    grid = rng.integers(0 if void else 1, 9, (size[0] // cell + 1, size[1] // cell + 1))
    ids = np.kron(grid, np.ones((cell, cell), dtype=int))[: size[0], : size[1]]
    _, dense = np.unique(ids, return_inverse=True)
    dense = dense.reshape(ids.shape) + int(ids.min() > 0)
    return dense.astype(np.int32), int(dense.max())


def write_random(rng, folder, images):
    """A truth with voids and crowds and a prediction derived from it, with 24-bit ids."""
    writers = [PanopticWriter(folder / f"{name}.json", CATEGORIES) for name in ("gt", "pred")]
    for image in range(images):
        size = tuple(rng.integers(5, 40, 2))
        truth, count = random_map(rng, size, void=rng.random() < 0.7)
        classes = rng.integers(0, 5, count)
        crowd = rng.random(count) < 0.2
        predicted, predicted_count = truth.copy(), count
        predicted_classes = np.where(rng.random(count) < 0.3, rng.integers(0, 5, count), classes)
        if rng.random() < 0.6:
            noise, extra = random_map(rng, size, void=False)
            where = rng.random(size) < rng.choice([0.1, 0.5, 0.9])
            where |= noise == 1
            predicted = np.where(where, noise + count, predicted)
            predicted_count, predicted_classes = (
                count + extra,
                np.concatenate([predicted_classes, rng.integers(0, 5, extra)]),
            )
        for writer, ids, number, kinds, flags in (
            (writers[0], truth, count, classes, crowd),
            (writers[1], predicted, predicted_count, predicted_classes, np.zeros(predicted_count, bool)),
        ):
            names = np.concatenate([[0], rng.choice(2**24 - 1, number, replace=False) + 1]).astype(np.int32)
            areas, boxes = segment_geometry(ids.astype(np.int32), number)
            rows = [
                {
                    "id": int(names[i + 1]),
                    "category_id": CATEGORIES[int(kinds[i])].id,
                    "area": int(areas[i]),
                    "bbox": [int(v) for v in boxes[i]],
                    "iscrowd": int(flags[i]),
                }
                for i in range(number)
                if areas[i]
            ]
            writer.add(image, f"{image}.jpg", names[ids], rows)
    for writer in writers:
        writer.close()


def peer_scores(truth_json, predicted_json):
    """Sums per category id by cityscapesscripts."""
    gt = PanopticJson(truth_json)
    pred = PanopticJson(predicted_json, truth=gt)
    sides = [
        {row["image_id"]: row for row in json.loads(p.read_text())["annotations"]} for p in (truth_json, predicted_json)
    ]
    pairs = [(sides[0][i], sides[1][i]) for i in gt.annotations]
    rows = {c["id"]: c for c in gt.categories.to_json()}
    with contextlib.redirect_stdout(io.StringIO()):
        return pq_compute_single_core(0, pairs, str(gt.png_dir), str(pred.png_dir), rows).pq_per_cat


@pytest.mark.parametrize("seed", range(6))
def test_random_data_sets_score_as_cityscapesscripts_does(tmp_path, seed):
    write_random(np.random.default_rng(seed), tmp_path, images=12)
    metrics, reports = evaluate_files(tmp_path / "gt.json", tmp_path / "pred.json", progress=False)
    assert not reports
    expected = peer_scores(tmp_path / "gt.json", tmp_path / "pred.json")
    for category in CATEGORIES.categories:
        ours, theirs = metrics["panoptic"]["per_class"][str(category.id)], expected[category.id]
        assert (ours["tp"], ours["fp"], ours["fn"]) == (theirs.tp, theirs.fp, theirs.fn)
        assert ours["iou"] == pytest.approx(theirs.iou, abs=1e-12)


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_pixels_count_and_a_wrong_area_in_the_json_is_reported(tmp_path):
    write_random(np.random.default_rng(0), tmp_path, images=2)
    before, _ = evaluate_files(tmp_path / "gt.json", tmp_path / "pred.json", progress=False)
    change(tmp_path / "gt.json", lambda d: d["annotations"][0]["segments_info"][0].update(area=5))
    after, reports = evaluate_files(tmp_path / "gt.json", tmp_path / "pred.json", progress=False)
    assert before == after
    assert len(reports) == 1
    assert "has area 5" in reports[0]


def test_predictions_for_other_images_are_left_aside(tmp_path):
    write_random(np.random.default_rng(0), tmp_path, images=3)
    change(tmp_path / "gt.json", lambda d: (d["annotations"].pop(), d["images"].pop()))
    metrics, _ = evaluate_files(tmp_path / "gt.json", tmp_path / "pred.json", progress=False)
    assert metrics["panoptic"]["All"]["n"] > 0


def test_real_truth_against_itself_is_100(real_data):
    path = next((real_data / "coco_sample" / "annotations").glob("panoptic_*.json"))
    metrics, _ = evaluate_files(path, path, progress=False)
    assert metrics["panoptic"]["All"] == {"pq": 100.0, "sq": 100.0, "rq": 100.0, "n": metrics["panoptic"]["All"]["n"]}
