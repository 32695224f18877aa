"""Non-maximum suppression of many rows at once, with a mask of fixed shape in place of a list."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from upsnet.ops.backend import has_kernels


@torch.library.custom_op("upsnet::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS per row: a box goes if its IoU with a kept box before it is greater than the threshold.

    Args:
        boxes: float32 [R, M, 4], XYXY, each row sorted by falling score; R = images x levels (or classes).
            Empty boxes (padding) neither suppress nor are suppressed.
        iou_threshold: 0..1.

    Returns:
        bool [R, M], True where a box is kept.
    """
    return _nms_rows(boxes, iou_threshold)


def _nms_rows(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Row by row, by torchvision; waits for the host."""
    keep = boxes.new_ones(boxes.shape[:2], dtype=torch.bool)
    order = torch.arange(boxes.shape[1], 0, -1, device=boxes.device, dtype=torch.float32)
    solid = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    for row, (candidates, is_solid) in enumerate(zip(boxes.float(), solid, strict=True)):
        kept = torchvision_nms(candidates[is_solid], order[is_solid], iou_threshold)
        positions = is_solid.nonzero()[:, 0]
        keep[row, positions] = False
        keep[row, positions[kept]] = True
    return keep


@nms_mask.register_kernel("cuda")
def _(boxes: Tensor, iou_threshold: float) -> Tensor:
    if not has_kernels(boxes):
        return _nms_rows(boxes, iou_threshold)
    from upsnet.ops import nms_triton

    return nms_triton.nms_mask(boxes, iou_threshold)


@nms_mask.register_fake
def _(boxes: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)
