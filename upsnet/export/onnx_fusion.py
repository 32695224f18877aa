"""`upsnet::panoptic_segments` in standard ONNX operators, around the loops of `onnx_tiles.py`."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import BOOL, FLOAT, INT64, opset18

from upsnet.export import onnx_tiles
from upsnet.ops.panoptic_fusion.slots import ALWAYS, NEVER

Value = Any
op: Any = opset18
INT32 = 6


def ints(*values: int) -> Value:
    """A constant vector int64."""
    return op.Constant(value=ir.tensor(np.array(values, dtype=np.int64)))


def floats(*values: float) -> Value:
    """A constant vector float32."""
    return op.Constant(value=ir.tensor(np.array(values, dtype=np.float32)))


def _regions(boxes: Value, size: Value) -> Value:
    """The regions of `slots.place_slots` of boxes [K, 4]."""
    limit = op.Gather(size, ints(1, 0, 1, 0))
    return op.Min(op.Max(op.Cast(op.Ceil(op.Sub(boxes, floats(0.5))), to=INT64.dtype), ints(0)), limit)


def _count(values: Value, bins: Value) -> Value:
    """Counts int64 [bins] of values int64 of any shape."""
    flat = op.Reshape(values, ints(-1))
    ones = op.Expand(ints(1), op.Shape(flat))
    return op.ScatterElements(op.Expand(ints(0), bins), flat, ones, reduction="add")


def _segment_ids(panoptic: Value, channels: Value, num_stuff: int, stuff_area_limit: int) -> Value:
    """`segment_ids.segment_ids` of one image: int64 [H, W].

    Args:
        panoptic: channels int64 [H, W].
        channels: int64 [S + K], semantic channel of each panoptic one.
        num_stuff, stuff_area_limit: see there.
    """
    rows = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(channels)), op.Constant(value_int=1))
    stuff = op.Min(channels, ints(num_stuff))
    bins = op.Add(op.Shape(channels), ints(1))
    pixels = op.Slice(_count(panoptic, bins), ints(0), op.Shape(channels))
    zeros = op.Expand(ints(0), ints(num_stuff + 1))
    area = op.Gather(op.ScatterElements(zeros, stuff, pixels, reduction="add"), stuff)
    is_small = op.And(op.Less(stuff, ints(num_stuff)), op.Less(area, ints(stuff_area_limit)))
    ids = op.Where(is_small, ints(0), op.Add(rows, ints(1)))
    return op.Gather(op.Concat(ids, ints(0), axis=0), panoptic)


def _segment_map(
    semantic: Value, masks: Value, boxes: Value, labels: Value, valid: Value, network: Value, size: Value,
    *, num_stuff: int, num_things: int, method: str, overlap: Fraction, limit: int,
) -> Value:  # fmt: skip
    """One image: int64 [H, W]."""
    cells = op.Div(op.Add(network, ints(3)), ints(4))
    ratio = op.Div(op.Cast(size, to=FLOAT.dtype), op.Cast(network, to=FLOAT.dtype))
    frames = op.Mul(boxes, op.Gather(ratio, ints(1, 0, 1, 0)))
    regions = _regions(frames, size)
    rivals = op.Mul(labels, ints(0)) if method == "heuristic" else labels
    count = op.ReduceSum(op.Cast(valid, to=INT64.dtype), keepdims=0)
    numbers = (op.Constant(value_int=n) for n in (overlap.numerator, overlap.denominator))
    kept = onnx_tiles.keep(frames, regions, rivals, masks, count, *numbers)
    padding = op.Sub(op.Shape(valid), op.Shape(kept))
    competes = op.Concat(kept, op.Expand(op.Cast(ints(0), to=BOOL.dtype), padding), axis=0)
    # A tile always gathers one thing channel at least, so that its shapes are not empty.
    base = [False] * num_stuff + [n == 0 for n in range(num_things)]
    constants = (np.int64(num_stuff), np.array(base), np.bool_(method == "heuristic"))
    channels = op.Add(labels, ints(num_stuff - 1))
    panoptic = onnx_tiles.fuse(
        semantic, frames, regions, channels, competes, masks, network, cells, size,
        *(op.Constant(value=ir.tensor(np.asarray(c))) for c in constants),
    )  # fmt: skip
    return _segment_ids(panoptic, op.Concat(ints(*range(num_stuff)), channels, axis=0), num_stuff, limit)


def panoptic_segments(
    semantic: Value, boxes: Value, labels: Value, valid: Value, masks: Value, image_sizes: Value, canvas: Value,
    num_stuff: int, num_things: int, method: str, overlap_threshold: float, stuff_area_limit: int,
    short_side: int = 0, max_side: int = 0,
) -> Value:  # fmt: skip
    """`upsnet::panoptic_segments`, image by image: int32 [B, H, W]; the last two arguments are those of older files."""
    assert (NEVER, ALWAYS) == (-10000.0, 10000.0), "written out in onnx_tiles"
    overlap = Fraction(overlap_threshold).limit_denominator(10**6)
    floating = [op.Cast(x, to=FLOAT.dtype) for x in (semantic, masks)]
    maps = []
    for image in range(boxes.shape[0]):
        logits, own_masks, boxes_, labels_, valid_, network = (
            op.Squeeze(op.Slice(x, ints(image), ints(image + 1)), ints(0))
            for x in (*floating, boxes, labels, valid, image_sizes)
        )
        ids = _segment_map(
            logits, own_masks, boxes_, labels_, valid_, network, op.Shape(canvas),
            num_stuff=num_stuff, num_things=num_things, method=method, overlap=overlap, limit=stuff_area_limit,
        )  # fmt: skip
        maps.append(op.Unsqueeze(ids, ints(0)))
    return op.Cast(op.Concat(*maps, axis=0), to=INT32)
