"""Decoders and heads of Panoptic-DeepLab (Cheng et al. 2020, sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upsnet.config import PanopticDeepLabConfig
from upsnet.models.layers import ConvNormReLU, init_normal, separable_conv
from upsnet.models.panoptic_deeplab.aspp import ASPP
from upsnet.ops.sizes import Size


def two_layers(inputs: int, width: int, outputs: int, conv: Literal["separable", "dense"], norm: str) -> nn.Sequential:
    """The two convolutions of a decoder stage or of a head.

    Args:
        inputs, outputs: channels.
        width: channels between two dense convolutions.
        conv, norm: as in `PanopticDeepLabConfig`.
    """
    if conv == "separable":
        return separable_conv(inputs, outputs, 5, norm)
    return nn.Sequential(ConvNormReLU(inputs, width, 3, norm), ConvNormReLU(width, outputs, 3, norm))


class DecoderStage(nn.Module):
    """Brings the map to the resolution of a low-level map, and fuses both.

    Args:
        inputs, low_level: channels of the two maps.
        projected: channels that the low-level map is projected to.
        outputs: channels.
        config: `model`.
    """

    def __init__(
        self, inputs: int, low_level: int, projected: int, outputs: int, config: PanopticDeepLabConfig
    ) -> None:
        super().__init__()
        self.project = ConvNormReLU(low_level, projected, 1, config.norm)
        self.fuse = two_layers(inputs + projected, outputs, outputs, config.conv, config.norm)
        self.align_corners, self.low_level_first = config.align_corners, config.low_level_first

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        """[B, inputs, h, w] and [B, low_level, H, W] -> [B, outputs, H, W]."""
        low_level = self.project(low_level)
        x = F.interpolate(x, size=low_level.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        x = x.to(low_level.dtype)
        result: Tensor = self.fuse(torch.cat([low_level, x] if self.low_level_first else [x, low_level], 1))
        return result


class Decoder(nn.Module):
    """Pyramid pooling of res5, and one stage for each low-level map down to res2.

    Args:
        inputs: channels of res2..res5.
        low_level_channels: of the projected maps, from the coarsest on.
        channels: of each stage.
        config: `model`.
        stream: of the dropout.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        low_level_channels: Sequence[int],
        channels: int,
        config: PanopticDeepLabConfig,
        stream: int,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(inputs[-1], config, stream)
        count = len(low_level_channels)
        before = [config.aspp.channels, *[channels] * (count - 1)]
        self.stages = nn.ModuleList(
            DecoderStage(previous, low_level, projected, channels, config)
            for previous, low_level, projected in zip(before, reversed(inputs[:count]), low_level_channels, strict=True)
        )

    def forward(self, features: Sequence[Tensor], image_sizes: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Decodes the features of a batch.

        Args:
            features: res2..res5.
            image_sizes: int64 [B, 2], (H, W) of the valid part of each image.
            seeds: int64 [B], for the dropout while training.

        Returns:
            [B, channels, H / 4, W / 4].
        """
        x = self.aspp(features[-1], image_sizes, seeds)
        for stage, low_level in zip(self.stages, reversed(features[: len(self.stages)]), strict=True):
            x = stage(x, low_level)
        return x


class Head(nn.Module):
    """Two convolutions and a 1x1 convolution that predicts.

    Args:
        inputs: channels of the decoder.
        width: channels before the last convolution.
        outputs: channels of the prediction.
        config: `model`.
    """

    def __init__(self, inputs: int, width: int, outputs: int, config: PanopticDeepLabConfig) -> None:
        super().__init__()
        self.layers = two_layers(inputs, inputs, width, config.conv, config.norm)
        self.predictor = nn.Conv2d(width, outputs, 1)
        init_normal(self.predictor, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h, w], in float32 at least."""
        found: Tensor = self.predictor(self.layers(x))
        return found.to(torch.promote_types(found.dtype, torch.float32))


def upsample(x: Tensor, size: Size, *, align_corners: bool) -> Tensor:
    """Resizes predictions [B, N, h, w] to the network input of `size` = (H, W)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)
