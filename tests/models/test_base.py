"""A second, trivial architecture behind `PanopticModel`: engine, evaluation and prediction need not know it."""

import json
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upsnet import PanopticPredictor
from upsnet.categories import IGNORE_LABEL
from upsnet.data.shapes import Shapes
from upsnet.engine import train as training
from upsnet.engine.score import evaluate_checkpoint
from upsnet.models import checkpoint as checkpoints
from upsnet.models.base import PanopticModel
from upsnet.structures import PanopticOutput


class ColourRaw(NamedTuple):
    logits: Tensor


class ColourModel(PanopticModel):
    """A 1x1 convolution over the colours; all pixels of a class are one segment."""

    tasks = frozenset({"panoptic", "semantic"})
    loss_weights = {"loss_semantic": 1.0}  # noqa: RUF012

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, num_classes, 1)

    def loss(self, batch):
        logits = self.raw(batch.images, batch.image_sizes).logits
        target = batch.target.semantic_map.long()
        return {"loss_semantic": F.cross_entropy(logits, target, ignore_index=IGNORE_LABEL)}

    def raw(self, images, image_sizes, *, with_instances=False):
        return ColourRaw(self.score(images.float() / 255))

    def fuse(self, raw, image_sizes: Sequence, output_sizes: Sequence, *, scales=(), with_semantic=False):
        maps = []
        for logits, (height, width), size in zip(raw.logits, image_sizes, output_sizes, strict=True):
            scores = F.interpolate(logits[None, :, :height, :width], size, mode="bilinear")
            maps.append(scores[0].argmax(0).int())
        classes = torch.arange(self.score.out_channels).expand(len(maps), -1)
        ids = [channels + 1 for channels in maps]
        return PanopticOutput(ids, classes, torch.ones(classes.shape), maps if with_semantic else None)


@pytest.fixture
def colour_models(monkeypatch):
    """Every model that is built is one of these."""

    def build(config, categories, *, pretrained=True):
        return ColourModel(len(categories))

    monkeypatch.setattr(training, "build_model", build)
    monkeypatch.setattr(checkpoints, "build_model", build)


def test_another_architecture_trains_resumes_evaluates_and_predicts(colour_models, make_config, tmp_path):
    options = ("train.evaluate_every=3", "train.checkpoint_every=3", "train.lr=2", "evaluate.panels=1")
    whole = training.train(make_config(*options, "train.iterations=6"), tmp_path / "whole")
    assert whole.metrics["panoptic"]["All"]["pq"] > 0
    assert whole.metrics["semantic"]["miou"] > 0
    assert whole.metrics["instance"] is None, "it predicts no instances"
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss_semantic" in row for row in rows)
    assert (tmp_path / "whole" / "comparison.jpg").exists()

    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "last-00000003.pt", tmp_path / "resumed" / "last.pt")
    training.train(make_config(*options, "train.iterations=6"), tmp_path / "resumed", resume=True)
    ends = [checkpoints.load_checkpoint(tmp_path / name / "last.pt").weights for name in ("whole", "resumed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    model = tmp_path / "whole" / "model.pt"
    metrics = evaluate_checkpoint(model, tmp_path / "evaluation", report_images=1)
    best = checkpoints.load_checkpoint(model).metrics
    assert metrics["panoptic"]["All"] == best["panoptic"]["All"]
    assert (tmp_path / "evaluation" / "report.html").exists()
    assert (tmp_path / "evaluation" / "predictions" / "panoptic.json").exists()

    image = Shapes(1, (50, 70))[0].image
    prediction = PanopticPredictor.from_checkpoint(model, "cpu")(image)
    assert prediction.segment_ids.shape == (50, 70)
    assert {segment.id for segment in prediction.segments} == set(np.unique(prediction.segment_ids))
