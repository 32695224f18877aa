"""The steps of `reference` on CUDA: no host round trip, no volume of logits or distances.

A program takes one tile of the result and keeps it in registers: it upsamples the channels one by one, or compares the
centres one by one. With `TRITON_INTERPRET=1` all of it runs on the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from upsnet.ops.instance_grouping.reference import count_votes, find_centers, upsample
from upsnet.ops.panoptic_fusion.slots import Grid
from upsnet.ops.panoptic_fusion.triton import best_channel, bilinear

__all__ = ["best_channels", "count_votes", "find_centers", "group_pixels", "probability_sums", "upsample"]

TILE = (16, 32)
LANES = 32
"""Sums kept side by side, so that the pixels of one instance do not queue for one sum."""
ONE = 2**30
"""The probability 1 in sums, which are integers so that they do not depend on the order of the pixels."""


def best_channels(logits: Tensor, grid: Grid) -> Tensor:
    """As `reference.best_channels`: int32 [B, H, W]."""
    channels = torch.empty(len(logits), *grid.size, dtype=torch.int32, device=logits.device)
    with torch.cuda.device_of(channels):
        _best_channels[_tiles(channels)](
            logits, *logits.stride(), *logits.shape[2:], *_axes(grid), channels, *grid.size, logits.shape[1], *TILE,
            enable_fp_fusion=False,
        )  # fmt: skip
    return channels


def group_pixels(offset: Tensor, points: Tensor, valid: Tensor, is_thing: Tensor) -> Tensor:
    """As `reference.group_pixels`: int32 [B, H, W]."""
    instance = torch.empty(is_thing.shape, dtype=torch.int32, device=offset.device)
    centers, counts = points.float().contiguous(), valid.sum(1, dtype=torch.int32)
    with torch.cuda.device_of(instance):
        _group_pixels[_tiles(instance)](
            offset.contiguous(), centers, counts, is_thing.to(torch.int8).contiguous(), instance,
            *instance.shape[1:], centers.shape[1], *TILE, enable_fp_fusion=False,
        )  # fmt: skip
    return instance


def probability_sums(logits: Tensor, grid: Grid, instance: Tensor, classes: Tensor) -> Tensor:
    """As `reference.probability_sums`: float64 [B, K]; the same on every run."""
    batch, count = classes.shape
    sums = torch.zeros(batch, LANES, count + 1, dtype=torch.int64, device=logits.device)
    with torch.cuda.device_of(sums):
        _probability_sums[_tiles(instance)](
            logits, *logits.stride(), *logits.shape[2:], *_axes(grid), instance.contiguous(), classes.contiguous(),
            sums, *grid.size, logits.shape[1], count, LANES, ONE, *TILE, enable_fp_fusion=False,
        )  # fmt: skip
    return sums.sum(1)[:, 1:].double() / ONE


def _tiles(maps: Tensor) -> tuple[int, int, int]:
    """The programs for maps [B, H, W]."""
    batch, height, width = maps.shape
    return triton.cdiv(width, TILE[1]), triton.cdiv(height, TILE[0]), batch


def _axes(grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return grid.rows.low, grid.rows.weight, grid.columns.low, grid.columns.weight


@triton.jit
def _pixels(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of the program's tile, and which of its pixels lie in the result."""
    y, x = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    return y, x, (y < height)[:, None] & (x < width)[None, :]


@triton.jit
def _cells(low, weight, position, size, cells):
    """Cells on either side of pixels, and the weight of the second; pixels beyond the edge repeat the last one."""
    position = tl.minimum(position, size - 1)
    first = tl.load(low + position).to(tl.int32)
    return first, tl.minimum(first + 1, cells - 1), tl.load(weight + position)


@triton.jit
def _best_channels(
    logits, image_stride, channel_stride, row_stride, column_stride, cell_rows, cell_columns,
    rows_low, rows_weight, columns_low, columns_weight, channels, height, width, num_classes,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    y, x, inside = _pixels(height, width, ROWS, COLUMNS)
    row_low, row_high, row_weight = _cells(rows_low, rows_weight, y, height, cell_rows)
    low, high, weight = _cells(columns_low, columns_weight, x, width, cell_columns)
    image = tl.program_id(2).to(tl.int64)
    _, winner = best_channel(
        logits + image * image_stride, 0, num_classes, channel_stride, row_stride, column_stride,
        row_low, row_high, row_weight, low, high, weight,
    )  # fmt: skip
    tl.store(channels + (image * height + y[:, None]) * width + x[None, :], winner, mask=inside)


@triton.jit
def _group_pixels(
    offset, centers, counts, is_thing, instance, height, width, num_centers,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    y, x, inside = _pixels(height, width, ROWS, COLUMNS)
    image = tl.program_id(2).to(tl.int64)
    pixel = (image * height + y[:, None]) * width + x[None, :]
    thing = tl.load(is_thing + pixel, mask=inside, other=0) != 0
    offset_y, offset_x = offset + image * height * width + pixel, offset + (image + 1) * height * width + pixel
    point_y = tl.load(offset_y, mask=thing, other=0) + y[:, None].to(tl.float32)
    point_x = tl.load(offset_x, mask=thing, other=0) + x[None, :].to(tl.float32)
    count = tl.load(counts + image)
    # A tile without a thing compares nothing.
    count = tl.where(tl.sum(thing.to(tl.int32)) > 0, count, 0)
    centers += image * num_centers * 2
    best = tl.full((ROWS, COLUMNS), float("inf"), tl.float32)
    nearest = tl.zeros((ROWS, COLUMNS), tl.int32)
    for k in range(0, count):
        to_y, to_x = point_y - tl.load(centers + 2 * k), point_x - tl.load(centers + 2 * k + 1)
        distance = to_y * to_y + to_x * to_x
        nearest = tl.where(distance < best, k, nearest)
        best = tl.minimum(best, distance)
    tl.store(instance + pixel, tl.where(thing & (count > 0), nearest + 1, 0), mask=inside)


@triton.jit
def _probability_sums(
    logits, image_stride, channel_stride, row_stride, column_stride, cell_rows, cell_columns,
    rows_low, rows_weight, columns_low, columns_weight, instance, classes, sums, height, width, num_classes, count,
    LANES: tl.constexpr, ONE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    y, x, inside = _pixels(height, width, ROWS, COLUMNS)
    image = tl.program_id(2).to(tl.int64)
    row = tl.load(instance + (image * height + y[:, None]) * width + x[None, :], mask=inside, other=0)
    if tl.sum(row) > 0:
        row_low, row_high, row_weight = _cells(rows_low, rows_weight, y, height, cell_rows)
        low, high, weight = _cells(columns_low, columns_weight, x, width, cell_columns)
        logits += image * image_stride
        channel = tl.load(classes + image * count + row - 1, mask=row > 0, other=0)
        best, _ = best_channel(
            logits, 0, num_classes, channel_stride, row_stride, column_stride,
            row_low, row_high, row_weight, low, high, weight,
        )  # fmt: skip
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        own = tl.zeros((ROWS, COLUMNS), tl.float32)
        for c in range(0, num_classes):
            plane = logits + c * channel_stride
            value = bilinear(plane, row_stride, column_stride, row_low, row_high, row_weight, low, high, weight)
            value = tl.exp(value - best)
            total += value
            own = tl.where(channel == c, value, own)
        lane = (tl.program_id(0) + tl.program_id(1)) % LANES
        probability = (own / total * ONE + 0.5).to(tl.int64)
        tl.atomic_add(sums + (image * LANES + lane) * (count + 1) + row, probability, mask=row > 0)
