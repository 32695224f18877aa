"""The grouping as one operator of a graph: `upsnet::grouped_segments`.

In a `.pt2` it runs the code of this package. `export.onnx_grouping` has its ONNX form.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.instance_grouping.pipeline import fuse
from upsnet.ops.sizes import Size


def fuse_for_export(
    semantic: Tensor,
    center: Tensor,
    offset: Tensor,
    image_sizes: Tensor,
    canvas: Tensor,
    *,
    input_size: Size,
    num_stuff: int,
    options: GroupingOptions,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`pipeline.fuse` as part of a graph, in which the sizes of images and results are tensors.

    Args:
        semantic, center, offset: as in `fuse`.
        image_sizes: int64 [B, 2], (H, W) of the valid part of each network input.
        canvas: [H, W] of any type: its shape is the size of the maps.
        input_size, num_stuff, options, align_corners: as in `fuse`; `input_size` may be symbolic.

    Returns:
        segment_ids int32 [B, H, W], segment_classes int64 [B, R] and segment_scores float32 [B, R], as in `FusedMaps`.

    Raises:
        ValueError: the options ask for `strict_top_k`.
    """
    if options.strict_top_k:
        raise ValueError("strict_top_k is for tests of parity and cannot be exported")
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.upsnet.grouped_segments(
        semantic,
        center,
        offset,
        image_sizes,
        canvas,
        *input_size,
        num_stuff,
        align_corners,
        options.center_threshold,
        options.nms_kernel,
        options.top_k,
        options.stuff_area_limit,
        options.score,
    )
    return found


@torch.library.custom_op("upsnet::grouped_segments", mutates_args=())
def grouped_segments(
    semantic: Tensor,
    center: Tensor,
    offset: Tensor,
    image_sizes: Tensor,
    canvas: Tensor,
    input_height: int,
    input_width: int,
    num_stuff: int,
    align_corners: bool,
    center_threshold: float,
    nms_kernel: int,
    top_k: int,
    stuff_area_limit: int,
    score: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`fuse_for_export` as an operator; it takes the fields of `GroupingOptions` one by one."""
    options = GroupingOptions(center_threshold, nms_kernel, top_k, stuff_area_limit, cast(Any, score))
    sizes = [(height, width) for height, width in image_sizes.tolist()]
    found = fuse(
        semantic,
        center,
        offset,
        sizes,
        [(canvas.shape[0], canvas.shape[1])] * len(sizes),
        input_size=(input_height, input_width),
        num_stuff=num_stuff,
        options=options,
        align_corners=align_corners,
    )
    return found.segment_ids, found.segment_classes, found.segment_scores


@grouped_segments.register_fake
def _(semantic: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    canvas, num_stuff, top_k = others[3], others[6], others[10]
    table = (semantic.shape[0], num_stuff + top_k)
    return (
        semantic.new_empty(semantic.shape[0], *canvas.shape, dtype=torch.int32),
        semantic.new_empty(table, dtype=torch.int64),
        semantic.new_empty(table, dtype=torch.float32),
    )
