"""Cross-entropy of upsampled logits on CUDA: a program goes down a column of cells and keeps nothing larger."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def loss_and_gradient(logits: Tensor, target: Tensor, factor: int, ignore: int) -> tuple[Tensor, Tensor]:
    """As the operator of `ops.upsampled_cross_entropy`, for even factors; the same bits on every run."""
    logits = logits.contiguous(memory_format=torch.channels_last)
    count, channels, height, width = logits.shape
    gradient = torch.zeros_like(logits)
    total = logits.new_empty(count, width + 1)
    main, rest = _blocks(channels)
    with torch.cuda.device_of(logits):
        _columns[(width + 1, count)](
            logits, target.contiguous(), gradient, total, height, width, channels, ignore,
            FACTOR=factor, MAIN=main, REST=rest, num_warps=max(1, min(8, main * factor // 1024)),
        )  # fmt: skip
    return total.sum(1), gradient


def _blocks(channels: int) -> tuple[int, int]:
    """Powers of two that hold the channels: one, or two where that is much less."""
    whole = max(32, triton.next_power_of_2(channels))
    rest = max(4, triton.next_power_of_2(max(1, channels - whole // 2)))
    return (whole // 2, rest) if whole > 32 and whole // 2 + rest <= 0.75 * whole else (whole, 0)


@triton.jit
def _columns(
    logits, target, gradient, total, height, width, channels, ignore,
    FACTOR: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """The pixels between the centres of two columns of cells: every four cells shape FACTOR x FACTOR of them.

    A cell's gradient comes from four such squares: the upper two reach it in registers, the two columns by atomic
    additions to zero, which give the same whichever is first. One warp holds a row of FACTOR pixels with all channels,
    in two tiles.
    """
    column, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    left, right = tl.maximum(column - 1, 0), tl.minimum(column, width - 1)
    logits += image * height * width * channels
    gradient += image * height * width * channels
    target += image * height * width * FACTOR * FACTOR
    x = column * FACTOR - FACTOR // 2 + tl.arange(0, FACTOR)
    to_right = ((tl.arange(0, FACTOR) + 0.5) / FACTOR)[:, None]
    loss = tl.zeros((FACTOR,), tl.float32)
    channel = tl.arange(0, MAIN)
    top = _between(logits, left, right, to_right, channel, channels)
    chosen, sum_left, sum_right = _nothing(MAIN), _nothing(MAIN), _nothing(MAIN)
    if REST:
        channel_2 = MAIN + tl.arange(0, REST)
        top_2 = _between(logits, left, right, to_right, channel_2, channels)
        chosen_2, sum_left_2, sum_right_2 = _nothing(REST), _nothing(REST), _nothing(REST)
    for row in range(0, height + 1):
        cells = tl.minimum(row, height - 1) * width
        bottom = _between(logits, cells + left, cells + right, to_right, channel, channels)
        up, down = tl.zeros((FACTOR, MAIN), tl.float32), tl.zeros((FACTOR, MAIN), tl.float32)
        if REST:
            bottom_2 = _between(logits, cells + left, cells + right, to_right, channel_2, channels)
            up_2, down_2 = tl.zeros((FACTOR, REST), tl.float32), tl.zeros((FACTOR, REST), tl.float32)
        for line in range(0, FACTOR):
            y = row * FACTOR - FACTOR // 2 + line
            inside = (x >= 0) & (x < width * FACTOR) & (y >= 0) & (y < height * FACTOR)
            label = tl.load(target + y * width * FACTOR + x, mask=inside, other=ignore).to(tl.int32)
            counts = label != ignore
            to_bottom = (line + 0.5) / FACTOR
            value = top * (1 - to_bottom) + bottom * to_bottom
            highest = tl.max(value, 1)
            if REST:
                value_2 = top_2 * (1 - to_bottom) + bottom_2 * to_bottom
                highest = tl.maximum(highest, tl.max(value_2, 1))
                value_2 -= highest[:, None]
                share_2 = tl.exp2(value_2)
            value -= highest[:, None]
            share = tl.exp2(value)
            whole = tl.sum(share, 1)
            if REST:
                whole += tl.sum(share_2, 1)
            loss += tl.where(counts, tl.log2(whole), 0.0)
            scale = tl.where(counts, 1 / whole, 0.0)[:, None]
            label = tl.where(counts, label, -1)[:, None]
            is_label = tl.where(channel[None, :] == label, 1.0, 0.0)
            chosen += tl.sum(is_label * value, 0)
            change = share * scale - is_label
            up += change * (1 - to_bottom)
            down += change * to_bottom
            if REST:
                is_label_2 = tl.where(channel_2[None, :] == label, 1.0, 0.0)
                chosen_2 += tl.sum(is_label_2 * value_2, 0)
                change_2 = share_2 * scale - is_label_2
                up_2 += change_2 * (1 - to_bottom)
                down_2 += change_2 * to_bottom
        top = bottom
        sum_left, sum_right = _add(
            gradient, row, column, height, width, channel, channels, up, down, to_right, sum_left, sum_right
        )
        if REST:
            top_2 = bottom_2
            sum_left_2, sum_right_2 = _add(
                gradient, row, column, height, width, channel_2, channels, up_2, down_2, to_right, sum_left_2,
                sum_right_2,
            )  # fmt: skip
    loss = tl.sum(loss, 0) - tl.sum(chosen, 0)
    if REST:
        loss -= tl.sum(chosen_2, 0)
    tl.store(total + image * (width + 1) + column, loss * 0.6931471805599453)


@triton.jit
def _nothing(SIZE: tl.constexpr):
    return tl.zeros((SIZE,), tl.float32)


@triton.jit
def _between(logits, left, right, to_right, channel, channels):
    """Logits of a row of pixels between two cells, in units of log 2; channels that do not exist have no chance."""
    a = tl.load(logits + left * channels + channel, mask=channel < channels, other=-1e30) * 1.4426950408889634
    b = tl.load(logits + right * channels + channel, mask=channel < channels, other=-1e30) * 1.4426950408889634
    return a[None, :] * (1 - to_right) + b[None, :] * to_right


@triton.jit
def _add(gradient, row, column, height, width, channel, channels, up, down, to_right, sum_left, sum_right):
    """Adds a complete row of cells to the gradient, and returns what the row below has so far."""
    up_left, up_right = tl.sum(up * (1 - to_right), 0), tl.sum(up * to_right, 0)
    down_left, down_right = tl.sum(down * (1 - to_right), 0), tl.sum(down * to_right, 0)
    # The first and the last square reach beyond the cells: all of it belongs to the cells there are.
    done_left = sum_left + up_left + tl.where(row == height, down_left, 0.0)
    done_right = sum_right + up_right + tl.where(row == height, down_right, 0.0)
    both = done_left + done_right
    done_left, done_right = tl.where(column == width, both, done_left), tl.where(column == 0, both, done_right)
    known = (channel < channels) & (row > 0)
    cell = gradient + ((row - 1) * width + column) * channels + channel
    tl.atomic_add(cell - channels, done_left, mask=known & (column > 0))
    tl.atomic_add(cell, done_right, mask=known & (column < width))
    return down_left + tl.where(row == 0, up_left, 0.0), down_right + tl.where(row == 0, up_right, 0.0)
