"""What other programs call: `pq_compute` in the place of panopticapi's, a flat dictionary, and the meter by itself."""

import re
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.metrics.test_against_peer import image, write
from tests.metrics.test_panoptic_quality import CATEGORIES, change, peer_scores, write_random
from upsnet.metrics import dense_segments, flat_metrics, pq_compute
from upsnet.metrics.panoptic_quality import PanopticQuality, SegmentTable
from upsnet.metrics.schema import Metrics, schema_text
from upsnet.metrics.score_files import evaluate_files


def by_the_rules(folder):
    """The result of panopticapi from the sums of cityscapesscripts, which has the same rules."""
    sums = peer_scores(folder / "gt.json", folder / "pred.json")
    rows, seen = {}, {}
    for category in CATEGORIES.categories:
        own = sums[category.id]
        size = own.tp + own.fp / 2 + own.fn / 2
        rows[category.id] = {
            "pq": own.iou / size if size else 0.0,
            "sq": own.iou / own.tp if own.tp else 0.0,
            "rq": own.tp / size if size else 0.0,
        }
        seen[category.id] = bool(size)
    result = {"per_class": rows}
    for name, kinds in (("All", (True, False)), ("Things", (True,)), ("Stuff", (False,))):
        own = [rows[c.id] for c in CATEGORIES.categories if seen[c.id] and c.is_thing in kinds]
        means = {key: sum(row[key] for row in own) / len(own) if own else 0.0 for key in ("pq", "sq", "rq")}
        result[name] = {**means, "n": len(own)}
    return result


def require_equal(found, expected):
    assert found.keys() == expected.keys()
    assert found["per_class"].keys() == expected["per_class"].keys()
    for name in ("All", "Things", "Stuff"):
        assert found[name] == pytest.approx(expected[name], abs=1e-12)
    for key, row in expected["per_class"].items():
        assert found["per_class"][key] == pytest.approx(row, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_pq_compute_has_the_rules_and_the_form_of_panopticapi_on_random_sets(tmp_path, seed):
    write_random(np.random.default_rng(seed), tmp_path, images=12)
    require_equal(pq_compute(tmp_path / "gt.json", str(tmp_path / "pred.json")), by_the_rules(tmp_path))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(image(), min_size=1, max_size=3))
def test_pq_compute_has_the_rules_of_panopticapi_on_nasty_sets(images):
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), images)
        require_equal(pq_compute(Path(name) / "gt.json", Path(name) / "pred.json"), by_the_rules(Path(name)))


def test_pq_compute_takes_folders_and_warns_of_contradictions(tmp_path):
    write_random(np.random.default_rng(0), tmp_path, images=3)
    expected = pq_compute(tmp_path / "gt.json", tmp_path / "pred.json")
    for name in ("gt", "pred"):
        (tmp_path / name).rename(tmp_path / f"{name}_pngs")
    arguments = (tmp_path / "gt.json", tmp_path / "pred.json", str(tmp_path / "gt_pngs"), str(tmp_path / "pred_pngs"))
    assert pq_compute(*arguments) == expected
    change(tmp_path / "pred.json", lambda d: d["annotations"].pop())
    with pytest.warns(UserWarning, match="no prediction for 1 of 3 images"):
        assert pq_compute(*arguments)["All"] != expected["All"]


def test_the_flat_dictionary_holds_the_numbers_of_the_file(tmp_path):
    write_random(np.random.default_rng(1), tmp_path, images=4)
    metrics, _ = evaluate_files(tmp_path / "gt.json", tmp_path / "pred.json", boundary=True, progress=False)
    flat = flat_metrics(metrics, per_class=True)
    assert flat["pq"] == metrics["panoptic"]["All"]["pq"]
    assert flat["rq_things"] == metrics["panoptic"]["Things"]["rq"]
    assert flat["boundary_pq"] == metrics["panoptic"]["boundary"]["All"]["pq"]
    assert flat["pq_low"] <= flat["pq"] <= flat["pq_high"]
    assert flat["miou_from_panoptic"] == metrics["semantic_from_panoptic"]["miou"]
    assert flat["sq/c2"] == metrics["panoptic"]["per_class"]["8"]["sq"]
    assert "miou" not in flat, "there is no semantic head"
    assert all(value is None or isinstance(value, float) for value in flat.values())


def test_the_example_of_the_meter_runs(capsys):
    """The docstring of the module: a panoptic output in the form of transformers."""
    text = (ROOT / "upsnet" / "metrics" / "panoptic_quality.py").read_text().partition('"""')[2].partition('"""')[0]
    code = textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ") or not line))
    names = {}
    exec(code, names)
    assert names["meter"].compute()["All"]["pq"] == pytest.approx(87.5)
    assert "87.5" in code


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_dense_segments_numbers_the_segments_in_their_order(make):
    found = dense_segments(make([[7, 9, -1], [2, 7, 0]]), [9, 7, 2])
    assert found.tolist() == [[2, 1, 0], [3, 2, 0]]
    assert found.dtype == np.int32
    assert dense_segments(make([[0, 1]]), [0]).tolist() == [[1, 0]], "0 may be a segment"
    assert dense_segments(make([[0, 1]]), []).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="an id appears twice"):
        dense_segments(make([[1]]), [1, 1])


def test_rows_of_several_processes_merge():
    maps = [np.array([[1, 1, 2]]), np.array([[1, 2, 2]])]
    table = SegmentTable.of([0, 2])
    whole, parts = PanopticQuality(CATEGORIES), [PanopticQuality(CATEGORIES) for _ in range(2)]
    for key in range(2):
        for meter in (whole, parts[key]):
            meter.update(key, maps[0], table, maps[key], table)
    parts[0].merge([parts[1].rows])
    assert parts[0].compute() == whole.compute()
    assert parts[0].per_image() == whole.per_image()


def test_the_schema_document_is_that_of_the_code_and_every_file_fits_it(tmp_path):
    assert (ROOT / "docs" / "metrics.schema.json").read_text() == schema_text(), (
        "write it again: python -m upsnet.metrics.schema > docs/metrics.schema.json"
    )
    write_random(np.random.default_rng(2), tmp_path, images=3)
    for boundary in (False, True):
        metrics, _ = evaluate_files(tmp_path / "gt.json", tmp_path / "pred.json", boundary=boundary, progress=False)
        Metrics.model_validate(metrics)
    with pytest.raises(ValueError, match="extra"):
        Metrics.model_validate({**metrics, "more": 1})


def test_the_python_of_the_document_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "evaluation.md").read_text()
    write_random(np.random.default_rng(3), tmp_path, images=3)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert names["result"]["All"]["pq"] == pytest.approx(names["metrics"]["panoptic"]["All"]["pq"] / 100)
    assert {"sq", "rq_stuff", "miou_from_panoptic", "pq_low"} <= flat_metrics(names["metrics"]).keys()
    named = set(re.findall(r"`(semantic\w*|instance_ap|panoptic_ap)`", text))
    assert named == {"semantic", "semantic_from_panoptic", "instance_ap", "panoptic_ap"} <= set(Metrics.model_fields)
