"""The ONNX forms of this project's operators: standard operators only, so that a file runs without this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass, NameFixPass
from onnxscript import BOOL, FLOAT, opset18, opset19

from upsnet.export import onnx_fusion, onnx_grouping, onnx_tiles
from upsnet.export.onnx_fusion import Value, floats, ints
from upsnet.ops.boxes import float32_below

OPSET = 20
"""Of the file. The exporter works at 18; what it uses has the same meaning in both."""
op: Any = opset18


def nms_mask(boxes: Value, iou_threshold: float) -> Value:
    """`upsnet::nms_mask`: boxes [R, M, 4] -> bool [R, M]."""
    shape = op.Slice(op.Shape(boxes), ints(0), ints(2))
    count = op.Gather(shape, ints(1))
    falling = op.Cast(op.Range(op.Squeeze(count), op.Constant(value_int=0), op.Constant(value_int=-1)), to=1)
    scores = op.Unsqueeze(op.Expand(falling, shape), ints(1))
    found = op.NonMaxSuppression(boxes, scores, count, floats(float32_below(iou_threshold)))
    index = op.Gather(found, ints(0, 2), axis=1)
    ones = op.Expand(floats(1.0), op.Slice(op.Shape(index), ints(0), ints(1)))
    return op.Cast(op.ScatterND(op.Expand(floats(0.0), shape), index, ones), to=BOOL.dtype)


def deform_conv2d(
    x: Value, weight: Value, offset: Value, mask: Value, bias: Value,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int,
    groups: int, offset_groups: int, use_mask: bool,
) -> Value:  # fmt: skip
    """`torchvision::deform_conv2d` without a mask (deformable convolution v1)."""
    newer: Any = opset19
    return newer.DeformConv(
        x, weight, offset, bias, strides=[stride_h, stride_w], pads=[pad_h, pad_w, pad_h, pad_w],
        dilations=[dilation_h, dilation_w], group=groups, offset_group=offset_groups,
    )  # fmt: skip


def pool_rois(
    levels: Sequence[Value],
    table: Value,
    boxes: Value,
    which: Value,
    output_size: int,
    strides: Sequence[int],
    convention: str,
) -> Value:
    """`upsnet::pool_rois`: each RoI pools from its own level, and the results are put back in order."""
    flat = op.Reshape(boxes, ints(-1, 4))
    if convention == "inclusive":
        flat = op.Sub(flat, floats(0, 0, 1, 1))
    shape = op.Slice(op.Shape(boxes), ints(0), ints(2))
    images = op.Range(op.Constant(value_int=0), op.Squeeze(op.Gather(shape, ints(0))), op.Constant(value_int=1))
    image = op.Reshape(op.Expand(op.Unsqueeze(images, ints(1)), shape), ints(-1))
    channels = levels[0].shape[1]
    size = op.Concat(op.Shape(image), ints(channels, output_size, output_size), axis=0)
    pooled = op.Expand(floats(0.0), size)
    for number, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        here = op.Equal(op.Reshape(which, ints(-1)), ints(number))
        rows = op.Transpose(op.NonZero(here), perm=[1, 0])
        index = op.Squeeze(rows, ints(1))
        part = op.RoiAlign(
            op.Cast(level, to=FLOAT.dtype),
            op.Gather(flat, index),
            op.Gather(image, index),
            coordinate_transformation_mode="half_pixel" if convention == "aligned" else "output_half_pixel",
            output_height=output_size,
            output_width=output_size,
            sampling_ratio=2,
            spatial_scale=1 / stride,
        )
        pooled = op.ScatterND(pooled, rows, part)
    return pooled


def inline_functions(model: ir.Model) -> None:
    """Replaces the calls of functions by their bodies."""
    for function in (*onnx_tiles.FUNCTIONS, *onnx_grouping.FUNCTIONS):
        body = ir.serde.deserialize_function(function.to_function_proto())
        model.functions[body.identifier()] = body
    InlinePass()(model)
    NameFixPass()(model)
    model.opset_imports.pop("this", None)
    model.opset_imports[""] = OPSET


def translations() -> dict[Any, Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=...)`."""
    ops = torch.ops.upsnet
    return {
        torch.ops.torchvision.deform_conv2d.default: deform_conv2d,
        ops.nms_mask.default: nms_mask,
        ops.pool_rois.default: pool_rois,
        ops.panoptic_segments.default: onnx_fusion.panoptic_segments,
        ops.grouped_segments.default: onnx_grouping.grouped_segments,
    }
