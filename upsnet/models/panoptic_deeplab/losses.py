"""The losses of Panoptic-DeepLab (Cheng et al. 2020, sec. 3.3), computed in float32.

By default each is averaged within an image first and over the images of the batch after, so that any split of a batch
over processes or accumulation steps gives the same gradient. With `over_batch` each is averaged over the pixels of all
images at once, as in the original program.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from upsnet.categories import IGNORE_LABEL
from upsnet.models.losses import image_mean


def hard_pixel_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None, share: float, *, over_batch: bool = False
) -> Tensor:
    """The mean cross-entropy of the pixels with the largest weighted cross-entropy.

    Args:
        logits: [B, C, H, W].
        target: integer [B, H, W], `IGNORE_LABEL` where nothing is known.
        weight: float [B, H, W], factor on the loss of each pixel; None: 1.
        share: of the labelled pixels of each image, more than 0; 1: all.
        over_batch: the share is of all pixels of the batch, in which ignored pixels are pixels of loss 0.
    """
    loss = F.cross_entropy(logits, target.long(), ignore_index=IGNORE_LABEL, reduction="none")
    loss = loss if weight is None else loss * weight
    if over_batch:
        return loss.mean() if share == 1 else loss.flatten().topk(max(1, int(share * loss.numel()))).values.mean()
    is_labelled = target != IGNORE_LABEL
    if share == 1:
        return image_mean(loss, is_labelled)
    # Images have different numbers of labelled pixels: take as many as the largest could have, then count the first.
    loss = loss.flatten(1)
    most = max(1, int(share * loss.shape[1]))
    count = (is_labelled.flatten(1).sum(1) * share).floor().clamp(1, most)
    hardest = loss.topk(most, dim=1).values
    return image_mean(hardest, torch.arange(most, device=loss.device) < count[:, None])


def center_loss(heat: Tensor, target: Tensor, weight: Tensor, *, over_batch: bool = False) -> Tensor:
    """The mean squared error of the heat over the pixels of weight 1.

    Args:
        heat, target: [B, 1, H, W].
        weight: bool [B, 1, H, W].
        over_batch: see the module.
    """
    return _mean((heat - target) ** 2, weight, over_batch=over_batch)


def offset_loss(offset: Tensor, target: Tensor, weight: Tensor, *, over_batch: bool = False) -> Tensor:
    """The mean absolute error of the offsets over the pixels of weight 1 and both components.

    Args:
        offset, target: [B, 2, H, W], in pixels.
        weight: bool [B, 1, H, W].
        over_batch: see the module.
    """
    return _mean((offset - target).abs(), weight, over_batch=over_batch)


def _mean(values: Tensor, weight: Tensor, *, over_batch: bool) -> Tensor:
    weight = weight.to(values).expand_as(values)
    if over_batch:
        values, weight = values.flatten()[None], weight.flatten()[None]
    return image_mean(values, weight)
