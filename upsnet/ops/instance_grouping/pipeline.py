"""The panoptic map of a batch of Panoptic-DeepLab's maps, on their device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from upsnet.ops.backend import has_kernels
from upsnet.ops.instance_grouping import reference
from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.instance_grouping.placement import Placement
from upsnet.ops.instance_grouping.segments import instance_scores, majority_classes, segment_ids
from upsnet.ops.sizes import Size


def implementation_for(x: Tensor) -> ModuleType:
    """The fastest implementation on the device of `x`: `triton` or `tiles`; `reference` defines both."""
    if has_kernels(x):
        from upsnet.ops.instance_grouping import triton

        return triton
    if x.is_cpu:
        try:
            from upsnet.ops.instance_grouping import tiles
        except ImportError:  # numba is not installed
            return reference
        return tiles
    return reference


class FusedMaps(NamedTuple):
    """What `fuse` gives for a batch of B images, of which the largest results are H and W.

    Attributes:
        segment_ids: int32 [B, H, W]; 0 = void, `i + 1` = row `i` of the table. Pixels beyond an image's result are 0.
        segment_classes: int64 [B, R], semantic channel of each row: S of stuff, then `top_k` of instances.
        segment_scores: float32 [B, R]; 1 for stuff, 0 for rows of instances without pixels.
        semantic: int32 [B, H, W], the argmax of the semantic logits; None unless asked for.
    """

    segment_ids: Tensor
    segment_classes: Tensor
    segment_scores: Tensor
    semantic: Tensor | None


def fuse(
    semantic: Tensor,
    center: Tensor,
    offset: Tensor,
    image_sizes: Sequence[Size],
    output_sizes: Sequence[Size],
    *,
    input_size: Size,
    num_stuff: int,
    options: GroupingOptions,
    align_corners: bool,
    with_semantic: bool = False,
    implementation: ModuleType | None = None,
) -> FusedMaps:
    """Makes the panoptic maps of a batch, in float32, at the size of each result.

    The maps are resized to the result in one bilinear step, so centres, distances and areas are in its pixels. Padding
    has no centre, no vote and no area. Nothing here waits for the host on CUDA; before it is captured in a CUDA graph,
    run it once to compile the kernels.

    Args:
        semantic: float [B, S + T, h, w], logits.
        center: float [B, 1, h, w], heat.
        offset: float [B, 2, h, w], (dy, dx) from each cell to its instance's centre, in cells.
        image_sizes: (H, W) of the valid part of each network input.
        output_sizes: (H, W) of each result.
        input_size: (H, W) of the padded network input.
        num_stuff: S.
        options: see there.
        align_corners: how the maps lie on the input, see `Placement`.
        with_semantic: also give the argmax of the semantic logits.
        implementation: by default the fastest on the device.
    """
    use = implementation or implementation_for(semantic)
    cells = (semantic.shape[2], semantic.shape[3])
    height, width = (max(size[axis] for size in output_sizes) for axis in range(2))
    ids = torch.zeros(len(semantic), height, width, dtype=torch.int32, device=semantic.device)
    semantics = torch.zeros_like(ids) if with_semantic else None
    tables = []
    first = 0
    for (image_size, output_size), members in groupby(zip(image_sizes, output_sizes, strict=True)):
        # A batch in host memory goes image by image, which takes less memory.
        count, rows = len(list(members)), slice(None, output_size[0])
        step = count if semantic.is_cuda else 1
        for part in (slice(i, i + step) for i in range(first, first + count, step)):
            placement = Placement(cells, input_size, image_size, output_size, align_corners)
            logits, heat, shift = (placement.crop(x[part]).float() for x in (semantic, center, offset))
            found = _fuse(logits, heat, shift, placement, num_stuff, options, use)
            tables.append(found[1:3])
            ids[part, rows, : output_size[1]] = found[0]
            if semantics is not None:
                semantics[part, rows, : output_size[1]] = found[3]
        first += count
    classes, scores = (torch.cat(parts) for parts in zip(*tables, strict=True))
    return FusedMaps(ids, classes, scores, semantics)


def _fuse(
    logits: Tensor,
    center: Tensor,
    offset: Tensor,
    placement: Placement,
    num_stuff: int,
    options: GroupingOptions,
    use: ModuleType,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, classes, scores and channels of images of one size."""
    grid, num_classes = placement.grid(logits.device), logits.shape[1]
    points, heat, valid = use.find_centers(use.upsample(center, grid)[:, 0], options)
    channels = use.best_channels(logits, grid)
    pixels = torch.cat([offset[:, i : i + 1] * scale for i, scale in enumerate(placement.pixels_per_cell())], 1)
    instance = use.group_pixels(use.upsample(pixels, grid), points, valid, channels >= num_stuff)
    votes = use.count_votes(instance, channels, options.top_k, num_classes)
    classes = majority_classes(votes, num_stuff)
    sums = None if options.score == "center" else use.probability_sums(logits, grid, instance, classes)
    scores = instance_scores(sums, votes[:, 1:].sum(2), heat, options.score)
    ids = segment_ids(instance, channels, votes, num_stuff, options.stuff_area_limit)
    stuff = torch.arange(num_stuff, device=ids.device).expand(len(ids), -1)
    classes = torch.cat([stuff, classes], 1)
    scores = torch.cat([torch.ones_like(stuff, dtype=torch.float32), scores], 1)
    return ids, classes, scores, channels
