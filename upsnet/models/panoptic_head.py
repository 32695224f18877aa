"""The parameter-free panoptic head (Xiong et al. 2019, sec. 3.3): fusion of logits, its training form, its table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upsnet.data.categories import IGNORE_LABEL, semantic_from_label
from upsnet.ops.boxes import scale_boxes
from upsnet.ops.panoptic_fusion import reference, streaming
from upsnet.ops.sampling import gather_rows, hashed_uniform, sample_ranked
from upsnet.structures import Detections, PanopticOutput, PanopticTarget

STRIDE = 4
"""Network-input pixels per cell of the semantic logits."""
NOTHING = -1
"""Panoptic target of a pixel that teaches nothing; `IGNORE_LABEL` could be a slot's channel."""


def upsample_semantic(logits: Tensor, network_size: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """Semantic logits at any output size, bilinear, for the valid part of the network's input.

    Args:
        logits: [B, C, h, w] at 1/4 of the padded input.
        network_size: (H, W) of the valid input.
        output_size: (H, W) of the result.

    Returns:
        float32 [B, C, H, W]; the output's pixel centres are mapped exactly, whatever the rounding of the sizes.
    """
    scale = [STRIDE * out / valid for out, valid in zip(output_size, network_size, strict=True)]
    rows, columns = (-(-size // STRIDE) + 1 for size in network_size)
    logits = logits[..., :rows, :columns]
    # One more row and column of the edge: the rounded-down size then always reaches the output's.
    padded = F.pad(logits.float(), (0, 1, 0, 1), mode="replicate")
    grown = F.interpolate(
        padded, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )
    return grown[..., : output_size[0], : output_size[1]]


class PanopticHead(nn.Module):
    """Fuses semantic and mask logits into one map in which every pixel has one segment.

    Args:
        num_stuff, num_things: S and T.
        overlap_threshold: an instance goes if more of its mask is taken by kept ones of its class.
        stuff_area_limit: stuff with fewer pixels in the image becomes void.
        train_slots: true instances that enter the loss, per image, at most.
        keep_fraction: share of them that is kept while training; the rest teaches the unknown channel.
    """

    def __init__(
        self,
        num_stuff: int,
        num_things: int,
        *,
        overlap_threshold: float = 0.3,
        stuff_area_limit: int = 4096,
        train_slots: int = 100,
        keep_fraction: float = 0.7,
    ) -> None:
        super().__init__()
        self.num_stuff, self.num_things = num_stuff, num_things
        self.overlap_threshold, self.stuff_area_limit = overlap_threshold, stuff_area_limit
        self.train_slots, self.keep_fraction = train_slots, keep_fraction

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
        boxes = gather_rows(truth.boxes, slots) / STRIDE
        labels = gather_rows(truth.labels, slots).clamp(min=1)
        volume = reference.panoptic_logits(semantic_logits.float(), boxes, labels, keep, mask_logits, self.num_stuff)
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
    ) -> PanopticOutput:
        """Fuses each image at its own output size.

        Args:
            semantic_logits: [B, S + T, h, w] at 1/4 of the padded input, or None for the instance head alone.
            detections: the panoptic list with mask logits, or None for the semantic head alone.
            network_sizes, output_sizes: (H, W) per image: valid network input, and result.
            with_semantic: also give the argmax of the semantic head.
        """
        maps, semantics = [], []
        for image, (network, output) in enumerate(zip(network_sizes, output_sizes, strict=True)):
            semantic = None
            if semantic_logits is not None:
                semantic = upsample_semantic(semantic_logits[image : image + 1], network, output)
                if with_semantic:
                    semantics.append(semantic[0].argmax(0))
            maps.append(self._fuse(semantic, detections, image, network, output))
        classes, scores = self._table(semantic_logits, detections)
        return PanopticOutput(maps, classes, scores, semantics if with_semantic else None)

    def _fuse(
        self,
        semantic: Tensor | None,
        detections: Detections | None,
        image: int,
        network: tuple[int, int],
        output: tuple[int, int],
    ) -> Tensor:
        """The segment map int32 [H, W] of one image."""
        if detections is None:
            assert semantic is not None
            return (semantic[0].argmax(0) + 1).int()
        one = slice(image, image + 1)
        boxes = scale_boxes(detections.boxes[one], network, output)
        num_stuff = self.num_stuff
        if semantic is None:  # The instance head alone: masks compete with a background of logit 0.
            num_stuff = 1
            semantic = boxes.new_zeros(()).expand(1, 1 + self.num_things, *output)
        fuse = streaming.fuse if boxes.device.type == "cpu" else reference.fuse
        channel = fuse(
            semantic,
            boxes,
            detections.labels[one],
            detections.valid[one],
            detections.mask_logits[one],
            num_stuff=num_stuff,
            overlap_threshold=self.overlap_threshold,
        )[0]
        slots = detections.labels.shape[1]
        ids = torch.arange(1, num_stuff + slots + 2, device=channel.device)
        ids[-1] = 0
        if num_stuff != self.num_stuff:
            ids[:num_stuff] = 0
            ids[num_stuff:-1] += self.num_stuff - num_stuff
        else:
            area = torch.zeros_like(ids).scatter_add_(0, channel.flatten(), torch.ones_like(channel).flatten())
            ids[:num_stuff].masked_fill_(area[:num_stuff] < self.stuff_area_limit, 0)
        return ids[channel].int()

    def _table(self, semantic_logits: Tensor | None, detections: Detections | None) -> tuple[Tensor, Tensor]:
        """Class and score of every id: S stuff rows and K instance rows; S + T rows for the semantic head alone."""
        if detections is None:
            assert semantic_logits is not None
            count, num_classes = semantic_logits.shape[:2]
            classes = torch.arange(num_classes, device=semantic_logits.device).expand(count, -1)
            return classes, torch.ones(classes.shape, device=classes.device)
        labels = detections.labels
        stuff = torch.arange(self.num_stuff, device=labels.device).expand(len(labels), -1)
        classes = torch.cat([stuff, semantic_from_label(labels, self.num_stuff)], 1)
        return classes, torch.cat([torch.ones_like(stuff, dtype=torch.float32), detections.scores], 1)
