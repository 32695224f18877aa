"""The model in the form that is exported: pictures and sizes in, the segment map and a table of fixed length out.

The panoptic fusion is one operator of the graph (`upsnet::panoptic_segments`), like the suppression of boxes and the
pooling of RoIs. In a `.pt2` they run the code of this package; `onnx_ops.py` holds their ONNX forms.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from upsnet.categories import CategorySet
from upsnet.config import PanopticConfig
from upsnet.data.transforms import exact_scale
from upsnet.models.upsnet.model import UPSNet
from upsnet.models.upsnet.panoptic_head import PanopticHead
from upsnet.ops.panoptic_fusion.slots import Method
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
    short_side: int,
    max_side: int,
) -> Tensor:
    """`PanopticHead` as an operator.

    Args:
        semantic_logits: [B, S + T, h, w]; boxes, labels, valid, mask_logits: see `Detections`.
        image_sizes: int64 [B, 2], (H, W) of the valid network input.
        canvas: [H, W] of any type: its shape is the size of the result.
        num_stuff, num_things, method, overlap_threshold, stuff_area_limit: see `PanopticHead`.
        short_side, max_side: the exact rule that pictures are resized by, for `official`; 0: none.

    Returns:
        int32 [B, H, W]: 0 is void, i + 1 is row i of the table of S stuff classes and K slots.
    """
    head = PanopticHead(
        num_stuff,
        num_things,
        PanopticConfig(
            method=cast(Method, method), overlap_threshold=overlap_threshold, stuff_area_limit=stuff_area_limit
        ),
    )
    detections = Detections(boxes, torch.zeros_like(boxes[..., 0]), labels, valid, mask_logits)
    sizes = [(height, width) for height, width in image_sizes.tolist()]
    size = (canvas.shape[0], canvas.shape[1])
    scale = exact_scale(size, short_side, max_side) if short_side else 0.0
    scales = [scale if n == (round(size[0] * scale), round(size[1] * scale)) else None for n in sizes]
    output = head(semantic_logits, detections, sizes, [size] * len(sizes), scales=scales)
    return torch.stack(output.segment_ids)


@panoptic_segments.register_fake
def _(semantic_logits: Tensor, *others: Any) -> Tensor:
    canvas = others[5]
    return semantic_logits.new_empty(semantic_logits.shape[0], *canvas.shape, dtype=torch.int32)


class DeployedModel(nn.Module):
    """UPSNet with tensors for inputs and outputs, and the data set's own category ids.

    Args:
        model: with both heads.
        categories: its classes.
        resize_rule: (shorter side, longer side at most) that pictures are resized to without rounding, if they are.
    """

    category_ids: Tensor

    def __init__(self, model: UPSNet, categories: CategorySet, resize_rule: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.model, self.resize_rule = model, resize_rule or (0, 0)
        self.register_buffer("category_ids", torch.tensor([c.id for c in categories.categories]))

    def forward(self, images: Tensor, image_sizes: Tensor, canvas: Tensor) -> dict[str, Tensor]:
        """Predicts a batch.

        Args:
            images: uint8 (or float32 in 0..255) [B, 3, H, W], RGB, padded at the bottom and the right.
            image_sizes: int64 [B, 2], (H, W) of the valid part of each.
            canvas: [h, w] of any type: its shape is the size of the maps.

        Returns:
            segment_ids int32 [B, h, w] (0 = void, i + 1 = row i of the table), and the table of R = S + K rows:
            category_id int64 [B, R], is_thing bool [B, R], score float32 [B, R], area int64 [B, R], box int64
            [B, R, 4] (XYXY, ends exclusive), valid bool [B, R] (the segment has pixels).
        """
        head = self.model.panoptic_head
        semantic, found, _ = self.model.raw(images, image_sizes)
        assert semantic is not None
        assert found is not None
        ids = panoptic_segments(
            semantic,
            found.boxes,
            found.labels,
            found.valid,
            found.mask_logits,
            image_sizes,
            canvas,
            head.num_stuff,
            head.num_things,
            head.method,
            head.overlap_threshold,
            head.stuff_area_limit,
            *self.resize_rule,
        )
        channels, scores = head.table(found, head.num_stuff)
        area, box = _geometry(ids, channels.shape[1])
        return {
            "segment_ids": ids,
            "category_id": self.category_ids[channels],
            "is_thing": channels >= head.num_stuff,
            "score": scores,
            "area": area,
            "box": box,
            "valid": area > 0,
        }


def _geometry(ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Areas int64 [B, R] and tight boxes int64 [B, R, 4] of the segments 1..R of maps [B, H, W]; 0 without pixels."""
    height, width = ids.shape[1:]
    rows = torch.arange(height, device=ids.device)[:, None]
    (y1, y2, area), (x1, x2, _) = (
        _extent(ids, count, position, size)
        for position, size in ((rows, height), (torch.arange(width, device=ids.device), width))
    )
    return area, torch.stack([x1, y1, x2, y2], -1)


def _extent(ids: Tensor, count: int, position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """First and last (exclusive) position of each segment along one axis, and its pixels: int64 [B, R]."""
    index = (ids.long() * size + position).flatten(1)
    pixels = index.new_zeros(len(ids), (count + 1) * size).scatter_add(1, index, torch.ones_like(index))
    pixels = pixels.view(-1, count + 1, size)[:, 1:]
    seen = (pixels > 0).int()
    is_there = seen.amax(2)
    return seen.argmax(2) * is_there, (size - seen.flip(2).argmax(2)) * is_there, pixels.sum(2)
