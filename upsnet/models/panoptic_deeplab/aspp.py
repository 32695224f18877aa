"""Atrous spatial pyramid pooling (Chen et al. 2018), with which each decoder of Panoptic-DeepLab begins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upsnet.config import PanopticDeepLabConfig
from upsnet.config.panoptic_deeplab import ASPPConfig
from upsnet.models.layers import Conv2d, ConvNormReLU, separable_conv, zero_padding
from upsnet.ops.sampling import hashed_uniform
from upsnet.ops.sizes import Size

MAX_CELLS = 4096
"""More rows or columns than a map has that dropout is applied to."""


class ImageDropout(nn.Module):
    """Dropout whose choice is a function of the image and of the position, so that a resumed run makes the same one.

    Args:
        rate: share of the values that become 0 while training.
        stream: another number for each layer.
    """

    def __init__(self, rate: float, stream: int) -> None:
        super().__init__()
        self.rate, self.stream = rate, stream

    def keep(self, x: Tensor, seeds: Tensor) -> Tensor:
        """bool [B, C, H, W]: the values of `x` that stay; seeds: int64 [B]."""
        channel, row, column = (torch.arange(n, device=x.device) for n in x.shape[1:])
        position = (channel[:, None, None] * MAX_CELLS + row[:, None]) * MAX_CELLS + column
        return hashed_uniform(seeds, self.stream, position.flatten()).view(x.shape) >= self.rate

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """[B, C, H, W] -> the same; without seeds nothing is dropped."""
        if not self.training or self.rate == 0 or seeds is None:
            return x
        return x * self.keep(x, seeds) / (1 - self.rate)


@dataclass(frozen=True)
class _Windows:
    """The windows along one axis of n cells, as tensors, so that a graph can be exported for any n.

    Attributes:
        start, stop: int64 [n], first cell and end of each window; where fewer windows fit, the last one repeats.
        low, high: int64 [n], the windows before and behind each cell when their row is stretched over the axis.
        weight: float32 [n], of `high`.
    """

    start: Tensor
    stop: Tensor
    low: Tensor
    high: Tensor
    weight: Tensor

    @classmethod
    def of(cls, cells: int, window: int, device: torch.device, *, align_corners: bool) -> _Windows:
        index = torch.arange(cells, device=device)
        count = index[-1:] + 1
        last = (count - window).clamp(min=0)
        start = torch.minimum(index, last)
        if align_corners:
            position = index * last / (count - 1).clamp(min=1)
        else:
            position = ((index + 0.5) * (last + 1) / count - 0.5).clamp(min=0)
        position = torch.minimum(position, last)
        low = position.long()
        return cls(
            start, torch.minimum(start + window, count), low, torch.minimum(low + 1, last), (position - low).float()
        )

    def means(self, x: Tensor, dim: int) -> Tensor:
        """The mean of each window along a dimension of `x`, in place of its cells."""
        sums = F.pad(x.cumsum(dim), (0, 0, 1, 0) if dim == -2 else (1, 0))
        total = sums.index_select(dim, self.stop) - sums.index_select(dim, self.start)
        return total / _along(self.stop - self.start, dim)

    def stretched(self, x: Tensor, dim: int) -> Tensor:
        """The values of the windows, interpolated over all cells."""
        low, high = x.index_select(dim, self.low), x.index_select(dim, self.high)
        return low + _along(self.weight, dim).to(x.dtype) * (high - low)


def _along(values: Tensor, dim: int) -> Tensor:
    return values if dim == -1 else values[:, None]


class PoolingBranch(nn.Module):
    """The mean of the map, a 1x1 convolution and ReLU.

    Args:
        inputs: channels.
        config: `model.aspp`.
        stride: pixels of the network input per cell.
        align_corners: of the resizing of windows' means to the map.
    """

    def __init__(self, inputs: int, config: ASPPConfig, stride: int, *, align_corners: bool) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, config.channels, 1, bias=config.pool_bias)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_in", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        window = config.pool_window
        self.window = None if window is None else (-(-window[0] // stride), -(-window[1] // stride))
        self.stride, self.align_corners = stride, align_corners

    def forward(self, x: Tensor, image_sizes: Tensor) -> Tensor:
        """[B, inputs, h, w], and (H, W) of the valid images int64 [B, 2] -> [B, channels, h, w]."""
        if self.window is not None:
            return self._windows(x, self.window)
        cells = (image_sizes + self.stride - 1) // self.stride
        total = zero_padding(x, cells).sum((2, 3), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        mean = (total / cells.prod(1)[:, None, None, None]).to(x.dtype)
        pooled: Tensor = self.conv(mean, relu=True)
        return pooled.expand(-1, -1, *x.shape[-2:])

    def _windows(self, x: Tensor, window: Size) -> Tensor:
        """The same of the mean in a window that slides over the map, resized to the map."""
        axes = {
            dim: _Windows.of(x.shape[dim], side, x.device, align_corners=self.align_corners)
            for dim, side in zip((-2, -1), window, strict=True)
        }
        means = x.to(torch.promote_types(x.dtype, torch.float32))
        for dim, axis in axes.items():
            means = axis.means(means, dim)
        pooled: Tensor = self.conv(means.to(x.dtype), relu=True)
        for dim, axis in axes.items():
            pooled = axis.stretched(pooled, dim)
        return pooled


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: one 1x1 and several dilated 3x3 convolutions, and the mean of the image.

    Args:
        inputs: channels of res5.
        config: `model`.
        stream: of the dropout.
    """

    def __init__(self, inputs: int, config: PanopticDeepLabConfig, stream: int) -> None:
        super().__init__()
        aspp, norm, channels = config.aspp, config.norm, config.aspp.channels
        branches: list[nn.Module] = [ConvNormReLU(inputs, channels, 1, norm)]
        for rate in aspp.rates:
            if aspp.conv == "separable":
                branches.append(separable_conv(inputs, channels, 3, norm, dilation=rate))
            else:
                branches.append(ConvNormReLU(inputs, channels, 3, norm, dilation=rate))
        self.branches = nn.ModuleList(branches)
        self.pool = PoolingBranch(inputs, aspp, config.backbone.output_stride, align_corners=config.align_corners)
        self.project = ConvNormReLU((len(branches) + 1) * channels, channels, 1, norm)
        self.dropout = ImageDropout(aspp.dropout, stream)

    def forward(self, x: Tensor, image_sizes: Tensor, seeds: Tensor | None) -> Tensor:
        """res5 [B, inputs, h, w] -> [B, channels, h, w]; `image_sizes` and `seeds` as in `Decoder.forward`."""
        found = [branch(x) for branch in self.branches]
        joined = torch.cat([*found, self.pool(x, image_sizes).to(found[0].dtype)], 1)
        result: Tensor = self.dropout(self.project(joined), seeds)
        return result
