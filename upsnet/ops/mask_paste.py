"""Mask logits of a box, resampled at any pixel grid, as products with two small interpolation matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def paste_weights(low: Tensor, high: Tensor, centers: Tensor, mask_size: int) -> Tensor:
    """Bilinear weights [..., P, M] of the M mask cells between `low` and `high` at P pixel centres.

    Args:
        low, high: float32 [...], the box along one axis, in the unit of `centers`.
        centers: float32 [P].
        mask_size: M; cell m has its centre at low + (m + 1/2) (high - low) / M, edges are clamped.
    """
    size = (high - low).clamp(min=1e-3)[..., None]
    position = ((centers - low[..., None]) / size * mask_size - 0.5).clamp(0, mask_size - 1)
    cells = torch.arange(mask_size, device=centers.device)
    return (1 - (position[..., None] - cells).abs()).clamp(min=0)


def paste_masks(mask_logits: Tensor, boxes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Resamples masks on the grid of pixel centres x [W], y [H] (in the unit of the boxes).

    Args:
        mask_logits: float32 [..., M, M].
        boxes: float32 [..., 4], XYXY.

    Returns:
        float32 [..., H, W], extended by the mask's edge outside the box.
    """
    rows, columns = paste_factors(mask_logits, boxes, x, y)
    with torch.autocast(boxes.device.type, enabled=False):
        return rows @ columns


def paste_factors(mask_logits: Tensor, boxes: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors [..., H, M] and [..., M, W] whose product is `paste_masks`: any part of it costs only that part."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    rows = paste_weights(y1, y2, y, mask_logits.shape[-2])
    with torch.autocast(boxes.device.type, enabled=False):
        rows = rows @ mask_logits
    return rows, paste_weights(x1, x2, x, mask_logits.shape[-1]).transpose(-1, -2)


def inside_boxes(boxes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """bool [..., H, W]: the pixel centre lies in the box [..., 4], low edges included, high edges not."""
    x1, y1, x2, y2 = boxes[..., None].unbind(-2)
    return ((y >= y1) & (y < y2))[..., :, None] & ((x >= x1) & (x < x2))[..., None, :]


def paste_in_window(mask_logits: Tensor, box: Tensor, size: tuple[int, int]) -> tuple[Tensor, int, int]:
    """The mask of one instance in the window of its box, so that the work does not depend on the size of the image.

    Args:
        mask_logits: float32 [M, M].
        box: float32 [4], XYXY in pixels of the image.
        size: (H, W) of the image.

    Returns:
        bool [h, w], and row and column of its first pixel in the image; h = w = 0 if no pixel centre lies in the box.
    """
    x1, y1, x2, y2 = box.tolist()
    # A pixel centre c + 1/2 lies in the box if low <= c + 1/2 < high.
    left, top = (max(0, math.ceil(low - 0.5)) for low in (x1, y1))
    right, bottom = (min(limit, math.ceil(high - 0.5)) for high, limit in ((x2, size[1]), (y2, size[0])))
    if right <= left or bottom <= top:
        return torch.zeros(0, 0, dtype=torch.bool), 0, 0
    x, y = (torch.arange(low, high, device=box.device) + 0.5 for low, high in ((left, right), (top, bottom)))
    return paste_masks(mask_logits, box, x, y) > 0, top, left


def paste_in_windows(
    mask_logits: Tensor, boxes: Tensor, valid: Tensor, size: tuple[int, int]
) -> Iterator[tuple[Tensor, int, int]]:
    """`paste_in_window` of the valid slots, on the host, one at a time: a stack of masks takes gigabytes.

    Args:
        mask_logits: float32 [K, M, M].
        boxes: float32 [K, 4], XYXY in pixels of the image.
        valid: bool [K].
        size: (H, W) of the image.
    """
    for logits, box in zip(mask_logits[valid].cpu(), boxes[valid].cpu(), strict=True):
        yield paste_in_window(logits, box, size)
