"""The panoptic map with a running maximum: no [K, H, W] volume, and only the pixels inside each box are touched.

For tensors in host memory: boxes steer slices, which costs nothing there. Equal to `reference.fuse`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from upsnet.data.categories import semantic_from_label
from upsnet.ops.mask_paste import paste_masks


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
    """As `reference.fuse`: int64 [B, H, W]."""
    images = zip(semantic, boxes, labels.tolist(), valid.tolist(), mask_logits, strict=True)
    return torch.stack([_fuse_image(*image, num_stuff, overlap_threshold) for image in images])


def _fuse_image(
    semantic: Tensor,
    boxes: Tensor,
    labels: list[int],
    valid: list[bool],
    mask_logits: Tensor,
    num_stuff: int,
    overlap_threshold: float,
) -> Tensor:
    height, width = semantic.shape[-2:]
    best, winner = semantic[:num_stuff].max(0)
    explained = torch.zeros_like(best)
    taken = {label: torch.zeros(height, width, dtype=torch.bool) for label in set(labels)}
    for slot, box in enumerate(boxes.tolist()):
        # Pixel j lies in [low, high) if its centre j + 1/2 does.
        x1, y1, x2, y2 = (math.ceil(edge - 0.5) for edge in box)
        rows, columns = slice(max(y1, 0), min(y2, height)), slice(max(x1, 0), min(x2, width))
        if not valid[slot] or rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        x, y = (torch.arange(span.start, span.stop) + 0.5 for span in (columns, rows))
        logits, _ = paste_masks(mask_logits[slot], boxes[slot], x, y)
        mask = logits > 0
        occupied = taken[labels[slot]][rows, columns]
        area, overlap = mask.sum(), (mask & occupied).sum()
        if area == 0 or overlap > overlap_threshold * area:
            continue
        occupied |= mask
        own = semantic[semantic_from_label(labels[slot], num_stuff), rows, columns]
        score, region = own + logits, best[rows, columns]
        winner[rows, columns].masked_fill_(score > region, num_stuff + slot)
        torch.maximum(region, score, out=region)
        torch.maximum(explained[rows, columns], own, out=explained[rows, columns])
    unknown = semantic[num_stuff:].amax(0) - explained
    return winner.masked_fill_(unknown > best, num_stuff + len(labels))
