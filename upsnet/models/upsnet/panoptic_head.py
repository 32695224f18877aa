"""The parameter-free panoptic head (Xiong et al. 2019, sec. 3.3): fusion of logits, its training form, its table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from upsnet.categories import IGNORE_LABEL, semantic_from_label
from upsnet.config import PanopticConfig
from upsnet.ops.boxes import scale_boxes
from upsnet.ops.panoptic_fusion.pipeline import panoptic_map
from upsnet.ops.panoptic_fusion.reference import panoptic_logits
from upsnet.ops.panoptic_fusion.segment_ids import nearest, segment_ids
from upsnet.ops.panoptic_fusion.slots import STRIDE, Method, place_slots
from upsnet.ops.sampling import gather_rows, hashed_uniform, sample_ranked
from upsnet.structures import Detections, PanopticOutput, PanopticTarget

NOTHING = -1
"""Panoptic target of a pixel that teaches nothing; `IGNORE_LABEL` could be a slot's channel."""


class PanopticHead(nn.Module):
    """Fuses semantic and mask logits into one map in which every pixel has one segment.

    Args:
        num_stuff, num_things: S and T.
        config: `model.panoptic`; its `score_threshold` and `nms_iou` are in a `DetectionRule`.
    """

    def __init__(self, num_stuff: int, num_things: int, config: PanopticConfig) -> None:
        super().__init__()
        self.num_stuff, self.num_things = num_stuff, num_things
        self.method: Method = config.method
        self.overlap_threshold, self.stuff_area_limit = config.overlap_threshold, config.stuff_area_limit
        self.train_slots, self.keep_fraction = config.train_slots, config.keep_fraction

    def sample(self, truth: PanopticTarget) -> tuple[Tensor, Tensor]:
        """The true instances whose masks compete in the loss, in random order.

        Returns:
            slots int64 [B, P], rows of the truth, and bool [B, P]: kept.
        """
        chance = hashed_uniform(truth.seeds, 3, torch.arange(truth.labels.shape[1], device=truth.labels.device))
        slots, is_kept = sample_ranked(chance.where(truth.is_instance, -1), self.train_slots)
        count = (truth.is_instance.sum(1, keepdim=True) * self.keep_fraction).floor().clamp(min=1)
        return slots, is_kept & (torch.arange(slots.shape[1], device=slots.device) < count)

    def loss_inputs(
        self, semantic_logits: Tensor, mask_logits: Tensor, slots: Tensor, keep: Tensor, truth: PanopticTarget
    ) -> tuple[Tensor, Tensor]:
        """Panoptic logits and their target at 1/4 resolution.

        Args:
            semantic_logits: [B, S + T, h, w].
            mask_logits: [B, P, M, M] for the true boxes of `slots`; keep: bool [B, P].

        Returns:
            logits [B, S + P + 1, h, w], and int64 [B, h, w]: stuff, S + p for a kept instance, S + P (unknown) for one
            that was dropped, `NOTHING` for void and crowds.
        """
        boxes = self._ends(gather_rows(truth.boxes, slots), self.method) / STRIDE
        labels = gather_rows(truth.labels, slots).clamp(min=1)
        size = (semantic_logits.shape[2], semantic_logits.shape[3])
        method: Method = "official" if self.method == "official" else "unified"  # The merge has no training form.
        placed = place_slots(boxes, labels, keep, mask_logits, size, method)
        volume = panoptic_logits(semantic_logits.float(), placed, self.num_stuff, method)
        middle = slice(STRIDE // 2, None, STRIDE)
        semantic, instance = truth.semantic_map[:, middle, middle], truth.instance_map[:, middle, middle].long()
        channel = torch.where(truth.is_instance, self.num_stuff + slots.shape[1], NOTHING)
        position = self.num_stuff + torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        channel = channel.scatter(1, slots, position.where(keep, channel.gather(1, slots)))
        thing = channel.gather(1, (instance.flatten(1) - 1).clamp(min=0)).view_as(instance)
        stuff = semantic.long().masked_fill(semantic == IGNORE_LABEL, NOTHING)
        return volume, torch.where(instance > 0, thing, stuff)

    def forward(
        self,
        semantic_logits: Tensor | None,
        detections: Detections | None,
        network_sizes: Sequence[tuple[int, int]],
        output_sizes: Sequence[tuple[int, int]],
        *,
        with_semantic: bool = False,
        scales: Sequence[float | None] = (),
    ) -> PanopticOutput:
        """Fuses each image at its own output size.

        Args:
            semantic_logits: [B, S + T, h, w] at 1/4 of the padded input, or None for the instance head alone.
            detections: the panoptic list with mask logits, or None for the semantic head alone.
            network_sizes, output_sizes: (H, W) per image: valid network input, and result.
            with_semantic: also give the argmax of the semantic head.
            scales: network pixels per picture pixel, for `official`; by default what the sizes tell.
        """
        count, num_stuff, limit = len(network_sizes), self.num_stuff, self.stuff_area_limit
        has_both = semantic_logits is not None and detections is not None
        # One head alone has no official fusion; only the size of the map and its resizing stay.
        method: Method = "unified" if self.method == "official" and not has_both else self.method
        if detections is None:  # The semantic head alone: every class is like stuff, of any area.
            assert semantic_logits is not None
            num_stuff, limit = semantic_logits.shape[1], 0
            detections = Detections.none(count, semantic_logits.device)
        elif semantic_logits is None:  # The instance head alone: masks compete with a stuff of logit 0, which is void.
            num_stuff, limit = max(1, num_stuff), sys.maxsize
            semantic_logits = detections.scores.new_zeros(count, num_stuff + self.num_things, 1, 1)
        classes, scores = self.table(detections, num_stuff)
        maps: list[Tensor] = []
        semantics: list[Tensor] = []
        sizes = list(zip(network_sizes, output_sizes, strict=True))
        for (network, output), members in groupby(range(count), key=sizes.__getitem__):
            part = slice(len(maps), len(maps) + len(list(members)))
            channels, semantic = self._fuse(
                semantic_logits[part], detections[part], network, output, num_stuff, method, with_semantic
            )
            if self.method == "official" and semantic is not None:
                scale = scales[part.start] if scales else None
                channels, semantic = (nearest(m, network, output, scale) for m in (channels, semantic))
            rule_on = semantic if method == "official" else None
            maps.extend(segment_ids(channels, classes[part], num_stuff, limit, rule_on))
            semantics.extend([] if semantic is None else semantic)
        classes[:, num_stuff:] -= num_stuff - self.num_stuff
        return PanopticOutput(maps, classes, scores, semantics if with_semantic else None)

    @staticmethod
    def table(detections: Detections, num_stuff: int) -> tuple[Tensor, Tensor]:
        """Semantic channel int64 and score float32 [B, S + K] of every id: stuff first, then the slots."""
        labels = detections.labels
        stuff = torch.arange(num_stuff, device=labels.device).expand(len(labels), -1)
        # Officially the stand-in for "no detection" is of the last stuff class; no other empty slot is ever seen.
        things = semantic_from_label(labels, num_stuff).where(detections.valid, num_stuff - 1)
        scores = torch.cat([torch.ones_like(stuff, dtype=torch.float32), detections.scores], 1)
        return torch.cat([stuff, things], 1), scores

    def _fuse(
        self,
        semantic_logits: Tensor,
        detections: Detections,
        network: tuple[int, int],
        output: tuple[int, int],
        num_stuff: int,
        method: Method,
        with_semantic: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Panoptic and semantic map int32 [B, H, W] of images of one size; officially at the network's."""
        is_official = self.method == "official"
        size = network if is_official else output
        if not is_official:  # Logits beyond the valid cells depend on the amount of padding.
            rows, columns = (-(-n // STRIDE) for n in network)
            semantic_logits = semantic_logits[..., :rows, :columns]
        return panoptic_map(
            semantic_logits,
            self._ends(scale_boxes(detections.boxes, network, size), method),
            detections.labels,
            detections.valid,
            detections.mask_logits,
            network_size=network,
            size=size,
            num_stuff=num_stuff,
            overlap_threshold=self.overlap_threshold,
            method=method,
            with_semantic=with_semantic or is_official,
        )

    @staticmethod
    def _ends(boxes: Tensor, method: Method) -> Tensor:
        """Boxes as the method counts them: officially they end with their last pixel."""
        return torch.cat([boxes[..., :2], boxes[..., 2:] - 1], -1) if method == "official" else boxes
