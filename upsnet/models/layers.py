"""Small blocks that several parts share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics and affine parameters never change, whatever mode the model is in."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stays in evaluation mode."""
        super().train(False)
        return self


def make_norm(kind: str, channels: int) -> nn.Module:
    """A normalisation layer: `none`, `gn` (32 groups, fewer for odd widths), `bn` or `frozen_bn`."""
    if kind == "gn":
        return nn.GroupNorm(math.gcd(32, channels // 2), channels)
    layers: dict[str, type[nn.Module]] = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d, "none": nn.Identity}
    return layers[kind](channels)


def conv_block(inputs: int, outputs: int, *, norm: str = "none", dilation: int = 1) -> nn.Sequential:
    """3x3 convolution, normalisation, ReLU; He initialisation."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=norm == "none")
    init_conv(conv)
    return nn.Sequential(conv, make_norm(norm, outputs), nn.ReLU(inplace=True))


def init_conv(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He-normal weights for a layer followed by ReLU, zero bias."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_normal(layer: nn.Module, std: float) -> None:
    """Gaussian weights for a prediction layer, zero bias."""
    for name, parameter in layer.named_parameters():
        if name == "bias":
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=std)


def zero_padding(images: Tensor, image_sizes: Tensor) -> Tensor:
    """Sets the pixels of [B, C, H, W] outside each image's (H, W), int64 [B, 2], to zero."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < image_sizes[:, :1]
    columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
    return images * (rows[:, None, :, None] & columns[:, None, None, :])
