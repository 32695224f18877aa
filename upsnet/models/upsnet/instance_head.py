"""Mask R-CNN head (He et al. 2017): classes, boxes and masks of proposals, in a fixed number of slots per image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from upsnet.config import InstanceConfig
from upsnet.models.layers import conv_block, init_conv, init_normal
from upsnet.models.upsnet.losses import class_and_box_loss
from upsnet.models.upsnet.matching import match
from upsnet.ops.boxes import clip_boxes, decode_boxes, encode_boxes
from upsnet.ops.nms import nms_mask
from upsnet.ops.roi_align import FeatureLayout, assign_levels, roi_align
from upsnet.ops.sampling import gather_rows, hashed_uniform, sample_ranked
from upsnet.structures import Detections, PanopticTarget

BOX_WEIGHTS = (10.0, 5.0)
NEVER = float("-inf")


@dataclass(frozen=True)
class DetectionRule:
    """What enters a detection list: class probability above `score_threshold`, NMS at `nms_iou`."""

    score_threshold: float
    nms_iou: float
    per_class: bool


@dataclass(frozen=True)
class SampledRois:
    """The RoIs of the losses, foreground first.

    Attributes:
        boxes: float32 [B, R, 4]; labels: int64 [B, R], 0 = background; slots: int64 [B, R], matched truth;
        valid: bool [B, R].
    """

    boxes: Tensor
    labels: Tensor
    slots: Tensor
    valid: Tensor


@dataclass(frozen=True)
class BoxOutputs:
    """Class logits and box refinements of the RoIs of each image.

    Attributes:
        rois: float32 [B, R, 4]; valid: bool [B, R].
        logits: float32 [B, R, T + 1], class 0 is the background.
        deltas: float32 [B, R, T, 4], the refinement for each class.
    """

    rois: Tensor
    valid: Tensor
    logits: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class Candidates:
    """Boxes that may become detections.

    Attributes:
        rank: float32 [B, ...], the log-probability of the class; `NEVER` for none.
        boxes: float32 [B, ..., 4].
        labels: int64 [B, ...], 1..T.
    """

    rank: Tensor
    boxes: Tensor
    labels: Tensor


class OwnClassScore(nn.Conv2d):
    """A 1x1 convolution that computes one output channel of each input: the one of its class."""

    def forward(self, x: Tensor, own: Tensor) -> Tensor:  # type: ignore[override]
        """[R, C, H, W] and channels int64 [R] -> float32 [R, H, W]."""
        assert self.bias is not None
        weight, bias = self.weight[own, :, 0, 0], self.bias[own, None, None]
        return (torch.bmm(weight[:, None], x.flatten(2)).float() + bias.float()).view(-1, *x.shape[2:])


class InstanceHead(nn.Module):
    """Box branch (two fully connected layers) and mask branch (convolutions and one upsampling).

    Args:
        channels: of the pyramid.
        num_things: T.
        config: `model.instance`; its two thresholds are in a `DetectionRule`.
        min_box: pixels of a clipped box that stay inside the image, per side.
    """

    def __init__(self, channels: int, num_things: int, config: InstanceConfig, *, min_box: float = 0.0) -> None:
        super().__init__()
        self.num_things, self.config, self.min_box = num_things, config, min_box
        self.max_positive = max(1, int(config.roi_samples * config.positive_fraction))
        self.mask_slots = min(self.max_positive, config.mask_slots or self.max_positive)
        self.fc6 = nn.Linear(channels * config.box_pool**2, config.box_channels)
        self.fc7 = nn.Linear(config.box_channels, config.box_channels)
        self.cls_score = nn.Linear(config.box_channels, num_things + 1)
        self.bbox_pred = nn.Linear(config.box_channels, 4 * num_things)
        widths = [channels] + [config.mask_channels] * config.mask_layers
        self.mask_layers = nn.Sequential(*(conv_block(i, config.mask_channels) for i in widths[:-1]))
        self.mask_deconv = nn.ConvTranspose2d(widths[-1], config.mask_channels, 2, stride=2)
        self.mask_score = OwnClassScore(config.mask_channels, num_things, 1)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        init_normal(self.cls_score, std=0.01)
        init_normal(self.bbox_pred, std=0.001)
        init_conv(self.mask_deconv)
        init_normal(self.mask_score, std=0.01)

    def _pool(self, layout: FeatureLayout, boxes: Tensor, bins: int) -> Tensor:
        return roi_align(layout, boxes, bins, assign_levels(boxes, self.config.canonical_size, len(layout.sizes)))

    def box_outputs(self, layout: FeatureLayout, boxes: Tensor, valid: Tensor) -> BoxOutputs:
        """Scores and refines boxes float32 [B, R, 4]; valid: bool [B, R]."""
        x = self._pool(layout, boxes, self.config.box_pool).flatten(1)
        x = F.relu(self.fc7(F.relu(self.fc6(x))))
        deltas = self.bbox_pred(x).float()
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 has steps of 1/32 there, and many would tie
            logits = self.cls_score(x.to(self.cls_score.weight.dtype)).float()
        shape = boxes.shape[:2]
        return BoxOutputs(boxes, valid, logits.view(*shape, -1), deltas.view(*shape, self.num_things, 4))

    def mask_logits(self, layout: FeatureLayout, boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask logits float32 [B, R, M, M] of any boxes [B, R, 4], in the channel of labels [B, R] (1..T)."""
        x = self.mask_layers(self._pool(layout, boxes, self.config.mask_pool))
        own = (labels.flatten() - 1).clamp(min=0)
        if not (self.training and torch.is_grad_enabled()):
            return self._own_masks(x, own).unflatten(0, labels.shape)
        # The widest activations of the model: made again for the backward pass, one image at a time.
        parts = zip(x.split(labels.shape[1]), own.split(labels.shape[1]), strict=True)
        again = partial(checkpoint, self._own_masks, use_reentrant=False, preserve_rng_state=False)
        return torch.stack([again(*part) for part in parts])

    def _own_masks(self, x: Tensor, own: Tensor) -> Tensor:
        """Upsamples [R, C, P, P] and scores the channel `own` int64 [R] alone: float32 [R, 2 P, 2 P]."""
        masks: Tensor = self.mask_score(F.relu_(self.mask_deconv(x)), own)
        return masks

    def sample(self, proposals: Tensor, valid: Tensor, truth: PanopticTarget, crowds: Tensor) -> SampledRois:
        """Draws the RoIs of the losses from the proposals [B, P, 4] and the true boxes; crowds: `crowd_integral`."""
        # Once a weight is not a number no box is: not to index by them leaves it to the losses to say so.
        boxes = torch.cat([proposals.nan_to_num(), truth.boxes], 1)
        candidate = torch.cat([valid, truth.is_instance], 1)
        found = match(truth, crowds, boxes)
        foreground = candidate & (found.iou >= self.config.positive_iou)
        background = candidate & ~foreground & ~found.is_ignored
        chance = hashed_uniform(truth.seeds, 2, torch.arange(boxes.shape[1], device=boxes.device))
        chosen, is_foreground = sample_ranked(chance.where(foreground, -1), self.max_positive)
        kept = torch.zeros_like(foreground).scatter(1, chosen, is_foreground)
        priority = (chance + 1).where(kept, chance.where(background, -1))
        chosen, is_valid = sample_ranked(priority, self.config.roi_samples)
        slots = gather_rows(found.slot, chosen)
        labels = gather_rows(truth.labels, slots) * (gather_rows(foreground, chosen) & is_valid)
        return SampledRois(gather_rows(boxes, chosen), labels, slots, is_valid)

    def box_losses(self, outputs: BoxOutputs, rois: SampledRois, truth: PanopticTarget) -> dict[str, Tensor]:
        """`loss_class` and `loss_box` of the outputs for `rois`."""
        targets = encode_boxes(gather_rows(truth.boxes, rois.slots), rois.boxes, BOX_WEIGHTS)
        own = (rois.labels - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
        deltas = outputs.deltas.gather(2, own)[:, :, 0]
        loss_class, loss_box = class_and_box_loss(outputs.logits, deltas, rois.labels, targets, rois.valid)
        return {"loss_class": loss_class, "loss_box": loss_box}

    def detect(
        self, candidates: Candidates, rule: DetectionRule, masks: Callable[[Tensor, Tensor], Tensor]
    ) -> Detections:
        """Turns candidates into detections with masks.

        Args:
            candidates: result of `decode`.
            rule: of the list.
            masks: boxes [B, K, 4] and labels [B, K] -> mask logits, as from `mask_logits`.
        """
        found = suppress(candidates, rule, self.config.max_detections)
        is_valid = found.rank > NEVER
        boxes, labels = found.boxes * is_valid[..., None], torch.where(is_valid, found.labels, 1)
        return Detections(boxes, found.rank.exp(), labels, is_valid, masks(boxes, labels))

    def decode(self, outputs: BoxOutputs, image_sizes: Tensor, rule: DetectionRule) -> Candidates:
        """The boxes of all proposals and classes, [B, T, R]; those that the rule excludes have rank `NEVER`."""
        rank = outputs.logits.log_softmax(-1)[..., 1:]
        boxes = decode_boxes(outputs.deltas, outputs.rois[:, :, None], BOX_WEIGHTS).flatten(1, 2)
        boxes = clip_boxes(boxes, image_sizes, self.min_box).view(*rank.shape, 4)
        solid = (boxes[..., 2:] - boxes[..., :2]).amin(-1) > 0
        allowed = outputs.valid[..., None] & solid & (rank.exp() > rule.score_threshold)
        labels = torch.arange(1, self.num_things + 1, device=rank.device).expand_as(rank)
        return Candidates(rank.masked_fill(~allowed, NEVER).mT, boxes.transpose(1, 2), labels.mT)


def suppress(candidates: Candidates, rule: DetectionRule, count: int) -> Candidates:
    """Non-maximum suppression, within each class or over all of them.

    Args:
        candidates: [B, T, R].
        rule: `nms_iou` and `per_class` count.
        count: K.

    Returns:
        The best K of each image, [B, K], in order of falling rank; `NEVER` in empty slots.
    """
    rank, boxes, labels = candidates.rank, candidates.boxes, candidates.labels
    num_rois = rank.shape[2]
    if not rule.per_class:
        rank, boxes, labels = rank.flatten(1)[:, None], boxes.flatten(1, 2)[:, None], labels.flatten(1)[:, None]
    # One row of candidates per suppression: [B, T, R] by class, or [B, 1, best R of R * T].
    top = rank.topk(min(num_rois, rank.shape[2]), dim=2)
    boxes = boxes.gather(2, top.indices[..., None].expand(-1, -1, -1, 4))
    labels = labels.gather(2, top.indices)
    solid = boxes * (top.values > NEVER)[..., None]
    keep = nms_mask(solid.flatten(0, 1), rule.nms_iou).view_as(labels)
    rank = top.values.masked_fill(~keep, NEVER).flatten(1)
    best = rank.topk(min(count, rank.shape[1]), dim=1)
    boxes, labels = gather_rows(boxes.flatten(1, 2), best.indices), gather_rows(labels.flatten(1), best.indices)
    return Candidates(best.values, boxes, labels)
