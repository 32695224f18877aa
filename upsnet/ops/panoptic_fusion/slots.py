"""What the panoptic head fuses: slots with instances, where each lies on the pixels of the result, which compete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

STRIDE = 4
"""Network-input pixels per cell of the semantic logits."""
NEVER, ALWAYS = -1e4, 1e4
"""Logits that lose or win against every real one; finite, so that gradients are."""

Method = Literal["unified", "heuristic"]
"""`unified`: the head of Xiong et al. 2019, sec. 3.3, with continuous box edges. `heuristic`: the merge of Kirillov et
al. 2018, sec. 7. ARCHITECTURE.md, "Panoptic head", lists the differences."""


@dataclass(frozen=True)
class Slots:
    """Instances of a batch, in order of falling score, laid on the pixels of the result.

    Attributes:
        labels: int64 [B, K], 1..T.
        valid: bool [B, K]: the slot holds an instance that competes.
        mask_logits: float [B, K, M, M].
        frame: float32 [B, K, 4], XYXY: the mask's cells are stretched over it.
        region: int32 [B, K, 4], XYXY, half-open: the pixels where the instance exists; inside the result.
    """

    labels: Tensor
    valid: Tensor
    mask_logits: Tensor
    frame: Tensor
    region: Tensor


def place_slots(boxes: Tensor, labels: Tensor, valid: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Slots:
    """Lays instances on a result of `size` = (H, W): a pixel belongs to a box if its centre does.

    Args:
        boxes: float32 [B, K, 4], XYXY in pixels of the result.
        labels, valid, mask_logits: see `Slots`.
        size: of the result.
    """
    return Slots(labels, valid, mask_logits, boxes, clip_region((boxes - 0.5).ceil(), size))


def clip_region(region: Tensor, size: tuple[int, int]) -> Tensor:
    """Regions [..., 4] clipped to a result of `size` = (H, W), as int32."""
    x, y = region[..., 0::2].clamp(0, size[1]), region[..., 1::2].clamp(0, size[0])
    return torch.stack([x, y], -1).flatten(-2).int()


@dataclass(frozen=True)
class Axis:
    """Where the pixels of the result lie between the cells of the semantic logits, along one axis.

    Attributes:
        low, high: int64 [n], the cells on either side.
        weight: float32 [n], of `high`; the value is (1 - weight) * low + weight * high.
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    @classmethod
    def of(cls, network: int, size: int, cells: int, device: torch.device) -> Axis:
        """For `size` pixels of the result over `network` pixels of the input; edges are clamped to the cells there are.

        Pixel i has its centre at (i + 1/2) network / (STRIDE size) - 1/2 cells: a fraction, computed in integers, so
        that every device and implementation gets the same weights.
        """
        unit = 2 * STRIDE * size
        position = (2 * torch.arange(size, device=device) + 1) * network - unit // 2
        position = position.clamp(0, (cells - 1) * unit)
        low = position // unit
        return cls(low, (low + 1).clamp(max=cells - 1), (position - low * unit).float() / unit)

    def matrix(self, cells: int) -> Tensor:
        """The same as a dense matrix float32 [n, cells]."""
        weights = self.weight.new_zeros(len(self.weight), cells)
        weights.scatter_(1, self.low[:, None], 1 - self.weight[:, None])
        return weights.scatter_add_(1, self.high[:, None], self.weight[:, None])


@dataclass(frozen=True)
class Grid:
    """The pixels of the result over the cells of the semantic logits."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, network: tuple[int, int], size: tuple[int, int], cells: tuple[int, int], device: torch.device) -> Grid:
        """All sizes are (H, W): of the network's input that the result shows, of the result, of the logits."""
        return cls(*(Axis.of(n, s, c, device) for n, s, c in zip(network, size, cells, strict=True)))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the result."""
        return len(self.rows.low), len(self.columns.low)
