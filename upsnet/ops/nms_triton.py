"""Non-maximum suppression on CUDA: overlap bits, then one program per row that goes through the boxes. No sync."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from upsnet.ops.boxes import float32_below

OVERLAP_ROWS = 64


def nms_mask(boxes: Tensor, iou_threshold: float) -> Tensor:
    """As `ops.nms.nms_mask`: boxes float32 [R, M, 4] -> bool [R, M]."""
    rows, count = boxes.shape[:2]
    words = triton.cdiv(count, 32)
    boxes = boxes.float().contiguous()
    limit = float32_below(iou_threshold)  # torchvision compares a float32 IoU with a float64 threshold
    bits = torch.empty(rows, words * 32, words, dtype=torch.int32, device=boxes.device)
    keep = torch.empty(rows, count, dtype=torch.int8, device=boxes.device)
    with torch.cuda.device_of(boxes):
        tiles = (words, triton.cdiv(words * 32, OVERLAP_ROWS), rows)
        _overlaps[tiles](boxes, bits, count, words, limit, OVERLAP_ROWS, enable_fp_fusion=False)
        _sweep[(rows,)](bits, keep, count, words, triton.next_power_of_2(words), num_warps=1)
    return keep.bool()


@triton.jit
def _corners(boxes, index, count):
    box, known = boxes + index * 4, index < count
    x1, y1 = tl.load(box, mask=known, other=0), tl.load(box + 1, mask=known, other=0)
    x2, y2 = tl.load(box + 2, mask=known, other=0), tl.load(box + 3, mask=known, other=0)
    return x1, y1, x2, y2, tl.maximum(x2 - x1, 0) * tl.maximum(y2 - y1, 0)


@triton.jit
def _overlaps(boxes, bits, count, words, threshold, ROWS: tl.constexpr):
    """Bit j of row i: box j comes later, and overlaps box i too much."""
    word, start, row = tl.program_id(0), tl.program_id(1) * ROWS, tl.program_id(2)
    boxes += row * count * 4
    i, j = start + tl.arange(0, ROWS), word * 32 + tl.arange(0, 32)
    target = bits + (row * words * 32 + i).to(tl.int64) * words + word
    packed = tl.zeros((ROWS,), tl.int32)
    if start < (word + 1) * 32:
        x1, y1, x2, y2, area = _corners(boxes, i, count)
        u1, v1, u2, v2, other = _corners(boxes, j, count)
        width = tl.minimum(x2[:, None], u2[None, :]) - tl.maximum(x1[:, None], u1[None, :])
        height = tl.minimum(y2[:, None], v2[None, :]) - tl.maximum(y1[:, None], v1[None, :])
        shared = tl.maximum(width, 0) * tl.maximum(height, 0)
        union = area[:, None] + other[None, :] - shared
        hit = (shared > 0) & (tl.div_rn(shared, union) > threshold) & (j[None, :] > i[:, None])
        packed = tl.sum(hit.to(tl.int32) << tl.arange(0, 32)[None, :], 1)
    tl.store(target, packed, mask=i < words * 32)


@triton.jit
def _sweep(bits, keep, count, words, WORDS: tl.constexpr):
    """Goes through the boxes of a row in order; a kept box removes those of its bits."""
    row = tl.program_id(0)
    bits += row.to(tl.int64) * words * 32 * words
    lane, index = tl.arange(0, 32), tl.arange(0, WORDS)
    removed = tl.zeros((WORDS,), tl.int32)
    for word in range(0, words):
        current = tl.sum(tl.where(index == word, removed, 0))
        for bit in range(0, 32):
            box = bits + (word * 32 + bit) * words
            alive = ((current >> bit) & 1) == 0
            current |= tl.where(alive, tl.load(box + word), 0)
            removed |= tl.where(alive, tl.load(box + index, mask=index < words, other=0), 0)
        position = word * 32 + lane
        tl.store(keep + row * count + position, 1 - ((current >> lane) & 1), mask=position < count)
