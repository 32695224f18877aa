"""A trained model in the form that computes least: norms folded into their convolutions, and arithmetic of 16 bits."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from upsnet.models.layers import DeformableConv
from upsnet.models.timm_backbone import TimmBackbone

Model = TypeVar("Model", bound=nn.Module)

NORM_OF = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3", "conv": "norm", "0": "1"}
"""Names of a convolution and of the norm after it, in torchvision's blocks, in `ConvNormReLU` and in sequences."""


def fold_norms(model: Model) -> Model:
    """Folds every batch norm into the convolution before it, in place: the same function but for rounding.

    Args:
        model: for inference only; group norms, and norms behind deformable convolutions, stay.

    Returns:
        `model`, in evaluation mode.
    """
    model.eval()
    of_timm = [module for module in model.modules() if isinstance(module, TimmBackbone)]
    for backbone in of_timm:
        _fold_observed(backbone)
    others = {id(module) for backbone in of_timm for module in backbone.modules()}
    for parent in [module for module in model.modules() if id(module) not in others]:
        for conv_name, norm_name in NORM_OF.items():
            conv, norm = getattr(parent, conv_name, None), getattr(parent, norm_name, None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return model


@torch.no_grad()
def _fold_observed(backbone: TimmBackbone) -> None:
    """Folds the batch norms of a model of timm into the convolutions before them.

    The names in timm's models do not tell which norm follows which convolution. A forward pass shows the pairs. The
    folded copy replaces the model only if both give the same features.
    """
    folded = copy.deepcopy(backbone.net)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(next(folded.parameters()))
    expected = backbone(image)
    for conv, norm in _observed_pairs(folded, image):
        folded.set_submodule(conv, fuse_conv_bn_eval(folded.get_submodule(conv), folded.get_submodule(norm)))
        # timm's batch norms contain the dropout and the activation that follow them.
        rest = [getattr(folded.get_submodule(norm), name, nn.Identity()) for name in ("drop", "act")]
        folded.set_submodule(norm, nn.Sequential(*(part for part in rest if not isinstance(part, nn.Identity))))
    original, backbone.net = backbone.net, folded
    found = backbone(image)
    if not all((a - b).abs().max() <= 1e-3 * b.abs().max() for a, b in zip(found, expected, strict=True)):
        backbone.net = original


def _observed_pairs(net: nn.Module, image: Tensor) -> list[tuple[str, str]]:
    """Finds pairs of a convolution and the batch norm that takes its result; returns their names.

    Both run exactly once in a forward pass.
    """
    producers: dict[int, str] = {}
    results: list[Tensor] = []  # keeps the tensors alive, so that no two have the same id
    calls: Counter[str] = Counter()
    pairs = []

    def after_convolution(name: str, result: Tensor) -> None:
        calls[name] += 1
        producers[id(result)] = name
        results.append(result)

    def before_norm(name: str, x: Tensor) -> None:
        calls[name] += 1
        if id(x) in producers:
            pairs.append((producers[id(x)], name))

    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda _, __, y, name=name: after_convolution(name, y)))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: before_norm(name, inputs[0])))
    net(image)
    for hook in hooks:
        hook.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


def compute_in(model: Model, dtype: torch.dtype) -> Model:
    """Makes convolutions and linear layers hold and compute `dtype`, in place; everything else stays in float32.

    Unlike autocast the conversions are part of the model: no weight is converted twice, and an exported graph
    has them on every device.

    Args:
        model: for inference only. Deformable convolutions stay in float32: their sampling needs it.
        dtype: float32, bfloat16 or float16.
    """
    if dtype == torch.float32:
        return model
    inside = {id(child) for m in model.modules() if isinstance(m, DeformableConv) for child in m.modules()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and id(module) not in inside:
            module.to(dtype).register_forward_pre_hook(lambda _, inputs: _cast(inputs, dtype))
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm | DeformableConv):
            module.register_forward_pre_hook(lambda _, inputs: _cast(inputs, torch.float32))
    return model


def _cast(inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
