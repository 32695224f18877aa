"""Config -> model: the only module that knows all architectures."""

from __future__ import annotations

from upsnet.categories import CategorySet
from upsnet.config import Config, ModelConfig, UPSNetConfig
from upsnet.models.backbone import ResNet
from upsnet.models.base import Limits, PanopticModel
from upsnet.models.panoptic_deeplab.build import build_deeplab, deeplab_limits
from upsnet.models.pretrained.weights import load_backbone_weights
from upsnet.models.upsnet.build import build_upsnet, upsnet_limits
from upsnet.models.upsnet.official import OfficialResize


def build_model(config: Config, categories: CategorySet, *, pretrained: bool = True) -> PanopticModel:
    """Builds the model of a config.

    Args:
        config: the run.
        categories: the classes.
        pretrained: load `model.backbone.weights` (not needed when a checkpoint follows).

    Raises:
        ValueError: the classes cannot feed the chosen heads, or random weights would be frozen.
    """
    model, data = config.model, config.data
    frozen = model.backbone.norm == "frozen_bn" or model.backbone.freeze_at > 0
    if pretrained and frozen and model.backbone.weights is None:
        raise ValueError(
            "model.backbone: weights is null, but random weights would be frozen; "
            "name weights (IMAGENET1K_V1, or a file), or set norm to bn or gn and freeze_at to 0"
        )
    backbone = ResNet(model.backbone)
    built: PanopticModel
    if isinstance(model, UPSNetConfig):
        built = build_upsnet(model, categories, backbone, OfficialResize(data.test_short_side, data.test_max_side))
    else:
        built = build_deeplab(model, categories, backbone)
    if pretrained and model.backbone.weights is not None:
        load_backbone_weights(backbone, model.backbone.name, model.backbone.weights)
    return built


def model_limits(model: ModelConfig) -> Limits:
    """What the model of a config can learn and find at most, without building it."""
    return upsnet_limits(model) if isinstance(model, UPSNetConfig) else deeplab_limits(model)
