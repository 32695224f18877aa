"""The steps of `reference` for tensors in host memory: compiled loops over rows and tiles, without large volumes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from upsnet.ops.instance_grouping import tiles_numba as loops
from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.instance_grouping.reference import center_keys, chosen_centers
from upsnet.ops.panoptic_fusion.slots import Grid


def upsample(values: Tensor, grid: Grid) -> Tensor:
    """As `reference.upsample`: float32 [B, N, H, W]."""
    result = torch.empty(*values.shape[:2], *grid.size)
    for image, target in zip(values, result, strict=True):
        loops.upsample(_array(image), *_arrays(grid), target.numpy())
    return result


def find_centers(heat: Tensor, options: GroupingOptions) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.find_centers`: points int64 [B, K, 2], heat float32 [B, K], valid bool [B, K]."""
    keys = torch.zeros(len(heat), options.top_k, dtype=torch.int64)
    for image, row in zip(heat, keys, strict=True):
        is_peak = torch.empty(image.shape, dtype=torch.bool)
        rule = options.center_threshold, options.nms_kernel, options.strict_top_k
        loops.find_peaks(_array(image), *rule, is_peak.numpy())
        index = is_peak.flatten().nonzero()[:, 0]
        best = center_keys(image.flatten()[index], index).topk(min(len(index), len(row))).values
        row[: len(best)] = best
    return chosen_centers(keys, heat.shape[2], options)


def best_channels(logits: Tensor, grid: Grid) -> Tensor:
    """As `reference.best_channels`: int32 [B, H, W]."""
    channels = torch.empty(len(logits), *grid.size, dtype=torch.int32)
    for image, target in zip(logits, channels, strict=True):
        loops.best_channels(_array(image), *_arrays(grid), target.numpy())
    return channels


def group_pixels(offset: Tensor, points: Tensor, valid: Tensor, is_thing: Tensor) -> Tensor:
    """As `reference.group_pixels`: int32 [B, H, W]."""
    instance = torch.zeros(is_thing.shape, dtype=torch.int32)
    for row, target in enumerate(instance):
        if centers := points[row][valid[row]].float().tolist():
            loops.group_pixels(
                _array(offset[row]), np.array(centers, np.float32), _array(is_thing[row]), target.numpy()
            )
    return instance


def count_votes(instance: Tensor, channels: Tensor, num_centers: int, num_classes: int) -> Tensor:
    """As `reference.count_votes`: int64 [B, K + 1, C]."""
    votes = torch.zeros(len(instance), num_centers + 1, num_classes, dtype=torch.int64)
    for image, own, target in zip(instance, channels, votes, strict=True):
        loops.count_votes(_array(image), _array(own), target.numpy())
    return votes


def probability_sums(logits: Tensor, grid: Grid, instance: Tensor, classes: Tensor) -> Tensor:
    """As `reference.probability_sums`: float64 [B, K]."""
    sums = torch.zeros(classes.shape, dtype=torch.float64)
    for row, target in enumerate(sums):
        inputs = _array(instance[row]), _array(classes[row])
        loops.probability_sums(_array(logits[row]), *_arrays(grid), *inputs, target.numpy())
    return sums


def _array(x: Tensor) -> np.ndarray:
    """A tensor's values, contiguous."""
    return x.detach().contiguous().numpy()


def _arrays(grid: Grid) -> tuple[np.ndarray, ...]:
    """Cells and weights of the rows, then of the columns."""
    rows, columns = grid.rows, grid.columns
    return tuple(_array(x) for x in (rows.low, rows.high, rows.weight, columns.low, columns.high, columns.weight))
