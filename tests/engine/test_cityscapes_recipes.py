"""The recipes for Cityscapes from its official layout to the score that its own program gives."""

import json

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.data.cityscapes_tree import write_tree
from tests.data.test_cityscapes import SCRIPT, run_peer
from upsnet.config import load_config
from upsnet.data.cityscapes import Cityscapes
from upsnet.io.predictions import PanopticWriter, prediction_rows, truth_as_prediction
from upsnet.metrics.score_files import evaluate_files
from upsnet.structures import Sample

SMALL = [
    "model.backbone.name=resnet18", "model.backbone.width=16", "model.backbone.norm=gn", "model.backbone.freeze_at=0",
    "model.backbone.weights=null", "model.fpn_channels=16", "model.semantic.channels=16",
    "model.rpn.pre_nms_train=60", "model.rpn.post_nms_train=30", "model.rpn.pre_nms=60", "model.rpn.post_nms=30",
    "model.instance.roi_samples=16", "model.instance.box_channels=32", "model.instance.mask_channels=16",
    "model.instance.max_detections=12", "model.panoptic.stuff_area_limit=20", "model.panoptic.score_threshold=0",
    "data.num_workers=0", "data.test_short_side=64", "train.batch_size=2", "train.iterations=1",
    "train.warmup_iterations=0", "train.steps=[]", "train.lr=0.001", "train.precision=fp32",
    "evaluate.panels=0", "evaluate.instance=false",
]  # fmt: skip
RECIPES = {
    "cityscapes_r50": "data.augment.short_sides=[50, 64]",
    "cityscapes_r50_paper": "data.augment.short_sides=[50, 64]",
    "cityscapes_r50_crop_24gb": "data.augment.crop_size=[32, 64]",
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("UPSNET_DATASETS", str(tmp_path))
    return write_tree(tmp_path / "cityscapes")


@pytest.fixture
def truth_json(root, run_tool):
    code, _, err = run_tool(SCRIPT, "panoptic", "--root", root, "--splits", "val")
    assert code == 0, err
    return root / "gtFine" / "cityscapes_panoptic_val.json"


def require_the_peers_scores(truth, predicted, panoptic):
    """`panoptic` section of metrics.json against csEvalPanopticSemanticLabeling, which counts in fractions of one."""
    results = predicted.with_name("peer.json")
    run_peer(
        "csEvalPanopticSemanticLabeling", "--gt-json-file", truth, "--prediction-json-file", predicted,
        "--results_file", results,
    )  # fmt: skip
    peer = json.loads(results.read_text())
    assert peer["per_class"].keys() == panoptic["per_class"].keys()
    for name, row in peer["per_class"].items():
        for key, value in row.items():
            ours = panoptic["per_class"][name][key] or 0.0  # the peer counts a class that never occurs as 0
            assert ours / 100 == pytest.approx(value, abs=1e-9), name
    for group in ("All", "Things", "Stuff"):
        assert panoptic[group]["n"] == peer[group]["n"]
        assert panoptic[group]["pq"] / 100 == pytest.approx(peer[group]["pq"], abs=1e-9)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_and_its_predictions_score_alike_here_and_there(name, root, truth_json, run_tool, tmp_path):
    path, run, out = ROOT / "configs" / f"{name}.yaml", tmp_path / "run", tmp_path / "evaluation"
    code, _, err = run_tool("train", "--config", path, "--output", run, *SMALL, RECIPES[name])
    assert code == 0, err
    code, _, err = run_tool("evaluate", "--checkpoint", run / "model.pt", "--output", out)
    assert code == 0, err
    predicted = out / "predictions" / "panoptic.json"
    document = json.loads(predicted.read_text())
    assert len(document["categories"]) == 19
    used = {row["category_id"] for annotation in document["annotations"] for row in annotation["segments_info"]}
    assert used <= {category["id"] for category in document["categories"]}
    assert max(used) >= 24, "some things, under the ids of the data set"
    ours = json.loads((out / "metrics.json").read_text())["panoptic"]
    require_the_peers_scores(truth_json, predicted, ours)
    assert evaluate_files(truth_json, predicted, strict=True, progress=False)[0]["panoptic"] == ours


def test_predictions_with_mistakes_score_alike_here_and_there(root, truth_json, tmp_path):
    """The truth, shifted, partly dropped, partly of other classes: hits, misses and false alarms of every kind."""
    data, rng = Cityscapes(root, "val"), np.random.default_rng(1)
    writer = PanopticWriter(tmp_path / "predicted.json", data.categories)
    for sample in (data[i] for i in range(len(data))):
        shifted = np.roll(sample.segment_map, rng.integers(-2, 3, 2), axis=(0, 1))
        kept = np.concatenate([[False], rng.random(len(sample.classes)) < 0.8])
        is_wrong = rng.random(len(sample.classes)) < 0.2
        classes = np.where(is_wrong, rng.integers(0, 19, len(sample.classes)), sample.classes)
        guess = Sample(
            sample.image,
            np.where(kept[shifted], shifted, 0),
            classes,
            sample.is_crowd,
            sample.image_id,
            sample.file_name,
        )
        rows = prediction_rows(truth_as_prediction(guess, data.categories))
        writer.add(guess.image_id, guess.file_name, guess.segment_map, rows)
    writer.close()
    metrics, problems = evaluate_files(truth_json, tmp_path / "predicted.json", progress=False)
    assert not problems
    assert 10 < metrics["panoptic"]["All"]["pq"] < 90
    require_the_peers_scores(truth_json, tmp_path / "predicted.json", metrics["panoptic"])


@pytest.mark.parametrize("name", [*RECIPES, "upsnet_official_r50_cityscapes"])
def test_a_recipe_reads_the_official_layout_and_tests_at_its_size(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert (config.data.train.split, config.data.val.split) == ("train", "val")
    assert (config.data.test_short_side, config.data.test_max_side) == (1024, 2048), "the pictures' own size"
    assert config.model.panoptic.stuff_area_limit == 2048
