"""Config -> model: the only module that knows all architectures."""

from __future__ import annotations

from collections.abc import Callable

from upsnet.categories import CategorySet
from upsnet.config import BackboneConfig, Config, ModelConfig, TimmBackboneConfig, UPSNetConfig
from upsnet.models.backbone import ResNet
from upsnet.models.base import Limits, PanopticModel
from upsnet.models.panoptic_deeplab.build import build_deeplab, deeplab_limits
from upsnet.models.pretrained.timm_weights import load_timm_weights
from upsnet.models.pretrained.weights import load_backbone_weights
from upsnet.models.timm_backbone import TimmBackbone, pixel_statistics
from upsnet.models.upsnet.build import build_upsnet, upsnet_limits
from upsnet.models.upsnet.official import OfficialResize


def resolve(config: Config) -> Config:
    """Fills in mean and standard deviation of the pixels, if only timm knows them.

    Training stores the result in its checkpoints, so that they do not depend on the version of timm.

    Raises:
        ValueError: timm is not installed, or has no such model.
    """
    model = config.model
    if model.pixel_mean is not None and model.pixel_std is not None:
        return config
    mean, std = pixel_statistics(model.backbone.name)
    changes = {"pixel_mean": model.pixel_mean or mean, "pixel_std": model.pixel_std or std}
    return config.model_copy(update={"model": model.model_copy(update=changes)})


def build_model(
    config: Config, categories: CategorySet, *, pretrained: bool = True, tell: Callable[[str], None] = lambda line: None
) -> PanopticModel:
    """Builds the model of a config.

    Args:
        config: the run.
        categories: the classes.
        pretrained: load `model.backbone.weights` (not needed when a checkpoint follows).
        tell: called with a line that says which weights were loaded.

    Raises:
        ValueError: the classes cannot feed the chosen heads, random weights would be frozen, or timm has no such
            backbone.
    """
    config = resolve(config)
    model, data = config.model, config.data
    section = model.backbone
    is_timm = isinstance(section, TimmBackboneConfig)
    if pretrained and section.freezes and section.weights is None:
        names, norm = ("pretrained", "own") if is_timm else ("IMAGENET1K_V1", "bn or gn")
        raise ValueError(
            "model.backbone: weights is null, but random weights would be frozen; "
            f"name weights ({names}, or a file), or set norm to {norm} and freeze_at to 0"
        )
    remainder = 0 if isinstance(model, UPSNetConfig) else int(model.align_corners)
    backbone = TimmBackbone(section, remainder) if isinstance(section, TimmBackboneConfig) else ResNet(section)
    built: PanopticModel
    if isinstance(model, UPSNetConfig):
        built = build_upsnet(model, categories, backbone, OfficialResize(data.test_short_side, data.test_max_side))
    else:
        built = build_deeplab(model, categories, backbone)
    _keep_own_options(built, section)
    if pretrained and section.weights is not None:
        if isinstance(backbone, TimmBackbone):
            tell(load_timm_weights(backbone, section.weights))
        else:
            tell(load_backbone_weights(backbone, section.name, section.weights))
    return built


def _keep_own_options(model: PanopticModel, section: BackboneConfig | TimmBackboneConfig) -> None:
    """Removes the overrides from `memory_options` whose key the section of this backbone does not have."""
    keys = {f"model.backbone.{name}" for name in type(section).model_fields}
    names = {option: option.partition("=")[0] for option in model.memory_options}
    model.memory_options = tuple(
        option for option, name in names.items() if name in keys or not name.startswith("model.backbone.")
    )


def model_limits(model: ModelConfig) -> Limits:
    """What the model of a config can learn and find at most, without building it."""
    return upsnet_limits(model) if isinstance(model, UPSNetConfig) else deeplab_limits(model)
