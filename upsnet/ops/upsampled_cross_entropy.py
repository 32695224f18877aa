"""Cross-entropy of upsampled logits without the upsampled logits: piece by piece, gradient included.

At full resolution the logits of 133 classes, their log-probabilities and the gradient of both are the largest tensors
of a training step. The loss is a sum over pixels, so each piece's gradient is known as soon as its loss is: it goes
back to the small logits at once and the piece is forgotten (`benchmarks/training.py`). Pieces are columns of cells in
one kernel on a GPU, and stripes that stay in the cache elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upsnet.ops.backend import has_kernels

STRIPE = 2**20
"""Logits of one stripe, about."""


def upsampled_cross_entropy(logits: Tensor, target: Tensor, factor: int, ignore: int) -> Tensor:
    """The sum over each image's pixels of the cross-entropy of bilinearly upsampled logits.

    Args:
        logits: float32 [B, C, h, w].
        target: integer [B, h * factor, w * factor], 0..C-1, or `ignore` where a pixel counts nothing.
        factor: pixels per cell and side; pixel centres are aligned (`align_corners=False`).
        ignore: the label.

    Returns:
        float32 [B]. It can be differentiated once.
    """
    if target.shape[1:] != (logits.shape[2] * factor, logits.shape[3] * factor):
        raise ValueError(f"target {tuple(target.shape)}, expected {factor} x the cells of logits {tuple(logits.shape)}")
    total: Tensor = _loss_and_gradient(logits, target, factor, ignore)[0]
    return total


@torch.library.custom_op("upsnet::upsampled_cross_entropy", mutates_args=())
def _loss_and_gradient(logits: Tensor, target: Tensor, factor: int, ignore: int) -> tuple[Tensor, Tensor]:
    """The sums [B], and their gradients [B, C, h, w]."""
    return _by_stripes(logits, target, factor, ignore)


@_loss_and_gradient.register_kernel("cuda")
def _(logits: Tensor, target: Tensor, factor: int, ignore: int) -> tuple[Tensor, Tensor]:
    if factor % 2 or not has_kernels(logits):
        return _by_stripes(logits, target, factor, ignore)
    from upsnet.ops import upsampled_cross_entropy_triton

    return upsampled_cross_entropy_triton.loss_and_gradient(logits, target, factor, ignore)


def _by_stripes(logits: Tensor, target: Tensor, factor: int, ignore: int) -> tuple[Tensor, Tensor]:
    logits = logits.contiguous(memory_format=torch.channels_last)
    channels, height, width = logits.shape[1:]
    total, gradient = logits.new_zeros(len(logits)), torch.zeros_like(logits)
    rows = max(1, STRIPE // (channels * width * factor**2))
    for image in range(len(logits)):
        part = slice(image, image + 1)
        for top in range(0, height, rows):
            end = min(top + rows, height)
            low, high = max(top - 1, 0), min(end + 1, height)  # one more row on either side shapes the stripe
            stripe = F.interpolate(logits[part, :, low:high], scale_factor=factor, mode="bilinear")
            pixels = stripe[0].permute(1, 2, 0)
            inner = pixels[(top - low) * factor : (end - low) * factor]
            total[image] += _to_gradient(inner, target[image, top * factor : end * factor], ignore)
            pixels[: (top - low) * factor] = 0
            pixels[(end - low) * factor :] = 0
            gradient[part, :, low:high] += torch.ops.aten.upsample_bilinear2d_backward(
                stripe, stripe.shape[-2:], [1, channels, high - low, width], False, factor, factor
            )
    return total, gradient


def _to_gradient(logits: Tensor, target: Tensor, ignore: int) -> Tensor:
    """Returns the sum of the cross-entropy of [H, W, C], and puts its gradient in the place of the logits."""
    counts = (target != ignore)[..., None]
    wanted = torch.where(counts, target[..., None].long(), 0)
    log_probs = logits.log_softmax(-1)
    loss = -(log_probs.gather(-1, wanted) * counts).sum()
    torch.exp(log_probs, out=logits)
    logits.scatter_add_(-1, wanted, logits.new_full((), -1).expand_as(wanted)).mul_(counts)
    return loss


@_loss_and_gradient.register_fake
def _(logits: Tensor, target: Tensor, factor: int, ignore: int) -> tuple[Tensor, Tensor]:
    return logits.new_empty(len(logits)), torch.empty_like(logits, memory_format=torch.channels_last)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, of_total: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    (gradient,) = ctx.saved_tensors
    return gradient * of_total[:, None, None, None], None, None, None


_loss_and_gradient.register_autograd(_backward, setup_context=_remember)
