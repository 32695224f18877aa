"""What must hold on a GPU; skipped without one."""

import pytest
import torch

from upsnet.losses import weighted_total

from .models.test_upsnet import lively

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_losses_and_predictions_equal_those_of_the_cpu(model, batch):
    lively(model)
    expected = {k: v.item() for k, v in model.train()(batch).items()}
    maps = model.eval().predict(batch).segment_ids
    model.cuda()
    on_gpu = batch.to("cuda")
    losses = model.train()(on_gpu)
    weighted_total(losses, model.loss_weights).backward()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name], rel=2e-3, abs=1e-4), name
    for ours, theirs in zip(model.eval().predict(on_gpu).segment_ids, maps, strict=True):
        assert (ours.cpu() != theirs).float().mean() < 0.01
