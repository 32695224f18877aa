"""Boxes as XYXY float tensors in continuous pixels (width = x2 - x1), any leading dimensions."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""Cap of the decoded log width and height, so that an untrained head cannot overflow."""


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: tuple[float, float]) -> Tensor:
    """Regression targets (dx, dy, dw, dh) that move `anchors` onto `boxes` (Girshick et al. 2014, app. C).

    Args:
        boxes, anchors: float32 [..., 4].
        weights: factors on (dx, dy) and on (dw, dh).
    """
    size, anchor_size = (b[..., 2:] - b[..., :2] for b in (boxes, anchors))
    size, anchor_size = size.clamp(min=1e-3), anchor_size.clamp(min=1e-3)
    shift = ((boxes[..., :2] + boxes[..., 2:]) - (anchors[..., :2] + anchors[..., 2:])) / 2 / anchor_size
    return torch.cat([shift * weights[0], (size / anchor_size).log() * weights[1]], dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor, weights: tuple[float, float]) -> Tensor:
    """Inverse of `encode_boxes`: float32 [..., 4]."""
    shift, growth = deltas[..., :2].float() / weights[0], deltas[..., 2:].float() / weights[1]
    size = anchors[..., 2:] - anchors[..., :2]
    center = anchors[..., :2] + size / 2 + shift * size
    half = size * growth.clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([center - half, center + half], dim=-1)


def clip_boxes(boxes: Tensor, image_sizes: Tensor, min_size: float = 0.0) -> Tensor:
    """Clips boxes [B, M, 4] to their images, of which `min_size` pixels per side stay inside.

    Args:
        boxes: float32.
        image_sizes: int64 [B, 2], (H, W).
        min_size: 0: a box outside becomes empty; 1 is what clipping inclusive coordinates to pixels amounts to.
    """
    limit = image_sizes.flip(-1)[:, None].to(boxes)
    low = boxes[..., :2].clamp(min=0).minimum(limit - min_size)
    return torch.cat([low, boxes[..., 2:].clamp(min=min_size).minimum(limit)], -1)


def scale_boxes(boxes: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] of an image of size `source` = (H, W), in pixels of the same image at size `target`."""
    vertical, horizontal = (new / old for new, old in zip(target, source, strict=True))
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1 * horizontal, y1 * vertical, x2 * horizontal, y2 * vertical], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Areas [...]; 0 for boxes turned inside out."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU float32 [..., N, M] of boxes [..., N, 4] and [..., M, 4]; 0 for empty boxes."""
    ax1, ay1, ax2, ay2 = a[..., :, None, :].unbind(-1)
    bx1, by1, bx2, by2 = b[..., None, :, :].unbind(-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    inter = width.mul_(torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0))
    union = box_area(a)[..., None] + box_area(b)[..., None, :] - inter
    return inter.div_(union.clamp_(min=1e-6))


def float32_below(threshold: float) -> float:
    """The largest float32 that is not above it: a float32 IoU exceeds both or neither."""
    rounded = np.float32(threshold)
    return float(rounded if rounded <= threshold else np.nextafter(rounded, np.float32(-1)))
