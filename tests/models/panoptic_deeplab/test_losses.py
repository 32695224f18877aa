"""Losses of Panoptic-DeepLab, by hand, and how they are averaged."""

import math

import pytest
import torch
from torch.nn import functional as F

from upsnet.categories import IGNORE_LABEL
from upsnet.models.panoptic_deeplab.losses import center_loss, hard_pixel_loss, offset_loss


def logits_of(losses):
    """Logits [1, 2, 1, n] of two classes whose cross-entropy for class 0 is `losses`."""
    margin = [math.log(math.expm1(loss)) for loss in losses]
    return torch.tensor([[[[0.0] * len(margin)], [margin]]])


def test_the_hardest_pixels_by_hand():
    logits = logits_of([1.0, 5.0, 2.0, 4.0, 3.0, 9.0])
    target = torch.tensor([[[0, 0, 0, 0, 0, IGNORE_LABEL]]])
    assert hard_pixel_loss(logits, target, None, 0.4).item() == pytest.approx((5 + 4) / 2), "2 of 5 labelled pixels"
    assert hard_pixel_loss(logits, target, None, 1.0).item() == pytest.approx(15 / 5)
    assert hard_pixel_loss(logits, target, None, 0.01).item() == pytest.approx(5), "one pixel at least"
    weight = torch.tensor([[[9.0, 1, 1, 1, 1, 1]]])
    assert hard_pixel_loss(logits, target, weight, 0.4).item() == pytest.approx((9 + 5) / 2)


def test_over_the_batch_ignored_pixels_are_pixels_of_loss_0():
    logits = torch.cat([logits_of([1.0, 5.0, 2.0, 4.0]), logits_of([6.0, 1.0, 1.0, 1.0])])
    target = torch.tensor([[[0, 0, 0, 0]], [[0, IGNORE_LABEL, IGNORE_LABEL, IGNORE_LABEL]]])
    assert hard_pixel_loss(logits, target, None, 0.25, over_batch=True).item() == pytest.approx((6 + 5) / 2)
    assert hard_pixel_loss(logits, target, None, 1.0, over_batch=True).item() == pytest.approx(18 / 8)
    assert hard_pixel_loss(logits, target, None, 0.5).item() == pytest.approx(((5 + 4) / 2 + 6) / 2), "image by image"


def test_errors_of_centres_and_offsets_by_hand():
    heat = torch.tensor([[[[0.5, 0.0]]], [[[1.0, 0.0]]]])
    weight = torch.tensor([[[[True, False]]], [[[True, True]]]])
    target = torch.zeros_like(heat)
    assert center_loss(heat, target, weight).item() == pytest.approx((0.25 + 0.5) / 2)
    assert center_loss(heat, target, weight, over_batch=True).item() == pytest.approx(1.25 / 3)
    offset = torch.tensor([[[[3.0, 9.0]], [[-1.0, 9.0]]]])
    weight = torch.tensor([[[[True, False]]]])
    assert offset_loss(offset, torch.zeros_like(offset), weight).item() == pytest.approx((3 + 1) / 2)


def random_case(seed, count=3, size=(20, 30)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 5, *size, generator=generator)
    target = torch.randint(0, 5, (count, *size), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = IGNORE_LABEL
    return logits, target, 1 + torch.rand(count, *size, generator=generator)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_batch_has_the_mean_loss_of_its_images_whatever_their_padding(share):
    logits, target, weight = random_case(0)
    whole = hard_pixel_loss(logits, target, weight, share)
    parts = [hard_pixel_loss(logits[i : i + 1], target[i : i + 1], weight[i : i + 1], share) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    padded = hard_pixel_loss(
        F.pad(logits, (0, 9, 0, 5)), F.pad(target, (0, 9, 0, 5), value=IGNORE_LABEL), F.pad(weight, (0, 9, 0, 5)), share
    )
    torch.testing.assert_close(padded, whole)


@pytest.mark.parametrize("over_batch", [False, True])
def test_without_labels_losses_and_gradients_are_zero(over_batch):
    logits, target, _ = random_case(1)
    maps = [logits, torch.randn(3, 1, 20, 30), torch.randn(3, 2, 20, 30)]
    maps = [x.requires_grad_() for x in maps]
    nothing = torch.zeros(3, 1, 20, 30, dtype=torch.bool)
    losses = [
        hard_pixel_loss(maps[0], torch.full_like(target, IGNORE_LABEL), None, 0.2, over_batch=over_batch),
        center_loss(maps[1], torch.zeros_like(maps[1]), nothing, over_batch=over_batch),
        offset_loss(maps[2], torch.zeros_like(maps[2]), nothing, over_batch=over_batch),
    ]
    assert all(loss == 0 for loss in losses)
    assert all(not gradient.any() for gradient in torch.autograd.grad(sum(losses), maps))


def test_only_the_hardest_pixels_have_a_gradient():
    logits, target, _ = random_case(2, count=2)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(hard_pixel_loss(logits, target, None, 0.2), logits)
    touched = gradient.abs().sum(1) > 0
    labelled = (target != IGNORE_LABEL).flatten(1).sum(1)
    assert touched.flatten(1).sum(1).tolist() == (labelled * 0.2).long().tolist()
    loss = F.cross_entropy(logits, target, ignore_index=IGNORE_LABEL, reduction="none")
    for image in range(2):
        assert loss[image][touched[image]].min() >= loss[image][~touched[image]].max()


def test_a_loss_that_is_not_finite_shows():
    logits, target, _ = random_case(3)
    logits[0, 0, 0, 0] = math.nan
    target[0, 0, 0] = 0
    assert hard_pixel_loss(logits, target, None, 0.2).isnan()
