"""The definition of what Panoptic-DeepLab does after its network, step by step, on full-size maps.

`tiles`, `triton` and the ONNX form give the same centres, best channels and instances on finite maps. All use the same
float32 operations in the same order: a value between two cells is `a + weight * (b - a)`, rows first, and a squared
distance is `(y - center_y)**2 + (x - center_x)**2`, without fused operations. A tie in one form is thus a tie in each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.panoptic_fusion.segment_ids import histogram
from upsnet.ops.panoptic_fusion.slots import Axis, Grid

_LAST = 2**32 - 1
"""No pixel has this index."""


def upsample(values: Tensor, grid: Grid) -> Tensor:
    """Bilinear interpolation: float32 [B, N, h, w] -> [B, N, H, W]."""
    return _between(_between(values, grid.rows, -2), grid.columns, -1)


def _between(values: Tensor, axis: Axis, dim: int) -> Tensor:
    weight = axis.weight if dim == -1 else axis.weight[:, None]
    low, high = values.index_select(dim, axis.low), values.index_select(dim, axis.high)
    return low + weight * (high - low)


def find_centers(heat: Tensor, options: GroupingOptions) -> tuple[Tensor, Tensor, Tensor]:
    """The `top_k` highest peaks of heat maps; of equal peaks those with the lowest index in row-major order.

    A peak is above the threshold and the maximum of the window around it. Where a peak sees equal ones in its window,
    only the first of them in row-major order is a centre, so a plateau has one.

    Args:
        heat: float32 [B, H, W].
        options: threshold, window and number.

    Returns:
        points int64 [B, K, 2] (y, x), their heat float32 [B, K], and valid bool [B, K], with K = `top_k`. Valid centres
        come first, in row-major order; the others are 0.
    """
    is_above = heat > options.center_threshold
    heat = torch.where(is_above, heat, 0)
    is_peak = is_above & (heat == _window_max(heat, options.nms_kernel))
    if not options.strict_top_k:
        is_peak = _first_of_plateau(is_peak, options.nms_kernel)
    index = torch.arange(heat[0].numel(), device=heat.device).view(heat.shape[1:])
    keys = torch.where(is_peak, center_keys(heat, index), 0).flatten(1)
    keys = F.pad(keys, (0, max(0, options.top_k - keys.shape[1])))
    return chosen_centers(keys.topk(options.top_k, dim=1).values, heat.shape[2], options)


def center_keys(heat: Tensor, index: Tensor) -> Tensor:
    """Keys int64 > 0 that order pixels by falling heat (float32, > 0), and equal heat by rising index."""
    return heat.view(torch.int32).long() * (_LAST + 1) + (_LAST - index)  # the bits of positive floats order as they do


def chosen_centers(keys: Tensor, width: int, options: GroupingOptions) -> tuple[Tensor, Tensor, Tensor]:
    """The result of `find_centers` from the largest keys int64 [B, K], in falling order; 0 is no centre."""
    valid, heat = keys > 0, (keys >> 32).int().view(torch.float32)
    if options.strict_top_k:
        valid = valid & ~(valid[:, -1:] & (heat == heat[:, -1:]))
    index, order = torch.where(valid, _LAST - (keys & _LAST), _LAST).sort(dim=1)
    valid, heat = index < _LAST, heat.gather(1, order)
    index = index.where(valid, 0)
    return torch.stack([index // width, index % width], 2), heat.where(valid, 0), valid


def _window_max(values: Tensor, kernel: int) -> Tensor:
    """The maximum of the square window around each pixel of [B, H, W]."""
    return _row_max(F.max_pool2d(values[:, None], (kernel, 1), 1, (kernel // 2, 0))[:, 0], kernel)


def _row_max(values: Tensor, kernel: int) -> Tensor:
    return F.max_pool2d(values[:, None], (1, kernel), 1, (0, kernel // 2))[:, 0]


def _first_of_plateau(is_peak: Tensor, kernel: int) -> Tensor:
    """Of bool [B, H, W], the peaks that see no other peak above them or to their left in the same row.

    Two peaks in each other's window have the same heat.
    """
    height, width = is_peak.shape[1:]
    rows = torch.arange(height, 0, -1, device=is_peak.device, dtype=torch.float32)[:, None]
    columns = torch.arange(width, 0, -1, device=is_peak.device, dtype=torch.float32)
    rows, columns = (torch.where(is_peak, rank, 0) for rank in (rows, columns))
    return is_peak & (rows == _window_max(rows, kernel)) & (columns == _row_max(columns, kernel))


def best_channels(logits: Tensor, grid: Grid) -> Tensor:
    """The argmax of the upsampled logits: float32 [B, C, h, w] -> int32 [B, H, W]; the first channel wins a tie."""
    return upsample(logits, grid).argmax(1).int()


def group_pixels(offset: Tensor, points: Tensor, valid: Tensor, is_thing: Tensor) -> Tensor:
    """The nearest centre to where each pixel points.

    Args:
        offset: float32 [B, 2, H, W], (dy, dx) from each pixel to its centre, in pixels.
        points: int64 [B, K, 2], (y, x) of the centres; valid ones first.
        valid: bool [B, K].
        is_thing: bool [B, H, W].

    Returns:
        int32 [B, H, W]: 1 + index of the centre of the least squared distance in float32, the lowest index on a tie
        (and where an offset is no number); 0 where no thing is, and everywhere without a centre.
    """
    height, width = is_thing.shape[1:]
    y = torch.arange(height, device=offset.device)[:, None] + offset[:, 0]
    x = torch.arange(width, device=offset.device) + offset[:, 1]
    center = points.float()[..., None, None]
    distance = (y[:, None] - center[:, :, 0]) ** 2 + (x[:, None] - center[:, :, 1]) ** 2
    nearest = distance.where(valid[..., None, None], torch.inf).argmin(1) + 1
    return nearest.where(is_thing & valid.any(1)[:, None, None], 0).int()


def count_votes(instance: Tensor, channels: Tensor, num_centers: int, num_classes: int) -> Tensor:
    """How many pixels of each instance have each channel.

    Args:
        instance: int32 [B, H, W], 0..K.
        channels: int32 [B, H, W], 0..C-1.
        num_centers, num_classes: K and C.

    Returns:
        int64 [B, K + 1, C]; row 0 counts the pixels without an instance.
    """
    bins = (num_centers + 1) * num_classes
    return histogram(instance.long() * num_classes + channels, bins).view(-1, num_centers + 1, num_classes)


def probability_sums(logits: Tensor, grid: Grid, instance: Tensor, classes: Tensor) -> Tensor:
    """The sum over the pixels of each instance of the softmax of the upsampled logits at the instance's class.

    Args:
        logits: float32 [B, C, h, w].
        grid: the pixels of the result.
        instance: int32 [B, H, W], 0..K.
        classes: int64 [B, K], the channel of each instance.

    Returns:
        float64 [B, K].
    """
    probability = upsample(logits, grid).softmax(1)
    row = instance.long().flatten(1)
    channel = torch.cat([torch.zeros_like(classes[:, :1]), classes], 1).gather(1, row).view_as(instance)
    own = probability.gather(1, channel[:, None])[:, 0].double()
    sums = own.new_zeros(len(own), classes.shape[1] + 1)
    return sums.scatter_add(1, row, own.flatten(1))[:, 1:]
