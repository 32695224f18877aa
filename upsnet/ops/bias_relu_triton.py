"""What follows a convolution on CUDA in one pass over the features: bias, shortcut and ReLU."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


class _BiasRelu(torch.autograd.Function):
    """As PyTorch's own it keeps the result for the backward pass, and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, shortcut: Tensor | None) -> Tensor:
        y = launch(x, bias, shortcut)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        gradient = torch.ops.aten.threshold_backward(of_y, ctx.saved_tensors[0], 0)
        of_bias = gradient.sum((0, 2, 3), dtype=torch.float32) if ctx.needs_input_grad[1] else None
        return gradient, of_bias, gradient if ctx.needs_input_grad[2] else None


def bias_relu(x: Tensor, bias: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """`relu(x + bias + shortcut)` of [B, C, H, W], float32 [C] and [B, C, H, W]; channels last in memory."""
    result: Tensor = _BiasRelu.apply(x, bias, shortcut)
    return result


def launch(x: Tensor, bias: Tensor, shortcut: Tensor | None) -> Tensor:
    """As `bias_relu`, without its gradient."""
    x = x.contiguous(memory_format=torch.channels_last)
    if shortcut is not None:
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _bias_relu[(triton.cdiv(x.numel(), BLOCK),)](
            x, bias.contiguous(), x if shortcut is None else shortcut, y, x.numel(), x.shape[1],
            WITH_SHORTCUT=shortcut is not None, BLOCK=BLOCK,
        )  # fmt: skip
    return y


@triton.jit
def _bias_relu(x, bias, shortcut, y, count, channels, WITH_SHORTCUT: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    index = start + tl.arange(0, BLOCK)
    channel = ((start % channels).to(tl.int32) + tl.arange(0, BLOCK)) % channels
    value = tl.load(x + index, mask=index < count).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
    if WITH_SHORTCUT:
        value += tl.load(shortcut + index, mask=index < count).to(tl.float32)
    tl.store(y + index, tl.where(value < 0, 0.0, value), mask=index < count)  # what is not a number stays it
