"""The losses of UPSNet.

Each is averaged within an image first and over the images of the batch after, so that
any split of a batch over processes or accumulation steps gives the same gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from upsnet.categories import IGNORE_LABEL
from upsnet.models.losses import image_mean
from upsnet.ops.upsampled_cross_entropy import upsampled_cross_entropy


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Huber-like loss summed over the last dimension (Girshick 2015); quadratic below `beta`."""
    return F.smooth_l1_loss(prediction.float(), target, beta=beta, reduction="none").sum(-1)


def objectness_and_box_loss(
    logits: Tensor, deltas: Tensor, targets: Tensor, is_positive: Tensor, is_sampled: Tensor, divisor: int | None = None
) -> tuple[Tensor, Tensor]:
    """RPN losses of the sampled anchors (Ren et al. 2015, eq. 1), both over the number of sampled anchors.

    Args:
        logits: [B, M]; deltas, targets: [B, M, 4]; is_positive, is_sampled: bool [B, M].
        divisor: of the objectness loss, in place of the number of sampled anchors.
    """
    count = is_sampled.sum(1).float()
    objectness = F.binary_cross_entropy_with_logits(logits.float(), is_positive.float(), reduction="none")
    box = smooth_l1(deltas, targets, beta=1 / 9)
    objectness_count = count if divisor is None else torch.full_like(count, divisor)
    return image_mean(objectness, is_sampled, objectness_count), image_mean(box, is_positive, count)


def class_and_box_loss(
    logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, is_sampled: Tensor
) -> tuple[Tensor, Tensor]:
    """Fast R-CNN losses (Girshick 2015, sec. 2.3), both over the number of sampled RoIs.

    Args:
        logits: [B, R, T + 1]; deltas: [B, R, 4] of the RoI's own class; labels: int64 [B, R], 0 = background;
            targets: [B, R, 4]; is_sampled: bool [B, R].
    """
    count = is_sampled.sum(1).float()
    classes = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    box = smooth_l1(deltas, targets, beta=1.0)
    return image_mean(classes, is_sampled, count), image_mean(box, (labels > 0) & is_sampled, count)


def mask_loss(logits: Tensor, targets: Tensor, is_positive: Tensor) -> Tensor:
    """Binary cross-entropy of the own class's mask (He et al. 2017, sec. 3).

    Args:
        logits: [B, R, M, M]; targets: float [B, R, M, M] in 0..1; is_positive: bool [B, R].
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return image_mean(loss, is_positive[..., None, None])


def pixel_loss(logits: Tensor, target: Tensor, ignore: int = IGNORE_LABEL, *, over_ignored: bool = False) -> Tensor:
    """Cross-entropy over the labelled pixels of each image.

    Args:
        logits: [B, C, H, W]; target: integer [B, H, W], `ignore` where nothing is known.
        over_ignored: divide by the number of all pixels.
    """
    loss = F.cross_entropy(logits.float(), target.long(), ignore_index=ignore, reduction="none")
    return image_mean(loss, torch.ones_like(loss) if over_ignored else target != ignore)


def upsampled_pixel_loss(logits: Tensor, target: Tensor, factor: int) -> Tensor:
    """`pixel_loss` of logits [B, C, h, w] upsampled bilinearly by `factor`, without the upsampled logits."""
    total = upsampled_cross_entropy(logits.float(), target, factor, IGNORE_LABEL)
    return (total / (target != IGNORE_LABEL).flatten(1).sum(1).clamp(min=1)).mean()


def roi_pixel_loss(logits: Tensor, target: Tensor, is_roi: Tensor, *, over_ignored: bool = False) -> Tensor:
    """Semantic cross-entropy inside the ground-truth boxes (Xiong et al. 2019, sec. 3.2).

    Args:
        logits: [B, N, C, M, M]; target: int64 [B, N, M, M] or `IGNORE_LABEL`; is_roi: bool [B, N].
        over_ignored: divide by the number of all cells of the boxes.
    """
    loss = F.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(0, 1), ignore_index=IGNORE_LABEL, reduction="none"
    )
    counts = is_roi[..., None, None].expand_as(target) if over_ignored else target != IGNORE_LABEL
    return image_mean(loss.view_as(target), counts & is_roi[..., None, None])
