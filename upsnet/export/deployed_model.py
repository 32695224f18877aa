"""The model in the form that is exported: images and sizes in, the segment map and a table of fixed length out.

The panoptic fusion, the suppression of boxes and the pooling of RoIs are operators of the graph. In a `.pt2` they run
the code of this package; `onnx_ops.py` holds their ONNX forms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upsnet.categories import CategorySet
from upsnet.models.base import PanopticModel


class DeployedModel(nn.Module):
    """A model with tensors for inputs and outputs, and the category ids of the data set.

    Args:
        model: one that predicts `panoptic`.
        categories: its classes.
    """

    category_ids: Tensor

    def __init__(self, model: PanopticModel, categories: CategorySet) -> None:
        super().__init__()
        self.model, self.num_stuff = model, categories.num_stuff
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
        raw = self.model.raw(images, image_sizes)
        ids, channels, scores = self.model.fuse_for_export(raw, image_sizes, canvas)
        area, box = _geometry(ids, channels.shape[1])
        return {
            "segment_ids": ids,
            "category_id": self.category_ids[channels],
            "is_thing": channels >= self.num_stuff,
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
