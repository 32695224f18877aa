"""The model in the form that is exported: pictures and sizes in, the segment map and a table of fixed length out.

The panoptic fusion is one operator of the graph (`upsnet::panoptic_segments`), like the suppression of boxes and the
pooling of RoIs. In a `.pt2` they run the code of this package; `onnx_ops.py` holds their ONNX forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from upsnet.data.categories import CategorySet
from upsnet.models.panoptic_head import PanopticHead
from upsnet.models.upsnet import UPSNet
from upsnet.ops.panoptic_fusion.slots import Method
from upsnet.structures import Detections, PanopticBatch, PanopticOutput


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
) -> Tensor:
    """`PanopticHead` as an operator.

    Args:
        semantic_logits: [B, S + T, h, w]; boxes, labels, valid, mask_logits: see `Detections`.
        image_sizes: int64 [B, 2], (H, W) of the valid network input.
        canvas: [H, W] of any type: its shape is the size of the result.
        num_stuff, num_things, method, overlap_threshold, stuff_area_limit: see `PanopticHead`.

    Returns:
        int32 [B, H, W]: 0 is void, i + 1 is row i of the table of S stuff classes and K slots.
    """
    head = PanopticHead(
        num_stuff,
        num_things,
        method=cast(Method, method),
        overlap_threshold=overlap_threshold,
        stuff_area_limit=stuff_area_limit,
    )
    detections = Detections(boxes, torch.zeros_like(boxes[..., 0]), labels, valid, mask_logits)
    sizes = [(height, width) for height, width in image_sizes.tolist()]
    output = head(semantic_logits, detections, sizes, [(canvas.shape[0], canvas.shape[1])] * len(sizes))
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
    """

    category_ids: Tensor

    def __init__(self, model: UPSNet, categories: CategorySet) -> None:
        super().__init__()
        self.model = model
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
        semantic, found, _ = self.model.heads(images, image_sizes)
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
    batch, height, width = ids.shape
    flat = ids.flatten(1).long()
    rows = torch.arange(height, device=ids.device)[:, None].expand(height, width).reshape(1, -1).expand(batch, -1)
    columns = torch.arange(width, device=ids.device).expand(height, width).reshape(1, -1).expand(batch, -1)
    area = flat.new_zeros(batch, count + 1).scatter_add(1, flat, torch.ones_like(flat))
    low = [
        flat.new_zeros(batch, count + 1).scatter_reduce(1, flat, x, "amin", include_self=False) for x in (columns, rows)
    ]
    high = [
        flat.new_zeros(batch, count + 1).scatter_reduce(1, flat, x + 1, "amax", include_self=False)
        for x in (columns, rows)
    ]
    return area[:, 1:], torch.stack([*low, *high], -1)[:, 1:]


Graph = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""Images, image sizes and canvas -> the outputs of `DeployedModel`."""


class ExportedModel:
    """An exported file behind the face of `UPSNet.predict`.

    Args:
        run: the loaded graph.
        categories: the classes, in the order of the channels.
        batch_size: of the graph.
        device: of the graph.
    """

    def __init__(self, run: Graph, categories: CategorySet, batch_size: int, device: torch.device) -> None:
        self.run, self.batch_size, self.device = run, batch_size, device
        self.channels = {c.id: channel for channel, c in enumerate(categories.categories)}

    @torch.no_grad()
    def predict(self, batch: PanopticBatch) -> PanopticOutput:
        """Predicts each image at its original size; a batch smaller than the graph's is filled up."""
        maps: list[Tensor] = []
        tables: list[tuple[Tensor, Tensor]] = []
        while (first := len(maps)) < len(batch):
            # As many neighbours of one size as the graph takes at once.
            size = batch.original_sizes[first]
            same = [
                n for n in range(first, min(first + self.batch_size, len(batch))) if batch.original_sizes[n] == size
            ]
            count = next((i for i, n in enumerate(same) if n != first + i), len(same))
            rows = [first + min(i, count - 1) for i in range(self.batch_size)]
            canvas = torch.empty(size, dtype=torch.uint8, device=self.device)
            found = self.run(batch.images[rows].contiguous(), batch.image_sizes[rows], canvas)
            maps.extend(found["segment_ids"][:count])
            channels = [[self.channels[i] for i in row] for row in found["category_id"][:count].tolist()]
            tables.append((torch.tensor(channels), found["score"][:count]))
        classes, scores = (torch.cat(parts) for parts in zip(*tables, strict=True))
        return PanopticOutput(maps, classes, scores)
