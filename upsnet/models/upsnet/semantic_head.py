"""Semantic head of UPSNet (Xiong et al. 2019, sec. 3.2): one small subnet shared by P2-P5."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from upsnet.config import SemanticConfig
from upsnet.models.layers import DeformableConv, conv_block, init_normal, keep_gradient_format


class DeformableBlock(nn.Module):
    """Deformable convolution and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = DeformableConv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        result: Tensor = self.conv(x, relu=True)
        return result


class SemanticHead(nn.Module):
    """Convolutions shared over the levels, bilinear upsampling to 1/4 resolution, concatenation, 1x1 scores.

    The 1x1 convolution of the concatenation is one per level, applied before the upsampling, and the results are
    added: the same numbers for a fraction of the work.

    Args:
        in_channels: of the pyramid.
        num_classes: S + T.
        config: `model.semantic`.
    """

    def __init__(self, in_channels: int, num_classes: int, config: SemanticConfig) -> None:
        super().__init__()
        num_layers, channels = config.num_layers, config.channels
        widths = [in_channels] * max(1, num_layers - 1) + [channels] * (2 if num_layers > 1 else 1)
        pairs = list(pairwise(widths))
        if config.conv == "deformable":
            self.layers = nn.Sequential(*(DeformableBlock(i, o) for i, o in pairs))
        else:
            self.layers = nn.Sequential(*(conv_block(i, o, dilation=config.dilation) for i, o in pairs))
        self.score = nn.ModuleList(nn.Conv2d(channels, num_classes, 1, bias=level == 0) for level in range(4))
        for score in self.score:
            init_normal(score, std=0.01)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """P2..P5 -> semantic logits float32 [B, S + T, H / 4, W / 4]."""
        total, *others = (score(self.layers(level)).float() for score, level in zip(self.score, levels, strict=True))
        for scores in others:
            total = total + F.interpolate(scores, size=total.shape[-2:], mode="bilinear", align_corners=False)
        return keep_gradient_format(total)
