"""Feature pyramid (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down path by nearest upsampling, and 3x3 output convolutions.

    Args:
        in_channels: of res2..res5.
        channels: of every output level.
        extra_level: also give P6, every second cell of P5 (for the proposals).
        gap: add a projection of res5's mean over the padded map to P5.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, *, extra_level: bool, gap: bool = False) -> None:
        super().__init__()
        self.extra_level = extra_level
        self.inner_blocks = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.layer_blocks = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        for conv in [*self.inner_blocks, *self.layer_blocks]:
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)
        self.gap = nn.Linear(in_channels[-1], channels) if gap else None

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """res2..res5 -> P2..P5 (and P6), each [B, channels, H / stride, W / stride]."""
        sums = [inner(feature) for inner, feature in zip(self.inner_blocks, features, strict=True)]
        if self.gap is not None:
            sums[-1] = sums[-1] + self.gap(features[-1].mean((2, 3)))[:, :, None, None]
        for level in range(len(sums) - 2, -1, -1):
            sums[level] = sums[level] + F.interpolate(sums[level + 1], size=sums[level].shape[-2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.layer_blocks, sums, strict=True)]
        if self.extra_level:
            outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
        return outputs
