"""Config -> model: the only place where the numbers of a config meet the modules."""

from __future__ import annotations

from upsnet.categories import CategorySet
from upsnet.config import Config, ModelConfig
from upsnet.models.backbone import ResNet
from upsnet.models.base import PanopticModel
from upsnet.models.pretrained.weights import load_backbone_weights
from upsnet.models.upsnet.fpn import FPN
from upsnet.models.upsnet.instance_head import DetectionRule, InstanceHead
from upsnet.models.upsnet.model import UPSNet
from upsnet.models.upsnet.panoptic_head import PanopticHead
from upsnet.models.upsnet.rpn import RPN, Anchors
from upsnet.models.upsnet.semantic_head import SemanticHead

LEVEL_STRIDES = (4, 8, 16, 32, 64)


def build_anchors(model: ModelConfig) -> Anchors:
    """The anchors of a config."""
    shapes = model.rpn.shapes()
    return Anchors(shapes, LEVEL_STRIDES[: len(shapes)], model.rpn.anchor_offset)


def build_model(config: Config, categories: CategorySet, *, pretrained: bool = True) -> PanopticModel:
    """Builds the model of a config.

    Args:
        config: the run.
        categories: the classes.
        pretrained: load `model.backbone.weights` (not needed when a checkpoint follows).

    Raises:
        ValueError: the classes cannot feed the chosen heads.
    """
    model = config.model
    has_semantic, has_instance = model.heads != "instance", model.heads != "semantic"
    if has_instance and categories.num_things == 0:
        raise ValueError(
            f"model.heads={model.heads}: the data set has no thing class, expected one; use model.heads=semantic"
        )
    if model.heads == "both" and categories.num_stuff == 0:
        raise ValueError("model.heads=both: the data set has no stuff class, expected one; use model.heads=instance")
    frozen = model.backbone.norm == "frozen_bn" or model.backbone.freeze_at > 0
    if pretrained and frozen and model.backbone.weights is None:
        raise ValueError(
            "model.backbone: weights is null, but random weights would be frozen; "
            "name weights (IMAGENET1K_V1, or a file), or set norm to bn or gn and freeze_at to 0"
        )
    backbone = ResNet(model.backbone)
    if pretrained and model.backbone.weights is not None:
        load_backbone_weights(backbone, model.backbone.name, model.backbone.weights)
    channels, num_levels = model.fpn_channels, len(model.rpn.shapes())
    is_official = model.loss.normalizer == "official"
    rpn = instance_head = None
    if has_instance:
        anchors = build_anchors(model)
        rpn = RPN(channels, anchors, model.rpn, min_box=model.min_box, fixed_normalizer=is_official)
        instance_head = InstanceHead(channels, categories.num_things, model.instance, min_box=model.min_box)
    return UPSNet(
        backbone,
        FPN(backbone.channels, channels, extra_level=has_instance and num_levels == 5, gap=model.fpn_gap),
        SemanticHead(channels, len(categories), model.semantic) if has_semantic else None,
        rpn,
        instance_head,
        PanopticHead(categories.num_stuff, categories.num_things, model.panoptic),
        panoptic_rule=DetectionRule(
            model.panoptic.score_threshold, model.panoptic.nms_iou, per_class=model.panoptic.method == "heuristic"
        ),
        instance_rule=DetectionRule(model.instance.score_threshold, model.instance.nms_iou, per_class=True),
        loss_weights=model.loss.weights(),
        loss_over_ignored=is_official,
        roi_convention=model.roi_align,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
    )
