"""Random choices without a generator: a hash of (image seed, stream, position), equal on every device.

Sampled anchors, RoIs and instances thus depend on the image and the epoch alone: not on the batch an image
stands in, on the rank that holds it, or on what was drawn before.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """Integer hash of 32-bit values held in int64 (two rounds of xor-shift and multiply)."""
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & _MASK
    return (x >> 16) ^ x


def hashed_uniform(seeds: Tensor, stream: int, positions: Tensor) -> Tensor:
    """Pseudo-random float32 [B, M] in 0..1.

    Args:
        seeds: int64 [B], not negative.
        stream: another one for each purpose.
        positions: int64 [M], what is drawn for: one number for each, wherever it stands in the batch.
    """
    key = _mix((seeds & _MASK) ^ _mix((seeds >> 32) + stream * 0x9E37 & _MASK))
    return (_mix(key[:, None] ^ (positions * 0x9E3779B1 & _MASK)) >> 8).float() / 2**24


def sample_ranked(priority: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` entries of highest priority in each row; entries below 0 never count.

    Args:
        priority: float32 [B, M].
        count: slots.

    Returns:
        indices int64 [B, min(count, M)], and bool of the same shape: the slot is taken.
    """
    top = priority.topk(min(count, priority.shape[1]), dim=1)
    return top.indices, top.values >= 0


def gather_rows(values: Tensor, indices: Tensor) -> Tensor:
    """`values[b, indices[b, k]]` for values [B, M, ...] and indices [B, K]."""
    batch = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[batch, indices]
