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
DOUBLE, INT32 = 11, 6


def ints(*values: int) -> Value:
    """A constant vector int64."""
    return op.Constant(value=ir.tensor(np.array(values, dtype=np.int64)))


def floats(*values: float) -> Value:
    """A constant vector float32."""
    return op.Constant(value=ir.tensor(np.array(values, dtype=np.float32)))


def _regions(boxes: Value, size: Value, *, is_official: bool) -> tuple[Value, Value, Value]:
    """`slots.place_slots` of boxes [K, 4]: frames, mask regions, semantic regions."""
    limit = op.Gather(size, ints(1, 0, 1, 0))

    def clip(region: Value) -> Value:
        return op.Min(op.Max(region, ints(0)), limit)

    if not is_official:
        region = clip(op.Cast(op.Ceil(op.Sub(boxes, floats(0.5))), to=INT64.dtype))
        return boxes, region, region
    ends = op.Sub(boxes, floats(0, 0, 1, 1))
    whole = op.Cast(ends, to=INT64.dtype)  # towards zero
    low, high = op.Slice(whole, ints(0), ints(2), ints(1)), op.Slice(whole, ints(2), ints(4), ints(1))
    span = op.Max(op.Add(op.Sub(high, low), ints(1)), ints(1))
    frame = op.Cast(op.Concat(low, op.Add(low, span), axis=1), to=FLOAT.dtype)
    mask = op.Concat(low, op.Add(high, ints(1)), axis=1)
    last = op.Cast(op.Round(op.Slice(ends, ints(2), ints(4), ints(1))), to=INT64.dtype)
    semantic = op.Concat(low, op.Add(last, ints(1)), axis=1)
    wrapped = op.Where(op.Less(semantic, ints(0)), op.Add(semantic, limit), semantic)
    return frame, clip(mask), clip(wrapped)


def _resize_scale(network: Value, size: Value, short_side: int, max_side: int) -> Value:
    """Network pixels per pixel of the result, a float64 of float32 precision: by the rule, or as `nearest` guesses."""
    old, new = op.Cast(network, to=DOUBLE), op.Cast(size, to=DOUBLE)
    ratio = op.Div(old, new)
    made = op.Round(op.Mul(op.Unsqueeze(ratio, ints(1)), new))  # [axis whose ratio, axis]
    fits = op.ReduceMin(op.Cast(op.Equal(made, old), to=INT64.dtype), ints(1), keepdims=0)
    short = op.Cast(op.Less(op.Gather(size, ints(1)), op.Gather(size, ints(0))), to=INT64.dtype)
    other = op.Sub(ints(1), short)
    pick = op.Where(op.Greater(op.Gather(fits, short), ints(0)), short, other)
    scale = op.Gather(ratio, pick)
    if short_side:
        limit = op.Constant(value=ir.tensor(np.float64(max_side)))
        longest = op.ReduceMax(new, keepdims=0)
        by_short = op.Div(op.Constant(value=ir.tensor(np.float64(short_side))), op.ReduceMin(new, keepdims=0))
        is_long = op.Greater(op.Round(op.Mul(by_short, longest)), limit)
        exact = op.Where(is_long, op.Div(limit, longest), by_short)
        matches = op.Cast(op.Equal(op.Round(op.Mul(new, exact)), old), to=INT64.dtype)
        scale = op.Where(op.Greater(op.ReduceMin(matches, keepdims=0), op.Constant(value_int=0)), exact, scale)
    return op.Cast(op.Cast(scale, to=FLOAT.dtype), to=DOUBLE)


def _nearest(maps: list[Value], network: Value, size: Value, scale: Value) -> list[Value]:
    """`segment_ids.nearest` of maps [h, w] of size `network`."""
    one = op.Constant(value_int=1)
    for axis in (0, 1):
        new, old = (op.Gather(s, op.Constant(value_int=axis)) for s in (size, network))
        steps = op.Cast(op.Range(op.Constant(value_int=0), new, one), to=DOUBLE)
        index = op.Min(op.Cast(op.Floor(op.Mul(steps, scale)), to=INT64.dtype), op.Sub(old, one))
        maps = [op.Gather(m, index, axis=axis) for m in maps]
    return maps


def _count(values: Value, bins: Value) -> Value:
    """Counts int64 [bins] of values int64 of any shape."""
    flat = op.Reshape(values, ints(-1))
    ones = op.Expand(ints(1), op.Shape(flat))
    return op.ScatterElements(op.Expand(ints(0), bins), flat, ones, reduction="add")


def _segment_ids(
    panoptic: Value, semantic: Value | None, channels: Value, num_stuff: int, stuff_area_limit: int
) -> Value:
    """`segment_ids.segment_ids` of one image: int64 [H, W].

    Args:
        panoptic: channels int64 [H, W]; semantic: the same of the semantic head, for the majority rule.
        channels: int64 [S + K], semantic channel of each panoptic one.
        num_stuff, stuff_area_limit: see there.
    """
    rows = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(channels)), op.Constant(value_int=1))
    owner, stuff = rows, op.Min(channels, ints(num_stuff))
    bins = op.Add(op.Shape(channels), ints(1))
    pixels = op.Slice(_count(panoptic, bins), ints(0), op.Shape(channels))
    if semantic is not None:
        pairs = op.Add(op.Mul(panoptic, ints(num_stuff + 1)), op.Min(semantic, ints(num_stuff)))
        counts = op.Reshape(_count(pairs, op.Mul(bins, ints(num_stuff + 1))), ints(-1, num_stuff + 1))
        counts = op.Slice(op.Slice(counts, ints(0), op.Shape(channels)), ints(0), ints(num_stuff), ints(1))
        most = op.ReduceMax(counts, ints(1), keepdims=0)
        best = op.ArgMax(counts, axis=1, keepdims=0)
        half = op.GreaterOrEqual(op.Mul(most, ints(2)), pixels)
        is_slot = op.GreaterOrEqual(rows, ints(num_stuff))
        joins = op.And(op.And(half, is_slot), op.Not(op.Equal(best, channels)))
        owner = op.Where(joins, best, rows)
        stuff = op.Min(op.Gather(channels, owner), ints(num_stuff))
    zeros = op.Expand(ints(0), ints(num_stuff + 1))
    area = op.Gather(op.ScatterElements(zeros, stuff, pixels, reduction="add"), stuff)
    is_small = op.And(op.Less(stuff, ints(num_stuff)), op.Less(area, ints(stuff_area_limit)))
    ids = op.Where(is_small, ints(0), op.Add(owner, ints(1)))
    return op.Gather(op.Concat(ids, ints(0), axis=0), panoptic)


def _segment_map(
    semantic: Value, masks: Value, boxes: Value, labels: Value, valid: Value, network: Value, size: Value,
    *, num_stuff: int, num_things: int, method: str, overlap: Fraction, limit: int, resize_rule: tuple[int, int],
) -> Value:  # fmt: skip
    """One image: int64 [H, W]."""
    is_official = method == "official"
    canvas, cells = network, op.Slice(op.Shape(semantic), ints(1), ints(3))
    if not is_official:
        canvas, cells = size, op.Div(op.Add(network, ints(3)), ints(4))
        ratio = op.Div(op.Cast(size, to=FLOAT.dtype), op.Cast(network, to=FLOAT.dtype))
        boxes = op.Mul(boxes, op.Gather(ratio, ints(1, 0, 1, 0)))
    frames, mask_regions, semantic_regions = _regions(boxes, canvas, is_official=is_official)
    rivals = op.Mul(labels, ints(0)) if method == "heuristic" else labels
    count = op.ReduceSum(op.Cast(valid, to=INT64.dtype), keepdims=0)
    numbers = (op.Constant(value_int=n) for n in (overlap.numerator, overlap.denominator))
    kept = onnx_tiles.keep(frames, mask_regions, rivals, masks, count, *numbers)
    padding = op.Sub(op.Shape(valid), op.Shape(kept))
    competes = op.Concat(kept, op.Expand(op.Cast(ints(0), to=BOOL.dtype), padding), axis=0)
    if is_official:  # `slots.competing`
        slots = op.Squeeze(op.Shape(valid))
        first = op.Equal(op.Range(op.Constant(value_int=0), slots, op.Constant(value_int=1)), ints(0))
        some = op.ReduceMax(op.Cast(competes, to=INT32), keepdims=0)
        stand_in = op.And(first, op.Equal(some, op.Constant(value=ir.tensor(np.int32(0)))))
        mask_regions = op.Where(op.Unsqueeze(stand_in, ints(1)), ints(0), mask_regions)
        is_none = op.Unsqueeze(op.And(stand_in, op.Not(valid)), ints(1))
        semantic_regions = op.Where(is_none, ints(0), semantic_regions)
        competes = op.Or(competes, stand_in)
    # All thing channels count where a negative logit can be explained; elsewhere one must be there.
    base = [False] * num_stuff + [is_official or n == 0 for n in range(num_things)]
    constants = (
        np.int64(num_stuff), np.array(base), np.bool_(method == "heuristic"), np.bool_(is_official),
        np.float32(0 if is_official else NEVER), np.float32(NEVER if is_official else 0),
    )  # fmt: skip
    channels = op.Add(labels, ints(num_stuff - 1))
    panoptic, semantics = onnx_tiles.fuse(
        semantic, frames, mask_regions, semantic_regions, channels, competes, masks, network, cells, canvas,
        *(op.Constant(value=ir.tensor(np.asarray(c))) for c in constants),
    )  # fmt: skip
    if is_official:
        scale = _resize_scale(network, size, *resize_rule)
        panoptic, semantics = _nearest([panoptic, semantics], network, size, scale)
        channels = op.Where(valid, channels, ints(num_stuff - 1))
    table = op.Concat(ints(*range(num_stuff)), channels, axis=0)
    return _segment_ids(panoptic, semantics if is_official else None, table, num_stuff, limit)


def panoptic_segments(
    semantic: Value, boxes: Value, labels: Value, valid: Value, masks: Value, image_sizes: Value, canvas: Value,
    num_stuff: int, num_things: int, method: str, overlap_threshold: float, stuff_area_limit: int,
    short_side: int, max_side: int,
) -> Value:  # fmt: skip
    """`upsnet::panoptic_segments`, image by image: int32 [B, H, W]."""
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
            resize_rule=(short_side, max_side),
        )  # fmt: skip
        maps.append(op.Unsqueeze(ids, ints(0)))
    return op.Cast(op.Concat(*maps, axis=0), to=INT32)
