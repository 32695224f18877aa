"""Builds UPSNet from its config section."""

from __future__ import annotations

from typing import Any

from upsnet.categories import CategorySet
from upsnet.config import UPSNetConfig
from upsnet.models.backbone import Backbone
from upsnet.models.base import Limits
from upsnet.models.upsnet import operator  # noqa: F401 - registers the operator that exported graphs call
from upsnet.models.upsnet.fpn import FPN
from upsnet.models.upsnet.instance_head import DetectionRule, InstanceHead
from upsnet.models.upsnet.model import UPSNet
from upsnet.models.upsnet.official import OfficialPanopticHead, OfficialResize, OfficialUPSNet
from upsnet.models.upsnet.panoptic_head import PanopticHead
from upsnet.models.upsnet.rpn import RPN, Anchors
from upsnet.models.upsnet.semantic_head import SemanticHead

LEVEL_STRIDES = (4, 8, 16, 32, 64)


def build_anchors(model: UPSNetConfig) -> Anchors:
    """The anchors of a config."""
    shapes = model.rpn.shapes()
    return Anchors(shapes, LEVEL_STRIDES[: len(shapes)], model.rpn.anchor_offset)


def upsnet_limits(model: UPSNetConfig) -> Limits:
    """The limits of the model that a config describes."""
    if model.heads == "semantic":
        return Limits()
    return Limits(
        model.instance.max_detections,
        model.panoptic.train_slots if model.heads == "both" else None,
        build_anchors(model).best_iou,
        model.rpn.positive_iou,
        model.rpn.negative_iou,
    )


def build_upsnet(model: UPSNetConfig, categories: CategorySet, backbone: Backbone, resize: OfficialResize) -> UPSNet:
    """Builds the model.

    Args:
        model: the config section.
        categories: the classes.
        backbone: of the config.
        resize: of images in a prediction, for `model.panoptic.method: official`.

    Raises:
        ValueError: the classes cannot feed the chosen heads.
    """
    has_semantic, has_instance = "semantic" in model.tasks, "instance" in model.tasks
    if has_instance and categories.num_things == 0:
        raise ValueError(
            f"model.heads={model.heads}: the data set has no thing class, expected one; use model.heads=semantic"
        )
    if model.heads == "both" and categories.num_stuff == 0:
        raise ValueError(
            "model.heads=both: the data set has no stuff class, expected one; set data.classes.background=background "
            "for the unlabelled pixels, or model.heads=instance"
        )
    channels, is_official = model.fpn_channels, model.loss.normalizer == "official"
    rpn = instance_head = None
    if has_instance:
        anchors = build_anchors(model)
        rpn = RPN(channels, anchors, model.rpn, min_box=model.min_box, fixed_normalizer=is_official)
        instance_head = InstanceHead(channels, categories.num_things, model.instance, min_box=model.min_box)
    fpn = FPN(backbone.channels, channels, extra_level=has_instance and len(model.rpn.shapes()) == 5, gap=model.fpn_gap)
    semantic_head = SemanticHead(channels, len(categories), model.semantic) if has_semantic else None
    options: dict[str, Any] = {
        "panoptic_rule": DetectionRule(
            model.panoptic.score_threshold, model.panoptic.nms_iou, per_class=model.panoptic.method == "heuristic"
        ),
        "instance_rule": DetectionRule(model.instance.score_threshold, model.instance.nms_iou, per_class=True),
        "loss_weights": model.loss.weights(),
        "loss_over_ignored": is_official,
        "roi_convention": model.roi_align,
        "pixel_mean": model.pixel_mean,
        "pixel_std": model.pixel_std,
    }
    sizes = categories.num_stuff, categories.num_things
    if model.panoptic.method == "official":
        head = OfficialPanopticHead(*sizes, model.panoptic)
        return OfficialUPSNet(backbone, fpn, semantic_head, rpn, instance_head, head, resize=resize, **options)
    return UPSNet(backbone, fpn, semantic_head, rpn, instance_head, PanopticHead(*sizes, model.panoptic), **options)
