"""Builds Panoptic-DeepLab from its config section."""

from __future__ import annotations

from torch import nn

from upsnet.categories import CategorySet
from upsnet.config import PanopticDeepLabConfig
from upsnet.models.backbone import Backbone
from upsnet.models.base import Limits
from upsnet.models.panoptic_deeplab.model import PanopticDeepLab


def deeplab_limits(model: PanopticDeepLabConfig) -> Limits:
    """The limits of the model that a config describes."""
    return Limits(model.instance.max_detections)


def build_deeplab(model: PanopticDeepLabConfig, categories: CategorySet, backbone: Backbone) -> PanopticDeepLab:
    """Builds the model.

    Args:
        model: the config section.
        categories: the classes.
        backbone: of the config.

    Raises:
        ValueError: there are no things, or no stuff.
    """
    for count, name in ((categories.num_things, "thing"), (categories.num_stuff, "stuff")):
        if count == 0:
            raise ValueError(
                f"model.architecture=panoptic_deeplab: the data set has no {name} class, expected one; use "
                "model.architecture=upsnet, which can learn one kind alone (model.heads)"
            )
    built = PanopticDeepLab(backbone, categories.num_stuff, categories.num_things, model)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = model.norm_momentum
    return built
