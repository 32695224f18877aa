"""The loops of the panoptic fusion as ONNX functions: mask removal, and the map by tiles as `streaming.py` makes it."""

from __future__ import annotations

from typing import Any

from onnxscript import BOOL, INT64, opset18, script

op: Any = opset18


@script()
def _axis(network, size, cells):
    """`slots.Axis`: the cell below each pixel, and the bilinear weights float32 [size, cells]."""
    unit = 8 * size
    position = (2 * op.Range(0, size, 1) + 1) * network - 4 * size
    position = op.Min(op.Max(position, 0), (cells - 1) * unit)
    low = position / unit
    above = op.Unsqueeze(op.Cast(position - low * unit, to=1) / op.Cast(unit, to=1), [1])
    cell = op.Range(0, cells, 1)
    first = op.Unsqueeze(low, [1])
    second = op.Min(first + 1, cells - 1)
    return low, op.Where(cell == first, 1.0 - above, 0.0) + op.Where(cell == second, above, 0.0)


@script()
def _weights(low, high, first, last, cells):
    """`mask_paste.paste_weights` of boxes from low to high [m] at the centres of pixels first..last - 1: [m, P, M]."""
    low = op.Unsqueeze(low, [1])
    size = op.Max(op.Unsqueeze(high, [1]) - low, 0.001)
    centers = op.Cast(op.Range(first, last, 1), to=1) + 0.5
    top = op.Cast(cells, to=1)
    position = op.Min(op.Max((centers - low) / size * top - 0.5, 0.0), top - 1.0)
    distance = op.Abs(op.Unsqueeze(position, [2]) - op.Cast(op.Range(0, cells, 1), to=1))
    return op.Max(1.0 - distance, 0.0)


@script()
def _paste(frames, masks, x1, y1, x2, y2):
    """Mask logits of boxes at the pixels of a window: [m, y2 - y1, x2 - x1]."""
    cells = op.Squeeze(op.Slice(op.Shape(masks), [1], [2]), [0])
    rows = _weights(op.Gather(frames, 1, axis=1), op.Gather(frames, 3, axis=1), y1, y2, cells)
    columns = _weights(op.Gather(frames, 0, axis=1), op.Gather(frames, 2, axis=1), x1, x2, cells)
    return op.MatMul(op.MatMul(rows, masks), op.Transpose(columns, perm=[0, 2, 1]))


@script()
def _inside(regions, x1, y1, x2, y2):
    """bool [m, y2 - y1, x2 - x1]: which pixels of a window lie in each region."""
    x, y = op.Range(x1, x2, 1), op.Range(y1, y2, 1)
    columns = op.And(x >= op.Slice(regions, [0], [1], [1]), x < op.Slice(regions, [2], [3], [1]))
    rows = op.And(y >= op.Slice(regions, [1], [2], [1]), y < op.Slice(regions, [3], [4], [1]))
    return op.And(op.Unsqueeze(rows, [2]), op.Unsqueeze(columns, [1]))


@script()
def _meets(regions, x1, y1, x2, y2):
    """bool [m]: which regions share a pixel with a window."""
    right = op.Min(op.Gather(regions, 2, axis=1), x2)
    bottom = op.Min(op.Gather(regions, 3, axis=1), y2)
    across = op.Max(op.Gather(regions, 0, axis=1), x1) < right
    return op.And(across, op.Max(op.Gather(regions, 1, axis=1), y1) < bottom)


@script()
def keep(frames, regions, rivals, masks, count, numerator, denominator) -> BOOL[...]:  # type: ignore[misc, type-arg]
    """`reference.keep_instances` of the first `count` slots: bool [count]."""
    kept = op.Expand(op.Cast(0, to=9), op.Constant(value_ints=[0]))
    for k in range(count):
        region = op.Gather(regions, k)
        x1, y1, x2, y2 = op.Gather(region, 0), op.Gather(region, 1), op.Gather(region, 2), op.Gather(region, 3)
        before = op.Unsqueeze(k, [0])
        on = _paste(op.Gather(frames, before), op.Gather(masks, before), x1, y1, x2, y2) > 0.0
        area = op.ReduceSum(op.Cast(on, to=7), keepdims=0)
        earlier = op.Slice(regions, [0], before)
        same = op.And(kept, op.Slice(rivals, [0], before) == op.Gather(rivals, k))
        near = op.Squeeze(op.NonZero(op.And(same, _meets(earlier, x1, y1, x2, y2))), [0])
        if op.Size(near) > 0:
            others = _paste(op.Gather(frames, near), op.Gather(masks, near), x1, y1, x2, y2) > 0.0
            others = op.And(others, _inside(op.Gather(regions, near), x1, y1, x2, y2))
            taken = op.ReduceMax(op.Cast(others, to=6), [0], keepdims=1) > 0
            shared = op.ReduceSum(op.Cast(op.And(on, taken), to=7), keepdims=0)
        else:
            shared = area * 0
        keeps = op.And(area > 0, shared * denominator <= area * numerator)
        kept = op.Concat(kept, op.Unsqueeze(keeps, [0]), axis=0)
    return kept


@script()
def _contenders(corners, stuff, needed):
    """`streaming._contenders`: rows int64 [n] of corners [C, h, w] that can win somewhere, and those `needed`."""
    cells = op.Unsqueeze(corners, [0])
    peak = op.MaxPool(cells, auto_pad="SAME_UPPER", kernel_shape=[2, 2])
    low = 0.0 - op.MaxPool(0.0 - cells, auto_pad="SAME_UPPER", kernel_shape=[2, 2])
    bound = op.ReduceMax(op.Slice(low, [0], op.Unsqueeze(stuff, [0]), [1]), [1], keepdims=1)
    bound = bound - 0.000001 * op.ReduceMax(op.Abs(corners), keepdims=0)
    contends = op.ReduceMax(op.Cast(op.Not(peak < bound), to=6), [0, 2, 3], keepdims=0) > 0
    return op.Squeeze(op.NonZero(op.Or(contends, needed)), [0])


@script()
def _tile(
    semantic, rows, columns, stuff, base, frames, regions, channels, competes, masks,
    heuristic, top, left, bottom, right, x1, y1, x2, y2,
):  # fmt: skip
    """The panoptic channels int64 [h, w] of one tile."""
    # The slots that meet the tile, and always the first slot, so that there is one.
    slots = op.Squeeze(op.Shape(competes), [0])
    matters = op.Or(op.And(competes, _meets(regions, x1, y1, x2, y2)), op.Range(0, slots, 1) == 0)
    who = op.Squeeze(op.NonZero(matters), [0])
    own_channels = op.Gather(channels, who)
    needed = op.ScatterElements(base, own_channels, op.Expand(op.Cast(1, to=9), op.Shape(who)))
    # The semantic logits of the channels that can win.
    corners = op.Slice(semantic, op.Concat(top, left, axis=0), op.Concat(bottom, right, axis=0), [1, 2])
    index = _contenders(corners, stuff, needed)
    x, y = op.Unsqueeze(x1, [0]), op.Unsqueeze(y1, [0])
    across = op.Slice(columns, op.Concat(x, left, axis=0), op.Concat(op.Unsqueeze(x2, [0]), right, axis=0), [0, 1])
    down = op.Slice(rows, op.Concat(y, top, axis=0), op.Concat(op.Unsqueeze(y2, [0]), bottom, axis=0), [0, 1])
    part = op.MatMul(op.Gather(corners, index), op.Transpose(across, perm=[1, 0]))
    volume = op.MatMul(down, part)
    split = op.Unsqueeze(op.ReduceSum(op.Cast(index < stuff, to=7), keepdims=0), [0])
    some = op.Slice(volume, [0], split, [0])
    things = op.ReduceMax(op.Slice(volume, split, op.Shape(index), [0]), [0], keepdims=0)
    best = op.ReduceMax(some, [0], keepdims=0)
    winner = op.Gather(index, op.ArgMax(some, axis=0, keepdims=0))
    # The instances.
    flag = op.Unsqueeze(op.Gather(competes, who), [1, 2])
    inside = _inside(op.Gather(regions, who), x1, y1, x2, y2)
    row = op.ArgMax(op.Cast(op.Unsqueeze(own_channels, [1]) == index, to=6), axis=1, keepdims=0)
    own = op.Where(op.And(inside, op.Not(heuristic)), op.Gather(volume, row), 0.0)
    logits = _paste(op.Gather(frames, who), op.Gather(masks, who), x1, y1, x2, y2)
    logits = op.Where(heuristic, op.Where(logits > 0.0, 10000.0, -10000.0), logits)
    score = op.Where(flag, own + op.Where(inside, logits, -10000.0), -10000.0)
    found = op.ReduceMax(score, [0], keepdims=0)
    slot = op.Gather(who, op.ArgMax(score, axis=0, keepdims=0))
    winner = op.Where(found > best, stuff + slot, winner)
    explained = op.Max(op.ReduceMax(op.Where(flag, own, 0.0), [0], keepdims=0), 0.0)
    return op.Where(things - explained > op.Max(best, found), stuff + slots, winner)


@script()
def fuse(
    semantic, frames, regions, channels, competes, masks, network, cells, size, stuff, base, heuristic,
) -> INT64[...]:  # type: ignore[misc, type-arg] # fmt: skip
    """`reference.fuse` of one image: panoptic channels int64 [H, W]."""
    height, width = op.Gather(size, 0), op.Gather(size, 1)
    row_low, rows = _axis(op.Gather(network, 0), height, op.Gather(cells, 0))
    column_low, columns = _axis(op.Gather(network, 1), width, op.Gather(cells, 1))
    nothing = op.Concat(op.Constant(value_ints=[0]), op.Unsqueeze(width, [0]), axis=0)
    panoptic = op.Expand(op.Constant(value_int=0), nothing)
    for i in range((height + 63) / 64):
        y1 = i * 64
        y2 = op.Min(y1 + 64, height)
        top = op.Gather(row_low, op.Unsqueeze(y1, [0]))
        bottom = op.Min(op.Gather(row_low, op.Unsqueeze(y2 - 1, [0])) + 2, op.Gather(cells, 0))
        empty = op.Concat(op.Unsqueeze(y2 - y1, [0]), op.Constant(value_ints=[0]), axis=0)
        band = op.Expand(op.Constant(value_int=0), empty)
        for j in range((width + 127) / 128):
            x1 = j * 128
            x2 = op.Min(x1 + 128, width)
            left = op.Gather(column_low, op.Unsqueeze(x1, [0]))
            right = op.Min(op.Gather(column_low, op.Unsqueeze(x2 - 1, [0])) + 2, op.Gather(cells, 1))
            tile = _tile(
                semantic, rows, columns, stuff, base, frames, regions, channels, competes, masks,
                heuristic, top, left, bottom, right, x1, y1, x2, y2,
            )  # fmt: skip
            band = op.Concat(band, tile, axis=1)
        panoptic = op.Concat(panoptic, band, axis=0)
    return panoptic


FUNCTIONS: tuple[Any, ...] = (
    _axis, _weights, _paste, _inside, _meets, keep, _contenders, _tile, fuse,
)  # fmt: skip
