"""Region proposal network (Ren et al. 2015) over a feature pyramid, batched and of fixed shape throughout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upsnet.config import RPNConfig
from upsnet.models.layers import Conv2d, init_normal
from upsnet.models.upsnet.losses import objectness_and_box_loss
from upsnet.models.upsnet.matching import match_anchors
from upsnet.ops.boxes import clip_boxes, decode_boxes, encode_boxes, pairwise_iou
from upsnet.ops.nms import nms_mask
from upsnet.ops.sampling import gather_rows, hashed_uniform, sample_ranked
from upsnet.structures import PanopticTarget

UNIT = (1.0, 1.0)
NEVER = float("-inf")
MAX_CELLS = 4096
"""More rows or columns than any level has."""


class Anchors(nn.Module):
    """Base boxes per level, laid on the grid of cell centres.

    Args:
        shapes: (width, height) of the anchors of each level, in pixels.
        strides: pixels per cell of each level.
        offset: where in its cell an anchor is centred, 0..1.
    """

    base: Tensor

    def __init__(
        self, shapes: Sequence[Sequence[tuple[float, float]]], strides: Sequence[int], offset: float = 0.5
    ) -> None:
        super().__init__()
        self.strides, self.offset = tuple(strides), offset
        half = torch.tensor(shapes, dtype=torch.float32) / 2
        self.register_buffer("base", torch.cat([-half, half], dim=-1), persistent=False)

    @property
    def per_cell(self) -> int:
        """Anchors at each cell."""
        return int(self.base.shape[1])

    def forward(self, sizes: Sequence[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
        """Grid (H, W) of each level -> anchors in the order row, column, shape, and their names.

        Returns:
            float32 [H * W * A, 4], and int64 [H * W * A], the same for the same anchor at any padding; per level.
        """
        levels, names = [], []
        for number, (base, stride, (height, width)) in enumerate(zip(self.base, self.strides, sizes, strict=True)):
            column, row = (torch.arange(n, device=base.device) for n in (width, height))
            cell = torch.stack([column.expand(height, width), row[:, None].expand(height, width)], dim=-1)
            center = ((cell + self.offset) * stride).repeat(1, 1, 2)
            levels.append((center[:, :, None] + base).reshape(-1, 4))
            name = ((number * MAX_CELLS + cell[..., 1]) * MAX_CELLS + cell[..., 0])[..., None] * self.per_cell
            names.append((name + torch.arange(self.per_cell, device=base.device)).flatten())
        return levels, names

    def best_iou(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """The IoU of each box with the anchor that fits it best, of all whose centre lies in the image.

        Per shape that is the anchor whose centre is nearest, so no grid is made.

        Args:
            boxes: float32 [N, 4] in pixels of the network's input.
            image_size: (H, W) of the image there.

        Returns:
            float32 [N]; 0 where the image holds no centre.
        """
        best = boxes.new_zeros(len(boxes))
        limit = torch.tensor(image_size[::-1])
        for base, stride in zip(self.base, self.strides, strict=True):
            cells = ((limit / stride - self.offset).ceil() - 1).clamp(min=0)  # the last one with its centre inside
            cell = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride - self.offset).round().clamp(min=0).minimum(cells)
            center = (cell + self.offset) * stride
            inside = (center < limit).all(-1)
            anchors = center.repeat(1, 2)[:, None] + base
            best = best.maximum(pairwise_iou(boxes[:, None], anchors)[:, 0].amax(-1) * inside)
        return best


@dataclass(frozen=True)
class RPNOutput:
    """Scores and boxes of the A anchors of each level.

    Attributes:
        logits: float32 [B, A], objectness.
        ranks: float32 [B, A], the logits in full precision, without a gradient; proposals are ranked by them.
        deltas: float32 [B, A, 4].
        anchors: float32 [A, 4]; names: int64 [A].
    """

    logits: list[Tensor]
    ranks: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    names: list[Tensor]


class RPN(nn.Module):
    """Scores and refines anchors, and keeps the best after NMS.

    Args:
        channels: of the pyramid.
        anchors: the anchor grid, one row of sizes per level.
        config: `model.rpn`; its anchor keys are not used here.
        min_box: pixels of a clipped box that stay inside the image, per side.
        fixed_normalizer: divide the objectness loss by `samples`, whatever was sampled.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        config: RPNConfig,
        *,
        min_box: float = 0.0,
        fixed_normalizer: bool = False,
    ) -> None:
        super().__init__()
        self.anchors, self.config = anchors, config
        self.min_box, self.fixed_normalizer = min_box, fixed_normalizer
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(channels, anchors.per_cell, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * anchors.per_cell, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            init_normal(layer, std=0.01)

    def forward(self, levels: Sequence[Tensor]) -> RPNOutput:
        """Scores every anchor of the pyramid levels."""
        logits, ranks, deltas = [], [], []
        for level in levels:
            hidden = self.conv(level, relu=True)
            logits.append(self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1).float())
            ranks.append(self._ranks(hidden) if torch.is_autocast_enabled(hidden.device.type) else logits[-1].detach())
            deltas.append(self.bbox_pred(hidden).permute(0, 2, 3, 1).reshape(len(level), -1, 4).float())
        return RPNOutput(logits, ranks, deltas, *self.anchors([(x.shape[2], x.shape[3]) for x in levels]))

    @torch.no_grad()
    def _ranks(self, hidden: Tensor) -> Tensor:
        """The logits in float32 under autocast, [B, A]: bfloat16 has steps of 1/32 there, and many would tie.

        Image by image, because the hidden features in float32 are larger than anything that the step keeps.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.cat([self.cls_logits(one.float()).permute(0, 2, 3, 1).flatten(1) for one in hidden.split(1)])

    def propose(self, output: RPNOutput, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes, clips and suppresses.

        Returns:
            boxes float32 [B, P, 4] in order of falling score, and bool [B, P]: the slot is taken.
        """
        config = self.config
        pre_nms, post_nms = config.pre_nms, config.post_nms
        if self.training:
            pre_nms, post_nms = config.pre_nms_train, config.post_nms_train
        slots = min(pre_nms, max(level.shape[1] for level in output.ranks))
        all_boxes, all_scores = [], []
        for rank, delta, anchor in zip(output.ranks, output.deltas, output.anchors, strict=True):
            top = rank.topk(min(slots, rank.shape[1]), dim=1)
            boxes = decode_boxes(gather_rows(delta.detach(), top.indices), anchor[top.indices], UNIT)
            boxes = clip_boxes(boxes, image_sizes, self.min_box)
            empty = (boxes[..., 2:] - boxes[..., :2]).amin(-1) <= 0
            missing = slots - top.indices.shape[1]
            all_boxes.append(F.pad(boxes, (0, 0, 0, missing)))
            all_scores.append(F.pad(top.values.masked_fill(empty, NEVER), (0, missing), value=NEVER))
        boxes, scores = torch.stack(all_boxes, 1), torch.stack(all_scores, 1)
        keep = nms_mask(boxes.flatten(0, 1), config.nms_iou).view_as(scores)
        scores, boxes = scores.masked_fill(~keep, NEVER).flatten(1), boxes.flatten(1, 2)
        top = scores.topk(min(post_nms, scores.shape[1]), dim=1)
        return gather_rows(boxes, top.indices), top.values > NEVER

    def losses(
        self, output: RPNOutput, image_sizes: Tensor, truth: PanopticTarget, crowds: Tensor
    ) -> dict[str, Tensor]:
        """`loss_rpn_objectness` and `loss_rpn_box` over a random sample of anchors whose centre is in the image.

        `crowds` is the `crowd_integral` of the truth.
        """
        config = self.config
        score, delta, anchor = torch.cat(output.logits, 1), torch.cat(output.deltas, 1), torch.cat(output.anchors)
        center = (anchor[:, :2] + anchor[:, 2:]) / 2
        within = (center < image_sizes.flip(-1)[:, None]).all(-1)
        found, is_best = match_anchors(truth, crowds, anchor, within)
        positive = within & ((found.iou >= config.positive_iou) | is_best)
        negative = within & ~positive & ~found.is_ignored & (found.iou < config.negative_iou)
        chance = hashed_uniform(truth.seeds, 1, torch.cat(output.names))
        max_positive = int(config.samples * config.positive_fraction)
        some_positive, is_positive = sample_ranked(chance.where(positive, -1), max_positive)
        some_negative, is_negative = sample_ranked(chance.where(negative, -1), config.samples)
        room = config.samples - is_positive.sum(1, keepdim=True)
        is_negative &= torch.arange(is_negative.shape[1], device=room.device) < room
        chosen = torch.cat([some_positive, some_negative], 1)
        sampled = torch.cat([is_positive, is_negative], 1)
        objects = torch.cat([is_positive, torch.zeros_like(is_negative)], 1)
        matched = gather_rows(truth.boxes, gather_rows(found.slot, chosen))
        targets = encode_boxes(matched, anchor[chosen], UNIT)
        objectness, box = objectness_and_box_loss(
            gather_rows(score, chosen),
            gather_rows(delta, chosen),
            targets,
            objects,
            sampled,
            config.samples if self.fixed_normalizer else None,
        )
        return {"loss_rpn_objectness": objectness, "loss_rpn_box": box}
