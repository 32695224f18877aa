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
    block = max(16, triton.next_power_of_2(channels))
    with torch.cuda.device_of(logits):
        _columns[(width + 1, count)](
            logits, target.contiguous(), gradient, total, height, width, channels, ignore,
            FACTOR=factor, CHANNELS=block, num_warps=max(1, min(8, block * factor**2 // 1024)),
        )  # fmt: skip
    return total.sum(1), gradient


@triton.jit
def _columns(
    logits, target, gradient, total, height, width, channels, ignore, FACTOR: tl.constexpr, CHANNELS: tl.constexpr
):
    """The pixels between the centres of two columns of cells: every four cells shape FACTOR x FACTOR of them.

    A cell's gradient comes from four such squares: the upper two reach it in registers, the two columns by atomic
    additions to zero, which give the same whichever is first.
    """
    column, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    left, right = tl.maximum(column - 1, 0), tl.minimum(column, width - 1)
    logits += image * height * width * channels
    gradient += image * height * width * channels
    target += image * height * width * FACTOR * FACTOR
    channel, pixel = tl.arange(0, CHANNELS), tl.arange(0, FACTOR * FACTOR)
    known = channel < channels
    known_left, known_right = known & (column > 0), known & (column < width)
    x = column * FACTOR - FACTOR // 2 + pixel % FACTOR
    to_right = ((pixel % FACTOR + 0.5) / FACTOR)[:, None]
    to_bottom = ((pixel // FACTOR + 0.5) / FACTOR)[:, None]
    top_left = tl.load(logits + left * channels + channel, mask=known, other=float("-inf"))
    top_right = tl.load(logits + right * channels + channel, mask=known, other=float("-inf"))
    sum_left, sum_right = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    loss = tl.zeros((FACTOR * FACTOR,), tl.float32)
    for row in range(0, height + 1):
        below = logits + tl.minimum(row, height - 1) * width * channels + channel
        bottom_left = tl.load(below + left * channels, mask=known, other=float("-inf"))
        bottom_right = tl.load(below + right * channels, mask=known, other=float("-inf"))
        top = top_left[None, :] * (1 - to_right) + top_right[None, :] * to_right
        bottom = bottom_left[None, :] * (1 - to_right) + bottom_right[None, :] * to_right
        value = top * (1 - to_bottom) + bottom * to_bottom

        y = row * FACTOR - FACTOR // 2 + pixel // FACTOR
        inside = (x >= 0) & (x < width * FACTOR) & (y >= 0) & (y < height * FACTOR)
        label = tl.load(target + y * width * FACTOR + x, mask=inside, other=ignore).to(tl.int32)
        counts = label != ignore
        is_label = channel[None, :] == label[:, None]
        highest = tl.max(value, 1)
        share = tl.exp(value - highest[:, None])
        whole = tl.sum(share, 1)
        wanted = tl.sum(tl.where(is_label, value, 0.0), 1)
        loss += tl.where(counts, highest + tl.log(whole) - wanted, 0.0)
        change = tl.where(counts[:, None], share / whole[:, None] - is_label.to(tl.float32), 0.0)

        up, down = change * (1 - to_bottom), change * to_bottom
        up_left, up_right = tl.sum(up * (1 - to_right), 0), tl.sum(up * to_right, 0)
        down_left, down_right = tl.sum(down * (1 - to_right), 0), tl.sum(down * to_right, 0)
        # The row of cells above is complete. The first and the last square reach beyond the cells: all to the same.
        is_last = row == height
        done_left = sum_left + up_left + tl.where(is_last, down_left, 0.0)
        done_right = sum_right + up_right + tl.where(is_last, down_right, 0.0)
        both = done_left + done_right
        above = gradient + (row - 1) * width * channels + channel
        tl.atomic_add(above + left * channels, tl.where(column == width, both, done_left), mask=known_left & (row > 0))
        tl.atomic_add(above + right * channels, tl.where(column == 0, both, done_right), mask=known_right & (row > 0))
        sum_left = down_left + tl.where(row == 0, up_left, 0.0)
        sum_right = down_right + tl.where(row == 0, up_right, 0.0)
        top_left, top_right = bottom_left, bottom_right
    tl.store(total + image * (width + 1) + column, tl.sum(loss, 0))
