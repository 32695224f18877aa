"""A trained model in the form that computes least: norms folded into their convolutions, and arithmetic of 16 bits."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from upsnet.models.layers import DeformableConv

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
    for parent in list(model.modules()):
        for conv_name, norm_name in NORM_OF.items():
            conv, norm = getattr(parent, conv_name, None), getattr(parent, norm_name, None)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return model


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
        elif isinstance(module, nn.GroupNorm | DeformableConv):
            module.register_forward_pre_hook(lambda _, inputs: _cast(inputs, torch.float32))
    return model


def _cast(inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
