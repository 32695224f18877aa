"""The definition of the panoptic head (Xiong et al. 2019, sec. 3.3): the full volume of logits, and its argmax.

Channels: S stuff logits; K instances, each its class's semantic logit plus its mask logit inside its box; one
`unknown`, the best thing logit minus what the instances explain. Three departures from the official program are on
purpose (ARCHITECTURE.md, "Panoptic head"): an instance exists only inside its box, box edges are continuous
(a pixel belongs to a box if its centre does), and an absent instance explains 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upsnet.data.categories import semantic_from_label
from upsnet.ops.mask_paste import paste_masks

NEVER = -1e4
"""Logit of an instance outside its box: never the maximum, and finite, so that gradients are."""


def panoptic_logits(
    semantic: Tensor, boxes: Tensor, labels: Tensor, keep: Tensor, mask_logits: Tensor, num_stuff: int
) -> Tensor:
    """The volume of panoptic logits; differentiable in `semantic` and `mask_logits`.

    Args:
        semantic: float32 [B, S + T, H, W], semantic logits at the resolution of the result.
        boxes: float32 [B, K, 4], XYXY in pixels of that resolution.
        labels: int64 [B, K], 1..T.
        keep: bool [B, K]; other slots never win and explain nothing.
        mask_logits: float32 [B, K, M, M].
        num_stuff: S.

    Returns:
        float32 [B, S + K + 1, H, W].
    """
    own, logits, inside = _planes(semantic, boxes, labels, mask_logits, num_stuff)
    inside = inside & keep[..., None, None]
    instances = torch.where(inside, own + logits, NEVER)
    explained = torch.where(inside, own, 0).amax(1, keepdim=True).clamp(min=0)
    unknown = semantic[:, num_stuff:].amax(1, keepdim=True) - explained
    return torch.cat([semantic[:, :num_stuff], instances, unknown], dim=1)


def keep_instances(mask: Tensor, labels: Tensor, valid: Tensor, overlap_threshold: float) -> Tensor:
    """Drops instances whose mask is mostly taken by kept instances of the same class before them.

    Args:
        mask: bool [B, K, H, W], in order of falling score.
        labels: int64 [B, K]; valid: bool [B, K].
        overlap_threshold: share of the own mask above which an instance goes; one without pixels goes too.

    Returns:
        bool [B, K].
    """
    keep = torch.zeros_like(valid)
    for k in range(mask.shape[1]):
        rivals = keep[:, :k] & (labels[:, :k] == labels[:, k : k + 1])
        taken = (mask[:, :k] & rivals[..., None, None]).any(1)
        area = mask[:, k].sum((1, 2))
        overlap = (mask[:, k] & taken).sum((1, 2))
        keep[:, k] = valid[:, k] & (area > 0) & (overlap <= overlap_threshold * area)
    return keep


def fuse(
    semantic: Tensor,
    boxes: Tensor,
    labels: Tensor,
    valid: Tensor,
    mask_logits: Tensor,
    *,
    num_stuff: int,
    overlap_threshold: float,
) -> Tensor:
    """The panoptic map by the full volume. Arguments as `panoptic_logits`, `valid` for `keep`, in score order.

    Returns:
        int64 [B, H, W]: 0..S-1 stuff, S + k for slot k, S + K unknown.
    """
    _, logits, inside = _planes(semantic, boxes, labels, mask_logits, num_stuff)
    keep = keep_instances(inside & (logits > 0), labels, valid, overlap_threshold)
    return panoptic_logits(semantic, boxes, labels, keep, mask_logits, num_stuff).argmax(1)


def _planes(
    semantic: Tensor, boxes: Tensor, labels: Tensor, mask_logits: Tensor, num_stuff: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Per instance: the semantic logit of its class, its mask logit, and where its box is; each [B, K, H, W]."""
    height, width = semantic.shape[-2:]
    x, y = (torch.arange(n, device=semantic.device) + 0.5 for n in (width, height))
    logits, inside = paste_masks(mask_logits, boxes, x, y)
    channel = semantic_from_label(labels, num_stuff)
    own = semantic.gather(1, channel[..., None, None].expand(-1, -1, height, width))
    return own, logits, inside
