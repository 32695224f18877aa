"""What the heads of Panoptic-DeepLab learn, made on the device from the ground truth, for all images at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from upsnet.categories import IGNORE_LABEL
from upsnet.config.panoptic_deeplab import TargetConfig
from upsnet.ops.sizes import Size
from upsnet.structures import PanopticTarget


@dataclass(frozen=True)
class DeepLabTarget:
    """Targets at the resolution of the network input.

    Attributes:
        semantic_weight: float32 [B, H, W], of each pixel in the semantic loss.
        heat: float32 [B, 1, H, W], 1 at the centres.
        heat_weight: bool [B, 1, H, W]: the pixel counts.
        offset: float32 [B, 2, H, W], (dy, dx) from each pixel to the centre of mass of its instance, in pixels.
        offset_weight: bool [B, 1, H, W]: the pixel counts.
        centers: float64 [B, N, 2], (y, x) of the centre of mass of each slot; pixel i has its centre at i.
        has_center: bool [B, N]: the slot has a peak.
    """

    semantic_weight: Tensor
    heat: Tensor
    heat_weight: Tensor
    offset: Tensor
    offset_weight: Tensor
    centers: Tensor
    has_center: Tensor


def make_targets(truth: PanopticTarget, config: TargetConfig) -> DeepLabTarget:
    """Makes the targets of a batch. Centres of mass and areas are those of the visible pixels.

    Void has no part in any loss. Crowds teach their class alone: they have no peak and no offset, and whatever the
    heat is there is ignored.

    Args:
        truth: of the batch.
        config: `model.target`.
    """
    slot = truth.instance_map.long()
    height, width = slot.shape[1:]
    rows, columns = torch.arange(height, device=slot.device), torch.arange(width, device=slot.device)
    bins = truth.labels.shape[1] + 1
    in_rows, in_columns = _count(slot, bins), _count(slot.transpose(1, 2), bins)
    area = in_rows.sum(1)[:, 1:]
    moments = [(counts * place[:, None]).sum(1)[:, 1:] for counts, place in ((in_rows, rows), (in_columns, columns))]
    centers = torch.stack(moments, -1).double() / area.clamp(min=1)[..., None]
    has_center = (truth.labels > 0 if config.crowd_peaks else truth.is_instance) & (area > 0)

    def of_pixels(values: Tensor) -> Tensor:
        """The value of the slot of each pixel, 0 where no thing is: [B, N] -> [B, H, W]."""
        return F.pad(values, (1, 0)).gather(1, slot.flatten(1)).view_as(slot)

    has_peak = of_pixels(has_center)
    y, x = (of_pixels(centers[..., axis].float()) for axis in range(2))
    offset = torch.stack([y - rows[:, None], x - columns], 1)
    is_crowd, is_instance = of_pixels(truth.is_crowd_region), of_pixels(truth.is_instance)
    is_small = of_pixels(has_center & (area < config.small_area))
    pixels = centers.round() if config.center == "nearest" else centers.floor()
    return DeepLabTarget(
        semantic_weight=torch.where(is_small, float(config.small_weight), 1.0),
        heat=draw_peaks(pixels.long(), has_center, config.sigma, (height, width))[:, None],
        heat_weight=((truth.semantic_map != IGNORE_LABEL) & ~is_crowd)[:, None],
        offset=offset.where(has_peak[:, None], 0),
        offset_weight=is_instance[:, None],
        centers=centers,
        has_center=has_center,
    )


def _count(slot: Tensor, bins: int) -> Tensor:
    """How many pixels of each slot are in each row: int64 [B, H, W] -> int64 [B, H, bins]."""
    counts = slot.new_zeros(*slot.shape[:2], bins)
    return counts.scatter_add(2, slot, slot.new_ones(()).expand_as(slot))


def draw_peaks(centers: Tensor, valid: Tensor, sigma: float, size: Size) -> Tensor:
    """Draws Gaussians around pixels, of height 1, each within a square of 3 sigma + 1 pixels to every side.

    Args:
        centers: int64 [B, N, 2], (y, x).
        valid: bool [B, N].
        sigma: pixels.
        size: (H, W) of the result.

    Returns:
        float32 [B, H, W], the maximum of the Gaussians.
    """
    height, width = size
    reach = torch.arange(-int(3 * sigma + 1), int(3 * sigma + 1) + 1, device=centers.device)
    bump = torch.exp(-(reach[:, None] ** 2 + reach**2) / (2 * sigma**2))
    y, x = (centers[..., axis, None] + reach for axis in range(2))
    keep_y, keep_x = (y >= 0) & (y < height) & valid[..., None], (x >= 0) & (x < width)
    pixel = y[..., :, None] * width + x[..., None, :]
    pixel = torch.where(keep_y[..., :, None] & keep_x[..., None, :], pixel, height * width)  # the last is left out
    heat = bump.new_zeros(len(centers), height * width + 1)
    heat = heat.scatter_reduce(1, pixel.flatten(1), bump.expand_as(pixel).flatten(1), "amax")
    return heat[:, :-1].unflatten(1, (height, width))
