"""UPSNet (Xiong et al. 2019): one backbone, a semantic and an instance head, and the head that fuses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from upsnet.models.backbone import Backbone
from upsnet.models.base import FusedTensors, PanopticModel
from upsnet.models.layers import normalize_images
from upsnet.models.upsnet.fpn import FPN
from upsnet.models.upsnet.instance_head import BoxOutputs, Candidates, DetectionRule, InstanceHead, SampledRois
from upsnet.models.upsnet.losses import mask_loss, pixel_loss, roi_pixel_loss, upsampled_pixel_loss
from upsnet.models.upsnet.matching import crowd_integral, mask_targets, semantic_targets
from upsnet.models.upsnet.panoptic_head import NOTHING, PanopticHead
from upsnet.models.upsnet.rpn import RPN
from upsnet.models.upsnet.semantic_head import SemanticHead
from upsnet.ops.boxes import scale_boxes
from upsnet.ops.mask_paste import paste_in_windows
from upsnet.ops.panoptic_fusion.slots import STRIDE
from upsnet.ops.roi_align import FeatureLayout, roi_align
from upsnet.ops.sampling import gather_rows
from upsnet.ops.views import View
from upsnet.structures import Detections, Instances, PanopticBatch, PanopticOutput, PanopticTarget

ROI_STRIDES = (4, 8, 16, 32)
SEMANTIC_ROI_BINS = 28


@dataclass(frozen=True)
class TrueMasks:
    """What the mask branch says in true boxes: logits float32 [B, P, M, M] of slots int64 [B, P]; keep: bool [B, P]."""

    logits: Tensor
    slots: Tensor
    keep: Tensor


@dataclass(frozen=True)
class MaskBatch:
    """The boxes of one pass of the mask branch while training.

    Attributes:
        boxes: float32 [B, R + P, 4]; labels: int64 [B, R + P], 0 for none.
        slots: int64 [B, R], rows of the truth that the RoIs show.
        num_rois: R; the P true boxes of the panoptic loss come behind them.
        shown: int64 [B, P], rows of the truth; keep: bool [B, P]; None without a panoptic loss.
    """

    boxes: Tensor
    labels: Tensor
    slots: Tensor
    num_rois: int
    shown: Tensor | None = None
    keep: Tensor | None = None


class UPSNetRaw(NamedTuple):
    """The output of all layers with weights, which `UPSNet.fuse` takes.

    Attributes:
        semantic_logits: float32 [B, S + T, H / 4, W / 4]; None without a semantic head.
        panoptic: the detections that the panoptic head fuses; None without an instance head.
        instances: the detections for AP; None unless asked for.
    """

    semantic_logits: Tensor | None
    panoptic: Detections | None
    instances: Detections | None


class UPSNet(PanopticModel):
    """The whole model: backbone, pyramid, semantic head, instance head and panoptic head.

    Args:
        backbone, fpn: the features.
        semantic_head: or None: instances alone.
        rpn, instance_head: both or neither; without them, semantics alone.
        panoptic_head: the fusion.
        panoptic_rule, instance_rule: of the two detection lists.
        loss_weights: `loss_*` name -> weight; the semantic RoI and the panoptic loss are skipped at weight 0.
        loss_over_ignored: average these two over ignored pixels too.
        roi_convention: `FeatureLayout.convention`.
        pixel_mean, pixel_std: RGB, 0..255.
    """

    memory_options = ("model.instance.mask_slots=32", "model.backbone.checkpoint_activations=true")
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN,
        semantic_head: SemanticHead | None,
        rpn: RPN | None,
        instance_head: InstanceHead | None,
        panoptic_head: PanopticHead,
        *,
        panoptic_rule: DetectionRule,
        instance_rule: DetectionRule,
        loss_weights: dict[str, float],
        loss_over_ignored: bool = False,
        roi_convention: str = "aligned",
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone, self.fpn = backbone, fpn
        self.semantic_head, self.rpn, self.instance_head = semantic_head, rpn, instance_head
        self.panoptic_head = panoptic_head
        has = {"semantic": semantic_head is not None, "instance": instance_head is not None}
        has["panoptic"] = all(has.values())
        self.tasks = frozenset(task for task, is_there in has.items() if is_there)
        self.panoptic_rule, self.instance_rule = panoptic_rule, instance_rule
        self.loss_weights, self.loss_over_ignored = loss_weights, loss_over_ignored
        self.roi_convention = roi_convention
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, 3, 1, 1))

    def features(self, images: Tensor, image_sizes: Tensor) -> list[Tensor]:
        """Images and their valid sizes -> pyramid levels; what stands in the padding has no effect."""
        pixels = normalize_images(images, image_sizes, self.pixel_mean, self.pixel_std, self.backbone.first_conv)
        return self.fpn(self.backbone(pixels))

    def raw(self, images: Tensor, image_sizes: Tensor, *, with_instances: bool = False) -> UPSNetRaw:
        """As `PanopticModel.raw`: semantic logits and detections."""
        levels = self.features(images, image_sizes)
        semantic_logits = None if self.semantic_head is None else self.semantic_head(levels[:4])
        if self.rpn is None or self.instance_head is None:
            return UPSNetRaw(semantic_logits, None, None)
        head = self.instance_head
        layout, outputs = self._box_outputs(self.rpn, head, levels, image_sizes)
        masks = partial(head.mask_logits, layout)

        def detect(rule: DetectionRule) -> Detections:
            return head.detect(head.decode(outputs, image_sizes, rule), rule, masks)

        instances = detect(self.instance_rule) if with_instances else None
        return UPSNetRaw(semantic_logits, detect(self.panoptic_rule), instances)

    def _box_outputs(
        self, rpn: RPN, head: InstanceHead, levels: list[Tensor], image_sizes: Tensor
    ) -> tuple[FeatureLayout, BoxOutputs]:
        """The features from which boxes are pooled, and the results of the box branch for the proposals."""
        rois, valid = rpn.propose(rpn(levels[: len(rpn.anchors.strides)]), image_sizes)
        layout = FeatureLayout.of(levels[:4], ROI_STRIDES, self.roi_convention)
        return layout, head.box_outputs(layout, rois, valid)

    def raw_of_views(self, views: Sequence[View], *, with_instances: bool = False) -> UPSNetRaw:
        """As `PanopticModel.raw_of_views`.

        Semantic logits are averaged. One non-maximum suppression selects among the boxes of all views. The masks of the
        selected boxes are pooled in each view and averaged.
        """
        semantic: list[Tensor] = []
        parts: list[tuple[View, FeatureLayout, BoxOutputs]] = []
        for view in views:
            levels = self.features(view.images, view.image_sizes)
            if self.semantic_head is not None:
                logits = view.maps_to_base(self.semantic_head(levels[:4]))
                semantic = [semantic[0].add_(logits) if semantic else logits]
            if self.rpn is not None and self.instance_head is not None:
                parts.append((view, *self._box_outputs(self.rpn, self.instance_head, levels, view.image_sizes)))
        semantic_logits = semantic[0] / len(views) if semantic else None
        if not parts or self.instance_head is None:
            return UPSNetRaw(semantic_logits, None, None)
        head = self.instance_head

        def masks(boxes: Tensor, labels: Tensor) -> Tensor:
            found = (
                view.masks_to_base(head.mask_logits(layout, view.boxes_from_base(boxes), labels))
                for view, layout, _ in parts
            )
            return sum(found, torch.zeros((), device=boxes.device)) / len(parts)

        def detect(rule: DetectionRule) -> Detections:
            found = [(view, head.decode(outputs, view.image_sizes, rule)) for view, _, outputs in parts]
            joined = Candidates(
                torch.cat([c.rank for _, c in found], 2),
                torch.cat([view.boxes_to_base(c.boxes) for view, c in found], 2),
                torch.cat([c.labels for _, c in found], 2),
            )
            return head.detect(joined, rule, masks)

        instances = detect(self.instance_rule) if with_instances else None
        return UPSNetRaw(semantic_logits, detect(self.panoptic_rule), instances)

    def fuse(
        self,
        raw: UPSNetRaw,
        image_sizes: Sequence[tuple[int, int]],
        output_sizes: Sequence[tuple[int, int]],
        *,
        with_semantic: bool = False,
    ) -> PanopticOutput:
        """As `PanopticModel.fuse`: the panoptic head."""
        output = self.panoptic_head(
            raw.semantic_logits,
            raw.panoptic,
            image_sizes,
            output_sizes,
            with_semantic=with_semantic and raw.semantic_logits is not None,
        )
        return replace(output, instances=self.instances(raw.instances, image_sizes, output_sizes))

    @staticmethod
    def instances(
        found: Detections | None, image_sizes: Sequence[tuple[int, int]], output_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances] | None:
        """The detections of `UPSNetRaw.instances` image by image, for AP; sizes as in `fuse`."""
        if found is None:
            return None
        instances = []
        for row, (network, size) in enumerate(zip(image_sizes, output_sizes, strict=True)):
            masks, boxes, valid = found.mask_logits[row], scale_boxes(found.boxes[row], network, size), found.valid[row]
            windows = partial(paste_in_windows, masks, boxes, valid, size)
            instances.append(Instances(found.scores[row], found.labels[row], valid, windows))
        return instances

    def fuse_for_export(self, raw: UPSNetRaw, image_sizes: Tensor, canvas: Tensor) -> FusedTensors:
        """As `PanopticModel.fuse_for_export`: the panoptic head is one operator of the graph (`operator.py`)."""
        head, found = self.panoptic_head, raw.panoptic
        assert raw.semantic_logits is not None
        assert found is not None
        ids = torch.ops.upsnet.panoptic_segments(
            raw.semantic_logits,
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
        return FusedTensors(ids, *head.table(found, head.num_stuff))

    def loss(self, batch: PanopticBatch) -> dict[str, Tensor]:
        """The losses of a training batch, unweighted, by name; each is averaged over the images."""
        if batch.target is None:
            raise ValueError("a batch without target cannot be trained on: make it with data.loader.collate")
        truth = batch.target
        levels = self.features(batch.images, batch.image_sizes)
        losses: dict[str, Tensor] = {}
        masks = None
        # Backward runs in the reverse order: the semantic head, computed last, is freed before the masks need room.
        if self.rpn is not None and self.instance_head is not None:
            losses, masks = self._instance_losses(self.rpn, self.instance_head, levels, batch.image_sizes, truth)
        if self.semantic_head is not None:
            logits = self.semantic_head(levels[:4])
            losses |= self._semantic_losses(logits, truth)
            if masks is not None:
                inputs = self.panoptic_head.loss_inputs(logits, masks.logits, masks.slots, masks.keep, truth)
                losses["loss_panoptic"] = pixel_loss(*inputs, ignore=NOTHING, over_ignored=self.loss_over_ignored)
        return losses

    def _semantic_losses(self, logits: Tensor, truth: PanopticTarget) -> dict[str, Tensor]:
        losses = {"loss_semantic": upsampled_pixel_loss(logits, truth.semantic_map, STRIDE)}
        if self.loss_weights["loss_semantic_roi"] > 0:
            # Pooling the scores instead of the features gives the same numbers: the 1x1 convolution is linear.
            layout = FeatureLayout.of([logits], ROI_STRIDES[:1], self.roi_convention)
            level = torch.zeros_like(truth.labels)
            pooled = roi_align(layout, truth.boxes, SEMANTIC_ROI_BINS, level).unflatten(0, truth.labels.shape)
            target = semantic_targets(truth, truth.boxes, SEMANTIC_ROI_BINS)
            losses["loss_semantic_roi"] = roi_pixel_loss(
                pooled, target, truth.is_instance, over_ignored=self.loss_over_ignored
            )
        return losses

    def _instance_losses(
        self, rpn: RPN, head: InstanceHead, levels: list[Tensor], image_sizes: Tensor, truth: PanopticTarget
    ) -> tuple[dict[str, Tensor], TrueMasks | None]:
        proposed = rpn(levels[: len(rpn.anchors.strides)])
        crowds = crowd_integral(truth)
        losses = rpn.losses(proposed, image_sizes, truth, crowds)
        proposals, valid = rpn.propose(proposed, image_sizes)
        rois = head.sample(proposals, valid, truth, crowds)
        layout = FeatureLayout.of(levels[:4], ROI_STRIDES, self.roi_convention)
        losses |= head.box_losses(head.box_outputs(layout, rois.boxes, rois.valid), rois, truth)
        wanted = self._mask_batch(head, rois, truth)
        masks = head.mask_logits(layout, wanted.boxes, wanted.labels)
        count = wanted.num_rois
        targets = mask_targets(truth, wanted.boxes[:, :count], wanted.slots, masks.shape[-1])
        losses["loss_mask"] = mask_loss(masks[:, :count], targets, wanted.labels[:, :count] > 0)
        if wanted.shown is None or wanted.keep is None:
            return losses, None
        return losses, TrueMasks(masks[:, count:], wanted.shown, wanted.keep)

    def _mask_batch(self, head: InstanceHead, rois: SampledRois, truth: PanopticTarget) -> MaskBatch:
        """The boxes that one pass of the mask branch serves: foreground RoIs, and true boxes for the panoptic loss."""
        boxes, labels, slots = (t[:, : head.mask_slots] for t in (rois.boxes, rois.labels, rois.slots))
        count = boxes.shape[1]
        if self.semantic_head is None or self.loss_weights["loss_panoptic"] == 0:
            return MaskBatch(boxes, labels, slots, count)
        shown, keep = self.panoptic_head.sample(truth)
        boxes = torch.cat([boxes, gather_rows(truth.boxes, shown)], 1)
        labels = torch.cat([labels, gather_rows(truth.labels, shown)], 1)
        return MaskBatch(boxes, labels, slots, count, shown, keep)
