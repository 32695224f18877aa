"""Which truth belongs to which box: shared by the anchors and the RoIs, for all images at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from upsnet.ops.boxes import pairwise_iou
from upsnet.structures import PanopticTarget

CROWD_SHARE = 0.5
"""A box with more of its area on the pixels of crowds is neither an object nor background."""


@dataclass(frozen=True)
class Match:
    """The best instance for each box.

    Attributes:
        iou: float32 [B, M], the IoU with it, -1 where the image has no instance.
        slot: int64 [B, M], its row in the truth.
        is_ignored: bool [B, M]: lies on crowds.
    """

    iou: Tensor
    slot: Tensor
    is_ignored: Tensor


def match(truth: PanopticTarget, crowds: Tensor, boxes: Tensor) -> Match:
    """Matches boxes [B or 1, M, 4] to the truth; `crowds` is its `crowd_integral`."""
    iou, slot = _overlap(truth.boxes, truth.is_instance, boxes).max(1)
    return Match(iou, slot, crowd_share(crowds, boxes) > CROWD_SHARE)


def match_anchors(truth: PanopticTarget, crowds: Tensor, anchors: Tensor, within: Tensor) -> tuple[Match, Tensor]:
    """Matches anchors [A, 4], of which bool [B, A] lie within their image, to the truth.

    Returns:
        what `match` gives, and bool [B, A]: no other anchor within the image overlaps some instance more.
    """
    # One image at a time: there are so many anchors that the overlaps of a batch would be a peak of memory.
    rows = []
    for boxes, is_instance, is_within in zip(truth.boxes, truth.is_instance, within, strict=True):
        overlap = _overlap(boxes, is_instance, anchors)
        iou, slot = overlap.max(0)
        best = overlap.masked_fill_(~is_within, -1).amax(1, keepdim=True)
        rows.append((iou, slot, ((overlap == best) & (best > 0)).any(0)))
    iou, slot, is_best = (torch.stack(column) for column in zip(*rows, strict=True))
    return Match(iou, slot, crowd_share(crowds, anchors[None]) > CROWD_SHARE), is_best


def _overlap(truth: Tensor, is_instance: Tensor, boxes: Tensor) -> Tensor:
    """IoU [..., N, M]; -1 for crowds and padding."""
    return pairwise_iou(truth, boxes).masked_fill_(~is_instance[..., None], -1)


def crowd_integral(truth: PanopticTarget) -> Tensor:
    """The number of crowd pixels above and to the left of each corner of a pixel: float32 [B, H + 1, W + 1]."""
    is_crowd = F.pad(truth.is_crowd_region, (1, 0)).float()
    pixels = is_crowd.gather(1, truth.instance_map.flatten(1).long()).view_as(truth.instance_map)
    return F.pad(pixels.cumsum(1).cumsum(2), (1, 0, 1, 0))


def crowd_share(crowds: Tensor, boxes: Tensor) -> Tensor:
    """The share of each box [B or 1, M, 4] inside the image that crowd pixels cover: float32 [B, M]."""
    height, width = crowds.shape[1] - 1, crowds.shape[2] - 1
    boxes = boxes.round().long().expand(len(crowds), -1, -1)
    x1, x2 = (boxes[..., i].clamp(0, width) for i in (0, 2))
    y1, y2 = (boxes[..., i].clamp(0, height) for i in (1, 3))
    image = torch.arange(len(crowds), device=boxes.device)[:, None]
    inside = crowds[image, y2, x2] - crowds[image, y1, x2] - crowds[image, y2, x1] + crowds[image, y1, x1]
    return inside / ((x2 - x1) * (y2 - y1)).clamp(min=1)


def mask_targets(truth: PanopticTarget, boxes: Tensor, slots: Tensor, size: int) -> Tensor:
    """Soft masks: the instance's coverage around the centres of size x size bins, read from the instance map.

    Args:
        truth: of the batch.
        boxes: float32 [B, R, 4] in pixels; slots: int64 [B, R], row of the instance each box shall contain.
        size: bins per side.

    Returns:
        float32 [B, R, size, size] in 0..1: the mean of 2 x 2 bilinear samples per bin.
    """
    height, width = truth.instance_map.shape[-2:]
    batch = torch.arange(len(boxes), device=boxes.device)[:, None, None, None]
    fraction = (torch.arange(2 * size, device=boxes.device) + 0.5) / (2 * size)

    def axis(low: Tensor, high: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        position = (low[..., None] + fraction * (high - low)[..., None] - 0.5).clamp(0, limit - 1)
        before = position.floor().long()
        return before, (before + 1).clamp(max=limit - 1), position - before

    x0, x1, wx = axis(boxes[..., 0], boxes[..., 2], width)
    y0, y1, wy = axis(boxes[..., 1], boxes[..., 3], height)

    def corner(y: Tensor, x: Tensor) -> Tensor:
        found = truth.instance_map[batch, y[..., :, None], x[..., None, :]]
        return (found == slots[..., None, None] + 1).float()

    wx, wy = wx[..., None, :], wy[..., :, None]
    top = corner(y0, x0) * (1 - wx) + corner(y0, x1) * wx
    bottom = corner(y1, x0) * (1 - wx) + corner(y1, x1) * wx
    samples = top * (1 - wy) + bottom * wy
    return samples.unflatten(-1, (size, 2)).unflatten(-3, (size, 2)).mean((-1, -3))


def semantic_targets(truth: PanopticTarget, boxes: Tensor, size: int) -> Tensor:
    """The semantic map at the centres of size x size bins of boxes [B, R, 4]: int64 [B, R, size, size]."""
    height, width = truth.semantic_map.shape[-2:]
    batch = torch.arange(len(boxes), device=boxes.device)[:, None, None, None]
    fraction = (torch.arange(size, device=boxes.device) + 0.5) / size
    x, y = (
        (boxes[..., a, None] + fraction * (boxes[..., a + 2] - boxes[..., a])[..., None]).long().clamp(0, limit - 1)
        for a, limit in ((0, width), (1, height))
    )
    return truth.semantic_map[batch, y[..., :, None], x[..., None, :]].long()
