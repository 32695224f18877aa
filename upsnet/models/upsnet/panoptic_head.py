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
from upsnet.ops.panoptic_fusion.segment_ids import segment_ids
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
        # `OfficialPanopticHead` fuses with the method `official`.
        self.method: Method = "heuristic" if config.method == "heuristic" else "unified"
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
        boxes, labels = gather_rows(truth.boxes, slots), gather_rows(truth.labels, slots).clamp(min=1)
        volume = self.logits(semantic_logits, boxes, labels, keep, mask_logits)
        middle = slice(STRIDE // 2, None, STRIDE)
        semantic, instance = truth.semantic_map[:, middle, middle], truth.instance_map[:, middle, middle].long()
        channel = torch.where(truth.is_instance, self.num_stuff + slots.shape[1], NOTHING)
        position = self.num_stuff + torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        channel = channel.scatter(1, slots, position.where(keep, channel.gather(1, slots)))
        thing = channel.gather(1, (instance.flatten(1) - 1).clamp(min=0)).view_as(instance)
        stuff = semantic.long().masked_fill(semantic == IGNORE_LABEL, NOTHING)
        return volume, torch.where(instance > 0, thing, stuff)

    def logits(self, semantic: Tensor, boxes: Tensor, labels: Tensor, keep: Tensor, masks: Tensor) -> Tensor:
        """The volume of panoptic logits at 1/4 resolution, for the loss; `heuristic` is trained as `unified`.

        Args:
            semantic: [B, S + T, h, w].
            boxes: float32 [B, P, 4], in pixels of the network input; labels: int64 [B, P]; keep: bool [B, P].
            masks: [B, P, M, M].

        Returns:
            float32 [B, S + P + 1, h, w].
        """
        slots = place_slots(boxes / STRIDE, labels, keep, masks, (semantic.shape[2], semantic.shape[3]))
        return panoptic_logits(semantic.float(), slots, self.num_stuff)

    def forward(
        self,
        semantic_logits: Tensor | None,
        detections: Detections | None,
        network_sizes: Sequence[tuple[int, int]],
        output_sizes: Sequence[tuple[int, int]],
        *,
        with_semantic: bool = False,
    ) -> PanopticOutput:
        """Fuses each image at its own output size.

        Args:
            semantic_logits: [B, S + T, h, w] at 1/4 of the padded input, or None for the instance head alone.
            detections: the panoptic list with mask logits, or None for the semantic head alone.
            network_sizes, output_sizes: (H, W) per image: valid network input, and result.
            with_semantic: also give the argmax of the semantic head.
        """
        count, num_stuff, limit = len(network_sizes), self.num_stuff, self.stuff_area_limit
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
                semantic_logits[part], detections[part], network, output, num_stuff, with_semantic
            )
            maps.extend(segment_ids(channels, classes[part], num_stuff, limit))
            semantics.extend([] if semantic is None else semantic)
        classes[:, num_stuff:] -= num_stuff - self.num_stuff
        return PanopticOutput(maps, classes, scores, semantics if with_semantic else None)

    @staticmethod
    def table(detections: Detections, num_stuff: int) -> tuple[Tensor, Tensor]:
        """Semantic channel int64 and score float32 [B, S + K] of every id: stuff first, then the slots."""
        labels = detections.labels
        stuff = torch.arange(num_stuff, device=labels.device).expand(len(labels), -1)
        scores = torch.cat([torch.ones_like(stuff, dtype=torch.float32), detections.scores], 1)
        return torch.cat([stuff, semantic_from_label(labels, num_stuff)], 1), scores

    def _fuse(
        self,
        semantic_logits: Tensor,
        detections: Detections,
        network: tuple[int, int],
        output: tuple[int, int],
        num_stuff: int,
        with_semantic: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Panoptic and semantic map int32 [B, H, W] of images of one size."""
        rows, columns = (-(-n // STRIDE) for n in network)  # Logits beyond depend on the amount of padding.
        return panoptic_map(
            semantic_logits[..., :rows, :columns],
            scale_boxes(detections.boxes, network, output),
            detections.labels,
            detections.valid,
            detections.mask_logits,
            network_size=network,
            size=output,
            num_stuff=num_stuff,
            overlap_threshold=self.overlap_threshold,
            method=self.method,
            with_semantic=with_semantic,
        )
