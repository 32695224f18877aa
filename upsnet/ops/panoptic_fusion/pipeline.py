"""The panoptic map of a batch: place the instances, remove what is taken, fuse; on the device of the logits."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from types import ModuleType

import torch
from torch import Tensor

from upsnet.ops.backend import has_kernels
from upsnet.ops.panoptic_fusion import streaming
from upsnet.ops.panoptic_fusion.slots import Grid, Method, place_slots


def implementation_for(x: Tensor) -> ModuleType:
    """The fastest implementation on the device of `x`: `triton` or `streaming`; `reference` defines both."""
    if has_kernels(x):
        from upsnet.ops.panoptic_fusion import triton

        return triton
    return streaming


def overlap_fraction(threshold: float) -> Fraction:
    """The decimal fraction of at most six digits that a float stands for."""
    return Fraction(threshold).limit_denominator(10**6)


def panoptic_map(
    semantic_logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    valid: Tensor,
    mask_logits: Tensor,
    *,
    network_size: tuple[int, int],
    size: tuple[int, int],
    num_stuff: int,
    overlap_threshold: float,
    method: Method = "unified",
    with_semantic: bool = False,
    implementation: ModuleType | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Fuses the semantic logits and the instances of a batch, in float32.

    Nothing here waits for the host on CUDA; before it is captured in a CUDA graph, run it once to compile the kernels.

    Args:
        semantic_logits: float32, bfloat16 or float16 [B, S + T, h, w], at 1/4 of the network's input; S >= 1.
        boxes: float32 [B, K, 4], XYXY in pixels of the result, in order of falling score; K >= 1.
        labels: int64 [B, K], 1..T.
        valid: bool [B, K].
        mask_logits: float [B, K, M, M].
        network_size: (H, W) of the part of the input that the result shows.
        size: (H, W) of the result: any.
        num_stuff: S.
        overlap_threshold: an instance goes if a greater share of its mask is taken by kept ones of its class (in the
            heuristic merge, of any); exact for decimal fractions of six digits.
        method: see `slots.Method`.
        with_semantic: also give the argmax of the semantic logits.
        implementation: by default the fastest on the device.

    Returns:
        int32 [B, H, W]: 0..S-1 stuff, S + k for slot k, S + K unknown; and int32 [B, H, W], semantic channels, or None.
    """
    use = implementation or implementation_for(semantic_logits)
    with torch.autocast(semantic_logits.device.type, enabled=False):
        slots = place_slots(boxes, labels, valid, mask_logits, size)
        rivals = replace(slots, labels=torch.ones_like(labels)) if method == "heuristic" else slots
        keep = use.keep_instances(rivals, size, overlap_fraction(overlap_threshold))
        cells = (semantic_logits.shape[2], semantic_logits.shape[3])
        grid = Grid.of(network_size, size, cells, semantic_logits.device)
        slots = replace(slots, valid=keep)
        return use.fuse(semantic_logits, slots, grid, num_stuff=num_stuff, method=method, with_semantic=with_semantic)
