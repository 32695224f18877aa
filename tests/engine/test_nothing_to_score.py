"""Evaluations with nothing to score: null in the files, left out of TensorBoard and W&B, and the lowest rank."""

import json
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.engine.test_logging import FakeWandb
from upsnet.engine.evaluate import headline
from upsnet.engine.logging import RunLog, headlines
from upsnet.engine.train import Trainer
from upsnet.models.checkpoint import load_checkpoint

CPU = torch.device("cpu")
NONE = {"pq": None, "sq": None, "rq": None, "n": 0}


def metrics_of(pq, things=None):
    group = NONE if pq is None else {"pq": pq, "sq": pq, "rq": pq, "n": 1}
    panoptic = {"All": group, "Things": NONE if things is None else {**group, "pq": things}, "Stuff": group}
    return {"panoptic": panoptic, "semantic": {"miou": pq}, "instance_ap": {"ap": None, "ap50": None}}


def test_the_headline_of_nothing_is_none():
    assert headline(metrics_of(None)) == ("PQ", None)
    assert headline(metrics_of(0.0)) == ("PQ", 0.0)
    assert headline({"panoptic": None, "semantic": None, "instance_ap": {"ap": None}}) == ("AP", None)
    values = headlines(metrics_of(50.0))
    assert [values[name] for name in ("pq", "pq_things", "miou", "instance_ap")] == [50.0, None, 50.0, None]


def test_the_log_of_nothing_is_null_a_dash_and_no_scalar(tmp_path, monkeypatch, capsys):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    options = {"evaluation_due": False, "device": CPU, "enabled": True, "wandb_project": "panoptic"}
    with RunLog(tmp_path, start=0, stop=9, **options) as log:
        log.evaluation(3, metrics_of(50.0), None)
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert row["pq"] == 50
    assert row["pq_things"] is None
    assert row["instance_ap"] is None
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = {"val/pq", "val/sq", "val/rq", "val/pq_stuff", "val/sq_stuff", "val/rq_stuff", "val/miou"}
    assert set(board.Tags()["scalars"]) == tags
    assert set(fake.rows[0][1]) == tags
    assert "iteration 3: pq 50.00, " in (text := capsys.readouterr().out)
    assert "pq_things -, " in text
    assert "instance_ap -, " in text


@pytest.mark.parametrize(("scores", "best"), [((None, 0.0, None), 2), ((None, None), 1)])
def test_the_best_model_of_a_run_is_the_first_if_none_can_be_scored(make_config, tmp_path, monkeypatch, scores, best):
    left = list(scores)
    monkeypatch.setattr("upsnet.engine.train.evaluate", lambda *_, **__: metrics_of(left.pop(0)))
    config = make_config(f"train.iterations={len(scores)}", "train.evaluate_every=1", "evaluate.panels=0")
    trainer = Trainer(config, tmp_path, CPU)
    metrics = trainer.run()
    assert trainer.best_iteration == best
    assert load_checkpoint(tmp_path / "model.pt").metrics == metrics_of(scores[best - 1])
    assert json.loads((tmp_path / "metrics.json").read_text())["iteration"] == best
    shown = ["-" if value is None else f"{value:.2f}" for value in (scores[-1], scores[best - 1])]
    assert f"last PQ {shown[0]}, best PQ {shown[1]} (iteration {best})" in "\n".join(trainer.summary(metrics))
