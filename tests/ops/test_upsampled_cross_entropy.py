"""The loss by stripes against the plain form: interpolate, then cross-entropy."""

import pytest
import torch
from torch.nn import functional as F

from upsnet.models.upsnet.losses import pixel_loss, upsampled_pixel_loss
from upsnet.ops import upsampled_cross_entropy as module
from upsnet.ops.upsampled_cross_entropy import upsampled_cross_entropy


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 7, 9, 6, generator=generator) * 3).requires_grad_()
    target = torch.randint(0, 7, (3, 36, 24), generator=generator, dtype=torch.uint8)
    target[0, :10], target[2] = 255, 255  # the last image shows nothing that is known
    return logits, target


@pytest.mark.parametrize("rows", [1, 2, 4, 9, 100])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_value_and_gradient_equal_the_plain_form(case, monkeypatch, rows, memory_format):
    logits, target = case
    monkeypatch.setattr(module, "STRIPE", rows * 7 * 6 * 16)
    weight = torch.tensor([1.0, -2.0, 3.0])
    full = F.interpolate(logits, scale_factor=4, mode="bilinear")
    expected = F.cross_entropy(full, target.long(), ignore_index=255, reduction="none").flatten(1).sum(1)
    found = upsampled_cross_entropy(logits.contiguous(memory_format=memory_format), target, 4, 255)
    torch.testing.assert_close(found, expected)
    assert found[2] == 0
    gradients = [torch.autograd.grad((x * weight).sum(), logits)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_labelled_pixels_of_the_upsampled_logits(case):
    logits, target = case
    full = F.interpolate(logits, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(upsampled_pixel_loss(logits, target, 4), pixel_loss(full, target))


def test_large_logits_do_not_overflow():
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).requires_grad_()
    found = upsampled_cross_entropy(logits, torch.ones(1, 4, 4, dtype=torch.long), 4, 255)
    found.sum().backward()
    assert found.item() == pytest.approx(16 * 2e4)
    assert logits.grad.flatten().tolist() == [16, -16]


def test_the_operator_keeps_the_rules_of_operators(case):
    logits, target = case
    torch.library.opcheck(torch.ops.upsnet.upsampled_cross_entropy, (logits, target, 4, 255))


def test_another_size_is_an_error(case):
    logits, target = case
    with pytest.raises(ValueError, match="expected 2 x the cells"):
        upsampled_cross_entropy(logits, target, 2, 255)
