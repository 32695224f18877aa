"""The ONNX forms of this project's operators: standard operators only, so that a file runs without this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass, NameFixPass
from onnxscript import BOOL, FLOAT, INT64, opset18, opset19, script

OPSET = 20
"""Of the file. The exporter works at 18; what it uses has the same meaning in both."""
Value = Any
op: Any = opset18


def _ints(*values: int) -> Value:
    return op.Constant(value=ir.tensor(np.array(values, dtype=np.int64)))


def _floats(*values: float) -> Value:
    return op.Constant(value=ir.tensor(np.array(values, dtype=np.float32)))


def nms_mask(boxes: Value, iou_threshold: float) -> Value:
    """`upsnet::nms_mask`: boxes [R, M, 4] -> bool [R, M]."""
    shape = op.Slice(op.Shape(boxes), _ints(0), _ints(2))
    count = op.Gather(shape, _ints(1))
    falling = op.Cast(op.Range(op.Squeeze(count), op.Constant(value_int=0), op.Constant(value_int=-1)), to=1)
    scores = op.Unsqueeze(op.Expand(falling, shape), _ints(1))
    found = op.NonMaxSuppression(boxes, scores, count, _floats(iou_threshold))
    index = op.Gather(found, _ints(0, 2), axis=1)
    ones = op.Expand(_floats(1.0), op.Slice(op.Shape(index), _ints(0), _ints(1)))
    return op.Cast(op.ScatterND(op.Expand(_floats(0.0), shape), index, ones), to=BOOL.dtype)


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
    levels: Sequence[Value], boxes: Value, which: Value, output_size: int, strides: Sequence[int], convention: str
) -> Value:
    """`upsnet::pool_rois`: each RoI pools from its own level, and the results are put back in order."""
    flat = op.Reshape(boxes, _ints(-1, 4))
    if convention == "inclusive":
        flat = op.Sub(flat, _floats(0, 0, 1, 1))
    shape = op.Slice(op.Shape(boxes), _ints(0), _ints(2))
    images = op.Range(op.Constant(value_int=0), op.Squeeze(op.Gather(shape, _ints(0))), op.Constant(value_int=1))
    image = op.Reshape(op.Expand(op.Unsqueeze(images, _ints(1)), shape), _ints(-1))
    channels = levels[0].shape[1]
    size = op.Concat(op.Shape(image), _ints(channels, output_size, output_size), axis=0)
    pooled = op.Expand(_floats(0.0), size)
    for number, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        here = op.Equal(op.Reshape(which, _ints(-1)), _ints(number))
        rows = op.Transpose(op.NonZero(here), perm=[1, 0])
        index = op.Squeeze(rows, _ints(1))
        part = op.RoiAlign(
            level,
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


@script()
def _axis(network, size, cells):
    """`slots.Axis.of`: cells below and above each pixel, and the weight of the upper one."""
    unit = 8 * size
    position = (2 * op.Range(0, size, 1) + 1) * network - 4 * size
    position = op.Min(op.Max(position, 0), (cells - 1) * unit)
    low = position / unit
    weight = op.Cast(position - low * unit, to=1) / op.Cast(unit, to=1)
    return low, op.Min(low + 1, cells - 1), weight


@script()
def _resample(x, low, high, weight, left, right, share):
    """Bilinear: [C, h, w] at rows and columns between cells -> [C, H, W]."""
    top = op.Gather(x, low, axis=1)
    weight = op.Unsqueeze(weight, [1])
    rows = top + weight * (op.Gather(x, high, axis=1) - top)
    first = op.Gather(rows, left, axis=2)
    return first + share * (op.Gather(rows, right, axis=2) - first)


@script()
def _weights(low, high, first, last, cells):
    """`mask_paste.paste_weights` at the centres of pixels first..last - 1: [P, M]."""
    size = op.Max(high - low, 0.001)
    centers = op.Cast(op.Range(first, last, 1), to=1) + 0.5
    top = op.Cast(cells, to=1)
    position = op.Min(op.Max((centers - low) / size * top - 0.5, 0.0), top - 1.0)
    distance = op.Abs(op.Unsqueeze(position, [1]) - op.Cast(op.Range(0, cells, 1), to=1))
    return op.Max(1.0 - distance, 0.0)


@script()
def _mask(box, mask, x1, y1, x2, y2):
    """Mask logits of a box at the pixels of a region: [y2 - y1, x2 - x1]."""
    cells = op.Squeeze(op.Slice(op.Shape(mask), [0], [1]), [0])
    rows = _weights(op.Gather(box, 1), op.Gather(box, 3), y1, y2, cells)
    columns = _weights(op.Gather(box, 0), op.Gather(box, 2), x1, x2, cells)
    return op.MatMul(op.MatMul(rows, mask), op.Transpose(columns, perm=[1, 0]))


@script()
def _window(x, x1, y1, x2, y2):
    """Part [y2 - y1, x2 - x1] of a plane."""
    rows = op.Slice(x, op.Unsqueeze(y1, [0]), op.Unsqueeze(y2, [0]), [0])
    return op.Slice(rows, op.Unsqueeze(x1, [0]), op.Unsqueeze(x2, [0]), [1])


@script()
def _put(x, part, x1, y1, x2, y2):
    """A plane with a window replaced."""
    shape = op.Shape(x)
    height, width = op.Slice(shape, [0], [1]), op.Slice(shape, [1], [2])
    top, bottom = op.Unsqueeze(y1, [0]), op.Unsqueeze(y2, [0])
    band = op.Slice(x, top, bottom, [0])
    before = op.Slice(band, [0], op.Unsqueeze(x1, [0]), [1])
    after = op.Slice(band, op.Unsqueeze(x2, [0]), width, [1])
    middle = op.Concat(before, part, after, axis=1)
    return op.Concat(op.Slice(x, [0], top, [0]), middle, op.Slice(x, bottom, height, [0]), axis=0)


@script()
def _fuse(
    semantic, boxes, regions, labels, rivals, count, masks,
    network, size, stuff, numerator, denominator, heuristic,
) -> INT64[...]:  # type: ignore[misc, type-arg] # fmt: skip
    """`reference.fuse` and `keep_instances` of one image, over the first `count` slots: channels int64 [H, W]."""
    height, width, shape = op.Gather(size, 0), op.Gather(size, 1), op.Shape(semantic)
    low, high, weight = _axis(op.Gather(network, 0), height, op.Gather(shape, 1))
    left, right, share = _axis(op.Gather(network, 1), width, op.Gather(shape, 2))
    split = op.Unsqueeze(stuff, [0])
    nothing = op.Concat(op.Constant(value_ints=[0]), op.Unsqueeze(width, [0]), axis=0)
    best = op.Expand(0.0, nothing)
    things = op.Expand(0.0, nothing)
    winner = op.Expand(op.Constant(value_int=0), nothing)
    for i in range((height + 31) / 32):
        first = op.Unsqueeze(i * 32, [0])
        last = op.Min(first + 32, height)
        plane = _resample(
            semantic, op.Slice(low, first, last), op.Slice(high, first, last), op.Slice(weight, first, last),
            left, right, share,
        )  # fmt: skip
        some = op.Slice(plane, [0], split, [0])
        best = op.Concat(best, op.ReduceMax(some, [0], keepdims=0), axis=0)
        winner = op.Concat(winner, op.ArgMax(some, axis=0, keepdims=0), axis=0)
        others = op.Slice(plane, split, op.Slice(shape, [0], [1]), [0])
        things = op.Concat(things, op.ReduceMax(others, [0], keepdims=0), axis=0)
    explained = things * 0.0
    kept = op.Expand(op.Cast(0, to=9), op.Constant(value_ints=[0]))
    for k in range(count):
        box = op.Gather(boxes, k)
        region = op.Gather(regions, k)
        x1, y1, x2, y2 = op.Gather(region, 0), op.Gather(region, 1), op.Gather(region, 2), op.Gather(region, 3)
        logits = _mask(box, op.Gather(masks, k), x1, y1, x2, y2)
        on = logits > 0.0
        area = op.ReduceSum(op.Cast(on, to=7), keepdims=0)
        taken = op.And(on, op.Not(on))
        for j in range(k):
            other = op.Gather(regions, j)
            u1, v1 = op.Max(x1, op.Gather(other, 0)), op.Max(y1, op.Gather(other, 1))
            u2, v2 = op.Min(x2, op.Gather(other, 2)), op.Min(y2, op.Gather(other, 3))
            same = op.And(op.Gather(kept, j), op.Gather(rivals, j) == op.Gather(rivals, k))
            meets = op.And(same, op.And(u1 < u2, v1 < v2))
            if meets:
                part = _mask(op.Gather(boxes, j), op.Gather(masks, j), u1, v1, u2, v2) > 0.0
                margins = op.Concat(
                    op.Unsqueeze(v1 - y1, [0]), op.Unsqueeze(u1 - x1, [0]),
                    op.Unsqueeze(y2 - v2, [0]), op.Unsqueeze(x2 - u2, [0]), axis=0,
                )  # fmt: skip
                union = op.Or(taken, op.Cast(op.Pad(op.Cast(part, to=1), margins), to=9))
            else:
                union = op.Identity(taken)
            taken = op.Identity(union)
        shared = op.ReduceSum(op.Cast(op.And(on, taken), to=7), keepdims=0)
        keeps = op.And(area > 0, shared * denominator <= area * numerator)
        kept = op.Concat(kept, op.Unsqueeze(keeps, [0]), axis=0)
        if keeps:
            rows, columns = op.Unsqueeze(y1, [0]), op.Unsqueeze(x1, [0])
            row_end, column_end = op.Unsqueeze(y2, [0]), op.Unsqueeze(x2, [0])
            channel = op.Unsqueeze(stuff + op.Gather(labels, k) - 1, [0])
            own_plane = _resample(
                op.Gather(semantic, channel, axis=0),
                op.Slice(low, rows, row_end), op.Slice(high, rows, row_end), op.Slice(weight, rows, row_end),
                op.Slice(left, columns, column_end), op.Slice(right, columns, column_end),
                op.Slice(share, columns, column_end),
            )  # fmt: skip
            own = op.Squeeze(own_plane, [0])
            score = op.Where(heuristic, op.Where(on, 10000.0, -10000.0), own + logits)
            was, who = _window(best, x1, y1, x2, y2), _window(winner, x1, y1, x2, y2)
            told = _window(explained, x1, y1, x2, y2)
            best_now = _put(best, op.Max(was, score), x1, y1, x2, y2)
            winner_now = _put(winner, op.Where(score > was, stuff + k, who), x1, y1, x2, y2)
            explained_now = _put(explained, op.Where(heuristic, told, op.Max(told, own)), x1, y1, x2, y2)
        else:
            best_now, winner_now, explained_now = op.Identity(best), op.Identity(winner), op.Identity(explained)
        best = op.Identity(best_now)
        winner = op.Identity(winner_now)
        explained = op.Identity(explained_now)
    slots = op.Squeeze(op.Slice(op.Shape(boxes), [0], [1]), [0])
    return op.Where(things - explained > best, stuff + slots, winner)


def panoptic_segments(
    semantic: Value, boxes: Value, labels: Value, valid: Value, masks: Value, image_sizes: Value, canvas: Value,
    num_stuff: int, num_things: int, method: str, overlap_threshold: float, stuff_area_limit: int,
) -> Value:  # fmt: skip
    """`upsnet::panoptic_segments`, image by image: int32 [B, H, W]."""
    rows = op.Add(op.Gather(op.Shape(boxes), _ints(1)), _ints(num_stuff))  # of the table
    overlap = Fraction(overlap_threshold).limit_denominator(10**6)
    size = op.Shape(canvas)
    maps = []
    for image in range(boxes.shape[0]):
        network = op.Gather(image_sizes, op.Constant(value_int=image))
        ratio = op.Div(op.Cast(size, to=FLOAT.dtype), op.Cast(network, to=FLOAT.dtype))
        factors = op.Gather(ratio, _ints(1, 0, 1, 0))
        placed = op.Mul(op.Gather(boxes, op.Constant(value_int=image)), factors)
        limit = op.Gather(size, _ints(1, 0, 1, 0))
        edges = op.Cast(op.Ceil(op.Sub(placed, _floats(0.5))), to=INT64.dtype)
        regions = op.Min(op.Max(edges, _ints(0)), limit)
        own_labels = op.Gather(labels, op.Constant(value_int=image))
        rivals = op.Mul(own_labels, _ints(0)) if method == "heuristic" else own_labels
        count = op.ReduceSum(op.Cast(op.Gather(valid, op.Constant(value_int=image)), to=INT64.dtype), keepdims=0)
        cells = op.Div(op.Add(network, _ints(3)), _ints(4))
        logits = op.Gather(op.Cast(semantic, to=FLOAT.dtype), op.Constant(value_int=image))
        logits = op.Slice(logits, _ints(0, 0), cells, _ints(1, 2))
        channels = _fuse(
            logits, placed, regions, own_labels, rivals, count,
            op.Gather(op.Cast(masks, to=FLOAT.dtype), op.Constant(value_int=image)), network, size,
            op.Constant(value_int=num_stuff), op.Constant(value_int=overlap.numerator),
            op.Constant(value_int=overlap.denominator),
            op.Constant(value=ir.tensor(np.array(method == "heuristic"))),
        )  # fmt: skip
        flat = op.Reshape(channels, _ints(-1))
        zeros = op.Expand(_ints(0), op.Add(rows, _ints(1)))
        pixels = op.ScatterElements(zeros, flat, op.Expand(_ints(1), op.Shape(flat)), reduction="add")
        limits = op.ScatterElements(zeros, _ints(*range(num_stuff)), _ints(*[stuff_area_limit] * num_stuff))
        one = op.Constant(value_int=1)
        numbers = op.Concat(op.Range(one, op.Add(op.Squeeze(rows), one), one), _ints(0), axis=0)
        ids = op.Where(op.GreaterOrEqual(pixels, limits), numbers, _ints(0))
        maps.append(op.Unsqueeze(op.Gather(ids, channels), _ints(0)))
    return op.Cast(op.Concat(*maps, axis=0), to=6)


def inline_functions(model: ir.Model) -> None:
    """Replaces the calls of the functions above by their bodies."""
    for function in (_axis, _resample, _weights, _mask, _window, _put):
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
        ops.panoptic_segments.default: panoptic_segments,
    }
