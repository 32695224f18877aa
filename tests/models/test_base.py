"""A second, trivial architecture behind `PanopticModel`: engine, evaluation and prediction need not know it."""

import json
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upsnet import PanopticPredictor, export_graph
from upsnet.categories import IGNORE_LABEL
from upsnet.data.shapes import Shapes
from upsnet.engine import train as training
from upsnet.engine.score import evaluate_checkpoint
from upsnet.models import checkpoint as checkpoints
from upsnet.models.base import FusedTensors, PanopticModel
from upsnet.ops.sizes import InputForm
from upsnet.structures import PanopticOutput


class ColourRaw(NamedTuple):
    logits: Tensor


class ColourModel(PanopticModel):
    """A 1x1 convolution over the colours; all pixels of a class are one segment."""

    tasks = frozenset({"panoptic", "semantic"})
    loss_weights = {"loss_semantic": 1.0}  # noqa: RUF012
    input_form = InputForm(remainder=1)

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(3, num_classes, 1)

    def loss(self, batch):
        assert all(side % 32 == 1 for side in batch.images.shape[2:])
        logits = self.raw(batch.images, batch.image_sizes).logits
        target = batch.target.semantic_map.long()
        return {"loss_semantic": F.cross_entropy(logits, target, ignore_index=IGNORE_LABEL)}

    def raw(self, images, image_sizes, *, with_instances=False):
        assert self.padded_size(tuple(images.shape[2:])) == tuple(images.shape[2:])
        return ColourRaw(self.score(images.float() / 255))

    def fuse(self, raw, image_sizes, output_sizes, *, with_semantic=False):
        fused = [
            self.fuse_for_export(ColourRaw(logits[None]), torch.tensor([list(valid)]), torch.empty(size))
            for logits, valid, size in zip(raw.logits, image_sizes, output_sizes, strict=True)
        ]
        ids = [one.segment_ids[0] for one in fused]
        classes, scores = (torch.cat([one[n] for one in fused]) for n in (1, 2))
        return PanopticOutput(ids, classes, scores, [i - 1 for i in ids] if with_semantic else None)

    def fuse_for_export(self, raw, image_sizes, canvas):
        rows, columns = (
            ((torch.arange(size) + 0.5) / size * image_sizes[:, axis, None]).long()
            for axis, size in enumerate(canvas.shape)
        )
        channels = raw.logits.argmax(1)
        channels = channels.gather(1, rows[:, :, None].expand(-1, -1, channels.shape[2]))
        channels = channels.gather(2, columns[:, None].expand(-1, channels.shape[1], -1))
        classes = torch.arange(self.score.out_channels).expand(len(channels), -1)
        return FusedTensors(channels.int() + 1, classes, torch.ones(classes.shape))


@pytest.fixture
def colour_models(monkeypatch):
    """Every model that is built is one of these."""

    def build(config, categories, *, pretrained=True, tell=None):
        return ColourModel(len(categories))

    monkeypatch.setattr(training, "build_model", build)
    monkeypatch.setattr(checkpoints, "build_model", build)


def test_another_architecture_trains_resumes_evaluates_predicts_and_exports(colour_models, make_config, tmp_path):
    options = ("train.evaluate_every=3", "train.checkpoint_every=3", "train.lr=2", "evaluate.panels=1")
    whole = training.train(make_config(*options, "train.iterations=6"), tmp_path / "whole")
    assert whole.metrics["panoptic"]["All"]["pq"] > 0
    assert whole.metrics["semantic"]["miou"] > 0
    assert whole.metrics["instance_ap"] is None, "it predicts no instances"
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

    with pytest.raises(ValueError, match="--size 64 96: expected multiples of 32 plus 1"):
        export_graph(model, tmp_path / "model.onnx", size=(64, 96))
    for name, size in (("model.pt2", None), ("fixed.pt2", (65, 97)), ("model.onnx", (65, 97))):
        agreement = export_graph(model, tmp_path / name, size=size)
        assert agreement.disagreement == 0
        exported = PanopticPredictor.from_checkpoint(tmp_path / name, "cpu")(image)
        assert [segment.category_name for segment in exported.segments] == [
            s.category_name for s in prediction.segments
        ]


def test_an_architecture_without_a_form_for_export_says_so(config, dataset, tmp_path, monkeypatch):
    monkeypatch.delattr(ColourModel, "fuse_for_export")
    model = ColourModel(len(dataset.categories))
    monkeypatch.setattr(checkpoints, "build_model", lambda *_, **__: ColourModel(len(dataset.categories)))
    checkpoints.save_checkpoint(
        tmp_path / "a.pt", checkpoints.Checkpoint(config, dataset.categories, model.state_dict())
    )
    with pytest.raises(ValueError, match="ColourModel cannot be exported"):
        export_graph(tmp_path / "a.pt", tmp_path / "a.pt2")
