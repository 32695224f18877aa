"""The panoptic head as one operator of a graph: `upsnet::panoptic_segments`.

In a `.pt2` it runs the code of this package. `export.onnx_fusion` has its ONNX form.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from upsnet.config import PanopticConfig
from upsnet.models.upsnet.official import OfficialPanopticHead, exact_scale
from upsnet.models.upsnet.panoptic_head import PanopticHead
from upsnet.structures import Detections


@torch.library.custom_op("upsnet::panoptic_segments", mutates_args=())
def panoptic_segments(
    semantic_logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    valid: Tensor,
    mask_logits: Tensor,
    image_sizes: Tensor,
    canvas: Tensor,
    num_stuff: int,
    num_things: int,
    method: str,
    overlap_threshold: float,
    stuff_area_limit: int,
    short_side: int = 0,
    max_side: int = 0,
) -> Tensor:
    """`PanopticHead` as an operator.

    Args:
        semantic_logits: [B, S + T, h, w]; boxes, labels, valid, mask_logits: see `Detections`.
        image_sizes: int64 [B, 2], (H, W) of the valid network input.
        canvas: [H, W] of any type: its shape is the size of the result.
        num_stuff, num_things, method, overlap_threshold, stuff_area_limit: see `PanopticHead`.
        short_side, max_side: the rule of `official.exact_scale`; only files of format 1 and 2 call it, with the method
            `official`; 0: none.

    Returns:
        int32 [B, H, W]: 0 is void, i + 1 is row i of the table of S stuff classes and K slots.
    """
    config = PanopticConfig(
        method=cast(Any, method), overlap_threshold=overlap_threshold, stuff_area_limit=stuff_area_limit
    )
    detections = Detections(boxes, torch.zeros_like(boxes[..., 0]), labels, valid, mask_logits)
    sizes = [(height, width) for height, width in image_sizes.tolist()]
    size = (canvas.shape[0], canvas.shape[1])
    if method == "official":
        scale = exact_scale(size, short_side, max_side) if short_side else max(sizes[0]) / max(size)
        official = OfficialPanopticHead(num_stuff, num_things, config)
        output = official.fuse_images(semantic_logits, detections, sizes, [size] * len(sizes), [scale] * len(sizes))
    else:
        output = PanopticHead(num_stuff, num_things, config)(semantic_logits, detections, sizes, [size] * len(sizes))
    return torch.stack(output.segment_ids)


@panoptic_segments.register_fake
def _(semantic_logits: Tensor, *others: Any) -> Tensor:
    canvas = others[5]
    return semantic_logits.new_empty(semantic_logits.shape[0], *canvas.shape, dtype=torch.int32)
