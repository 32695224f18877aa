"""What the panoptic head fuses: slots with instances, where each lies on the pixels of the result, which compete."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

STRIDE = 4
"""Network-input pixels per cell of the semantic logits."""
NEVER, ALWAYS = -1e4, 1e4
"""Logits that lose or win against every real one; finite, so that gradients are."""

Method = Literal["unified", "official", "heuristic"]
"""`unified`: the head of Xiong et al. 2019, sec. 3.3, with continuous box edges. `official`: the same as the program
that came with the paper rounds it, for its checkpoints. `heuristic`: the merge of Kirillov et al. 2018, sec. 7.
ARCHITECTURE.md, "Panoptic head", lists the differences."""


@dataclass(frozen=True)
class Slots:
    """Instances of a batch, in order of falling score, laid on the pixels of the result.

    Attributes:
        labels: int64 [B, K], 1..T.
        valid: bool [B, K]: the slot holds an instance that competes.
        mask_logits: float [B, K, M, M].
        frame: float32 [B, K, 4], XYXY: the mask's cells are stretched over it.
        mask_region: int32 [B, K, 4], XYXY, half-open: the pixels where the mask logit counts; inside the result.
        semantic_region: the same for the logit of the class.
    """

    labels: Tensor
    valid: Tensor
    mask_logits: Tensor
    frame: Tensor
    mask_region: Tensor
    semantic_region: Tensor


def place_slots(
    boxes: Tensor, labels: Tensor, valid: Tensor, mask_logits: Tensor, size: tuple[int, int], method: Method = "unified"
) -> Slots:
    """Lays instances on a result of `size` = (H, W).

    Args:
        boxes: float32 [B, K, 4], XYXY in pixels of the result; with `official` they end with their last pixel (x2 = the
            column of the last pixel, not the one after it).
        labels, valid, mask_logits: see `Slots`.
        size: of the result.
        method: `official` rounds boxes to whole pixels, inclusive, the mask's end downwards and the semantic end to the
            nearest; a negative semantic edge counts from the far side of the image. Otherwise a pixel belongs to a
            box if its centre does.
    """
    if method == "official":
        low, high = boxes[..., :2].trunc(), boxes[..., 2:]
        frame = torch.cat([low, low + (high.trunc() - low + 1).clamp(min=1)], -1)
        mask = torch.cat([low, high.trunc() + 1], -1)
        semantic = torch.cat([low, high.round() + 1], -1)
        x, y = semantic[..., 0::2], semantic[..., 1::2]
        semantic = torch.stack([x + (x < 0) * size[1], y + (y < 0) * size[0]], -1).flatten(-2)
    else:
        frame, mask = boxes, (boxes - 0.5).ceil()
        semantic = mask
    return Slots(labels, valid, mask_logits, frame, _clip(mask, size), _clip(semantic, size))


def _clip(region: Tensor, size: tuple[int, int]) -> Tensor:
    x, y = region[..., 0::2].clamp(0, size[1]), region[..., 1::2].clamp(0, size[0])
    return torch.stack([x, y], -1).flatten(-2).int()


def competing(slots: Slots, keep: Tensor, method: Method) -> Slots:
    """The slots that enter the fusion.

    Args:
        slots: all.
        keep: bool [B, K], the outcome of the mask removal. Where nothing is kept, the official program lets the first
            detection compete with an empty mask, and a stand-in of logit 0 if there is no detection at all.
        method: of the fusion.
    """
    if method != "official":
        return replace(slots, valid=keep)
    first = torch.arange(keep.shape[1], device=keep.device) == 0
    stand_in = first & ~keep.any(1, keepdim=True)
    return replace(
        slots,
        valid=keep | stand_in,
        mask_region=slots.mask_region.masked_fill(stand_in[..., None], 0),
        semantic_region=slots.semantic_region.masked_fill((stand_in & ~slots.valid)[..., None], 0),
    )


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
