"""What must hold for Panoptic-DeepLab on a GPU; skipped without one."""

import pytest
import torch

from tests.models.panoptic_deeplab.deeplab import make_config
from tests.models.panoptic_deeplab.test_deeplab import build, lively, shapes_batch
from upsnet import PanopticPredictor
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.engine.optim import weighted_total
from upsnet.engine.train import Trainer
from upsnet.models.checkpoint import Checkpoint, save_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

GROUP_NORMS = ("model.norm=gn", "model.backbone.norm=gn")


def test_losses_and_predictions_equal_those_of_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = lively(build(*GROUP_NORMS))
    batch = shapes_batch(model)
    expected = {name: loss.item() for name, loss in model.train()(batch).items()}
    maps = model.eval().predict(batch).segment_ids
    model.cuda()
    losses = model.train()(batch.to("cuda"))
    weighted_total(losses, model.loss_weights).backward()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=2e-3, abs=1e-4), name
    for ours, theirs in zip(model.eval().predict(batch.to("cuda")).segment_ids, maps, strict=True):
        assert (ours.cpu() != theirs).float().mean() < 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_never_waits_for_the_host(precision):
    model = build().cuda().train()
    batch = shapes_batch(model).to("cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            losses = model(batch)
        weighted_total(losses, model.loss_weights).backward()

    step()  # kernels are chosen
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_recorded_steps_train_as_plain_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device, tables = torch.device("cuda", 0), []
    for recorded in (False, True):
        options = (*GROUP_NORMS, f"train.cuda_graph={recorded}".lower(), "train.precision=fp32")
        trainer = Trainer(make_config(*options), tmp_path / str(recorded), device)
        batches = [shapes_batch(trainer.model, size=size).to(device) for size in ((64, 96), (96, 128))]
        for number in range(6):
            trainer._step(trainer.model, [batches[number % 2]])
        tables.append(trainer._interval.rows())
    assert len(trainer._recorded.recordings) == 2
    torch.testing.assert_close(*tables, rtol=1e-3, atol=1e-4)


def test_a_recorded_model_predicts_as_the_model_does(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, Checkpoint(make_config(), CATEGORIES, lively(build()).state_dict()))
    plain, recorded = (PanopticPredictor.from_checkpoint(path, "cuda", cuda_graph=g) for g in (False, True))
    for size in ((64, 96), (50, 70)):
        for number in range(3):
            image = Shapes(3, size)[number].image
            expected, found = plain(image), recorded(image)
            assert (found.segment_ids != expected.segment_ids).mean() < 1e-3
    assert len(recorded.model.recorded.recordings) == 2
