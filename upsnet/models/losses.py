"""Averages of losses that all architectures use."""

from __future__ import annotations

from torch import Tensor


def image_mean(values: Tensor, weight: Tensor, count: Tensor | None = None) -> Tensor:
    """Weighted mean per image, then the mean over images; an image of weight 0 counts as loss 0.

    Args:
        values: [B, ...].
        weight: bool or float, broadcastable to `values`.
        count: float [B], the divisor of each image; by default the sum of its weights.
    """
    weight = weight.to(values).expand_as(values)
    total = (values * weight).flatten(1).sum(1)
    divisor = weight.flatten(1).sum(1) if count is None else count
    return (total / divisor.clamp(min=1)).mean()
