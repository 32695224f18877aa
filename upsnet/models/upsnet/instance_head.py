"""Mask R-CNN head (He et al. 2017): classes, boxes and masks of proposals, in a fixed number of slots per image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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
        roi_samples, positive_fraction, positive_iou: RoIs in the losses, per image; the share of foreground at
            most; and the IoU from which an RoI is foreground.
        canonical_size: boxes of this size pool from P4.
        min_box: pixels of a clipped box that stay inside the image, per side.
        box_channels, box_pool: width of the hidden layers, bins per side.
        mask_channels, mask_layers, mask_pool: of the mask branch; masks have 2 * mask_pool cells a side.
        mask_slots: foreground RoIs that train the mask branch, per image, at most; None: all.
        max_detections: K.
    """

    def __init__(
        self,
        channels: int,
        num_things: int,
        *,
        roi_samples: int = 512,
        positive_fraction: float = 0.25,
        positive_iou: float = 0.5,
        canonical_size: float = 224,
        box_channels: int = 1024,
        box_pool: int = 7,
        mask_channels: int = 256,
        mask_layers: int = 4,
        mask_pool: int = 14,
        mask_slots: int | None = None,
        max_detections: int = 100,
        min_box: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_things = num_things
        self.roi_samples, self.max_positive = roi_samples, max(1, int(roi_samples * positive_fraction))
        self.positive_iou, self.canonical_size = positive_iou, canonical_size
        self.mask_slots = self.max_positive if mask_slots is None else min(mask_slots, self.max_positive)
        self.min_box = min_box
        self.box_pool, self.mask_pool, self.max_detections = box_pool, mask_pool, max_detections
        self.fc6 = nn.Linear(channels * box_pool**2, box_channels)
        self.fc7 = nn.Linear(box_channels, box_channels)
        self.cls_score = nn.Linear(box_channels, num_things + 1)
        self.bbox_pred = nn.Linear(box_channels, 4 * num_things)
        widths = [channels] + [mask_channels] * mask_layers
        self.mask_layers = nn.Sequential(*(conv_block(i, mask_channels) for i in widths[:-1]))
        self.mask_deconv = nn.ConvTranspose2d(widths[-1], mask_channels, 2, stride=2)
        self.mask_score = OwnClassScore(mask_channels, num_things, 1)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        init_normal(self.cls_score, std=0.01)
        init_normal(self.bbox_pred, std=0.001)
        init_conv(self.mask_deconv)
        init_normal(self.mask_score, std=0.01)

    def _pool(self, layout: FeatureLayout, boxes: Tensor, bins: int) -> Tensor:
        return roi_align(layout, boxes, bins, assign_levels(boxes, self.canonical_size, len(layout.sizes)))

    def box_outputs(self, layout: FeatureLayout, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, R, 4] -> class logits [B, R, T + 1] and deltas [B, R, T, 4], float32."""
        x = self._pool(layout, boxes, self.box_pool).flatten(1)
        x = F.relu(self.fc7(F.relu(self.fc6(x))))
        logits, deltas = self.cls_score(x).float(), self.bbox_pred(x).float()
        return logits.view(*boxes.shape[:2], -1), deltas.view(*boxes.shape[:2], self.num_things, 4)

    def mask_logits(self, layout: FeatureLayout, boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask logits float32 [B, R, M, M] of any boxes [B, R, 4], in the channel of labels [B, R] (1..T)."""
        x = self.mask_layers(self._pool(layout, boxes, self.mask_pool))
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
        foreground = candidate & (found.iou >= self.positive_iou)
        background = candidate & ~foreground & ~found.is_ignored
        chance = hashed_uniform(truth.seeds, 2, torch.arange(boxes.shape[1], device=boxes.device))
        chosen, is_foreground = sample_ranked(chance.where(foreground, -1), self.max_positive)
        kept = torch.zeros_like(foreground).scatter(1, chosen, is_foreground)
        priority = (chance + 1).where(kept, chance.where(background, -1))
        chosen, is_valid = sample_ranked(priority, self.roi_samples)
        slots = gather_rows(found.slot, chosen)
        labels = gather_rows(truth.labels, slots) * (gather_rows(foreground, chosen) & is_valid)
        return SampledRois(gather_rows(boxes, chosen), labels, slots, is_valid)

    def box_losses(self, logits: Tensor, deltas: Tensor, rois: SampledRois, truth: PanopticTarget) -> dict[str, Tensor]:
        """`loss_class` and `loss_box` of the outputs for `rois`."""
        targets = encode_boxes(gather_rows(truth.boxes, rois.slots), rois.boxes, BOX_WEIGHTS)
        own = (rois.labels - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
        loss_class, loss_box = class_and_box_loss(
            logits, deltas.gather(2, own)[:, :, 0], rois.labels, targets, rois.valid
        )
        return {"loss_class": loss_class, "loss_box": loss_box}

    def detect(
        self,
        layout: FeatureLayout,
        rois: Tensor,
        valid: Tensor,
        logits: Tensor,
        deltas: Tensor,
        image_sizes: Tensor,
        rule: DetectionRule,
    ) -> Detections:
        """Turns the box branch's outputs into detections with masks.

        Args:
            layout: the features.
            rois: float32 [B, R, 4]; valid: bool [B, R]; logits: [B, R, T + 1]; deltas: [B, R, T, 4].
            image_sizes: int64 [B, 2].
            rule: of the list.
        """
        rank = logits.log_softmax(-1)[..., 1:]
        boxes = clip_boxes(decode_boxes(deltas, rois[:, :, None], BOX_WEIGHTS).flatten(1, 2), image_sizes, self.min_box)
        boxes = boxes.view(*rank.shape, 4)
        solid = (boxes[..., 2:] - boxes[..., :2]).amin(-1) > 0
        rank = rank.masked_fill(~(valid[..., None] & solid & (rank.exp() > rule.score_threshold)), NEVER)
        labels = torch.arange(1, self.num_things + 1, device=rank.device).expand_as(rank)
        # One row of candidates per suppression: [B, T, R] by class, or [B, 1, best R of R * T].
        rank, boxes, labels = rank.mT, boxes.transpose(1, 2), labels.mT
        if not rule.per_class:
            rank, boxes, labels = rank.flatten(1)[:, None], boxes.flatten(1, 2)[:, None], labels.flatten(1)[:, None]
        top = rank.topk(min(rois.shape[1], rank.shape[2]), dim=2)
        boxes = boxes.gather(2, top.indices[..., None].expand(-1, -1, -1, 4))
        labels = labels.gather(2, top.indices)
        candidates = boxes * (top.values > NEVER)[..., None]
        keep = nms_mask(candidates.flatten(0, 1), rule.nms_iou).view_as(labels)
        rank = top.values.masked_fill(~keep, NEVER).flatten(1)
        best = rank.topk(min(self.max_detections, rank.shape[1]), dim=1)
        is_valid = best.values > NEVER
        boxes = gather_rows(boxes.flatten(1, 2), best.indices) * is_valid[..., None]
        labels = torch.where(is_valid, gather_rows(labels.flatten(1), best.indices), 1)
        return Detections(boxes, best.values.exp(), labels, is_valid, self.mask_logits(layout, boxes, labels))
