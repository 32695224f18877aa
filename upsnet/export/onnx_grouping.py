"""`upsnet::grouped_segments` in standard ONNX operators, image by image.

The result is made in bands of rows, so that no volume of full-size logits exists; the centres are compared one by one
with the thing pixels of a band. The arithmetic is that of `ops.instance_grouping.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxscript import DOUBLE, FLOAT, INT32, INT64, opset18, script

from upsnet.export.onnx_fusion import Value, floats, ints

op: Any = opset18
INFINITY = float("inf")


@dataclass(frozen=True)
class _Axis:
    """The pixels of the result over the cells along one axis, as `placement.Placement` gives them.

    Attributes:
        low, high: int64 [n]; weight: float32 [n].
        growth: float32 scalar, pixels of the result per cell.
    """

    low: Value
    high: Value
    weight: Value
    growth: Value

    @classmethod
    def of(cls, cells: Value, pixels: Value, image: Value, output: Value, align_corners: bool) -> _Axis:
        """All lengths are int64 [1]: of the maps, the padded input, the image in it, and the result."""
        one, all_cells = ints(1), cells
        if align_corners:
            cells, pixels = (op.Max(op.Sub(n, one), one) for n in (cells, pixels))
            touched = op.Add(_ceil_div(op.Mul(op.Sub(image, one), cells), pixels), one)
        else:
            touched = _ceil_div(op.Mul(image, cells), pixels)
        last = op.Sub(op.Min(touched, all_cells), one)
        unit = op.Mul(op.Mul(output, pixels), ints(2))
        index = op.Range(op.Constant(value_int=0), op.Squeeze(output), op.Constant(value_int=1))
        position = op.Mul(op.Add(op.Mul(index, ints(2)), one), op.Mul(image, cells))
        position = op.Sub(position, op.Mul(output, cells if align_corners else pixels))
        position = op.Min(op.Max(position, ints(0)), op.Mul(last, unit))
        low = op.Div(position, unit)
        rest = op.Cast(op.Sub(position, op.Mul(low, unit)), to=FLOAT.dtype)
        growth = op.Div(_double(op.Mul(pixels, output)), _double(op.Mul(cells, image)))
        return cls(
            low,
            op.Min(op.Add(low, one), last),
            op.Div(rest, op.Cast(unit, to=FLOAT.dtype)),
            op.Squeeze(op.Cast(growth, to=FLOAT.dtype)),
        )


def _ceil_div(a: Value, b: Value) -> Value:
    """Of integers that are not negative."""
    return op.Div(op.Sub(op.Add(a, b), ints(1)), b)


def _double(x: Value) -> Value:
    return op.Cast(x, to=DOUBLE.dtype)


@script()
def _upsample(values, row_low, row_high, row_weight, low, high, weight) -> FLOAT[...]:  # type: ignore[misc, type-arg]
    """`reference.upsample` of one image: [N, h, w] -> [N, H, W]."""
    above = op.Gather(values, row_low, axis=1)
    rows = above + op.Unsqueeze(row_weight, [1]) * (op.Gather(values, row_high, axis=1) - above)
    left = op.Gather(rows, low, axis=2)
    return left + weight * (op.Gather(rows, high, axis=2) - left)


@script()
def _nearest(y, x, centers, count):
    """1 + index of the nearest of `count` centres [K, 2] to the points y and x [n]; 0 without a centre."""
    best = op.Expand(INFINITY, op.Shape(y))
    row = op.Expand(op.Constant(value_int=0), op.Shape(y))
    for k in range(count):
        center = op.Gather(centers, k)
        to_y, to_x = y - op.Gather(center, 0), x - op.Gather(center, 1)
        distance = to_y * to_y + to_x * to_x
        wins = distance < best
        best = op.Where(wins, distance, best)
        row = op.Where(wins, k, row)
    return op.Where(count > 0, row + 1, 0)


@script()
def _group(
    logits, offset, row_low, row_high, row_weight, low, high, weight, centers, count, stuff,
) -> tuple[INT64[...], INT64[...], DOUBLE[...]]:  # type: ignore[misc, type-arg] # fmt: skip
    """Groups the pixels of one image.

    Args:
        logits: float32 [C, h, w].
        offset: float32 [2, h, w], in pixels of the result.
        row_low, row_high, row_weight, low, high, weight: see `_Axis`.
        centers: float32 [K, 2]; count: how many are valid.
        stuff: number of stuff channels.

    Returns:
        codes int64 [H, W] (the channel, or C + k for centre k), votes int64 [(K + 1) C] and sums of the softmax float64
        [K + 1, C] (row 0 of both: pixels without a centre; the sums have things alone).
    """
    classes = op.Gather(op.Shape(logits), 0)
    rows = op.Gather(op.Shape(centers), 0) + 1
    height, width = op.Gather(op.Shape(row_low), 0), op.Gather(op.Shape(low), 0)
    votes = op.Expand(op.Constant(value_int=0), op.Unsqueeze(rows * classes, [0]))
    sums = op.Cast(op.Expand(0.0, op.Concat(op.Unsqueeze(rows, [0]), op.Unsqueeze(classes, [0]), axis=0)), to=11)
    codes = op.Expand(op.Constant(value_int=0), op.Constant(value_ints=[0]))
    for band in range((height + 31) / 32):
        top = band * 32
        first, last = op.Unsqueeze(top, [0]), op.Unsqueeze(op.Min(top + 32, height), [0])
        above, below = op.Slice(row_low, first, last), op.Slice(row_high, first, last)
        between = op.Slice(row_weight, first, last)
        volume = _upsample(logits, above, below, between, low, high, weight)
        channel = op.Reshape(op.ArgMax(volume, axis=0, keepdims=0), [-1])
        things = op.Squeeze(op.NonZero(channel >= stuff), [0])
        shift = op.Reshape(_upsample(offset, above, below, between, low, high, weight), [2, -1])
        shift = op.Gather(shift, things, axis=1)
        y = op.Cast(things / width + top, to=1) + op.Gather(shift, 0)
        x = op.Cast(things - things / width * width, to=1) + op.Gather(shift, 1)
        row = _nearest(y, x, centers, count)
        instance = op.ScatterElements(channel * 0, things, row)
        votes = op.ScatterElements(
            votes, instance * classes + channel, op.Expand(op.Constant(value_int=1), op.Shape(channel)), reduction="add"
        )
        own = op.Gather(op.Reshape(volume, [0, -1]), things, axis=1)
        probability = op.Cast(op.Transpose(op.Softmax(own, axis=0), perm=[1, 0]), to=11)
        # Not ScatterND: onnxruntime runs its additions in parallel, and loses some that meet in one place.
        place = op.Expand(op.Unsqueeze(row, [1]), op.Shape(probability))
        sums = op.ScatterElements(sums, place, probability, axis=0, reduction="add")
        codes = op.Concat(codes, op.Where(instance > 0, classes + instance - 1, channel), axis=0)
    size = op.Concat(op.Unsqueeze(height, [0]), op.Unsqueeze(width, [0]), axis=0)
    return op.Reshape(codes, size), votes, sums


FUNCTIONS: tuple[Any, ...] = (_upsample, _nearest, _group)


def _window_max(values: Value, kernel: int) -> Value:
    """`reference._window_max` of float32 [1, 1, H, W]."""
    reach = kernel // 2
    values, _ = op.MaxPool(values, kernel_shape=[kernel, 1], pads=[reach, 0, reach, 0])
    return _row_max(values, kernel)


def _row_max(values: Value, kernel: int) -> Value:
    found, _ = op.MaxPool(values, kernel_shape=[1, kernel], pads=[0, kernel // 2, 0, kernel // 2])
    return found


def _centers(heat: Value, threshold: float, kernel: int, top_k: int) -> tuple[Value, Value, Value]:
    """`reference.find_centers` of one image, float32 [1, 1, H, W].

    Returns:
        Centres float32 [K, 2], their heat float32 [K], and the number of valid ones, int64 scalar.
    """
    is_above = op.Greater(heat, floats(threshold))
    heat = op.Where(is_above, heat, floats(0))
    is_peak = op.And(is_above, op.Equal(heat, _window_max(heat, kernel)))
    height, width = (op.Squeeze(op.Gather(op.Shape(heat), ints(axis))) for axis in (2, 3))
    ranks = []
    for side, axes in ((height, ints(1)), (width, ints(0))):
        rank = op.Range(side, op.Constant(value_int=0), op.Constant(value_int=-1))
        ranks.append(op.Where(is_peak, op.Unsqueeze(op.Cast(rank, to=FLOAT.dtype), axes), floats(0)))
    is_first = op.And(op.Equal(ranks[0], _window_max(ranks[0], kernel)), op.Equal(ranks[1], _row_max(ranks[1], kernel)))
    index = op.Squeeze(op.NonZero(op.Reshape(op.And(is_peak, is_first), ints(-1))), ints(0))
    # Dummies of heat 0 behind the last pixel, so that there are K to choose from.
    beyond = op.Size(heat)
    value = op.Concat(op.Gather(op.Reshape(heat, ints(-1)), index), floats(*[0] * top_k), axis=0)
    index = op.Concat(index, op.Expand(beyond, ints(top_k)), axis=0)
    value, chosen = op.TopK(value, ints(top_k))
    index, order = op.TopK(op.Gather(index, chosen), ints(top_k), largest=0)
    valid = op.Less(index, beyond)
    index = op.Where(valid, index, ints(0))
    y = op.Div(index, width)
    points = op.Concat(*(op.Unsqueeze(n, ints(1)) for n in (y, op.Sub(index, op.Mul(y, width)))), axis=1)
    count = op.ReduceSum(op.Cast(valid, to=INT64.dtype), keepdims=0)
    return op.Cast(points, to=FLOAT.dtype), op.Gather(value, order), count


def _segments(
    logits: Value, center: Value, offset: Value, axes: tuple[_Axis, _Axis],
    num_stuff: int, num_classes: int, threshold: float, kernel: int, top_k: int, limit: int, score: str,
) -> tuple[Value, Value, Value]:  # fmt: skip
    """One image: ids int64 [H, W], classes int64 [R] and scores float32 [R]."""
    grid = [part for axis in axes for part in (axis.low, axis.high, axis.weight)]
    heat = op.Unsqueeze(_upsample(center, *grid), ints(0))
    centers, heat, count = _centers(heat, threshold, kernel, top_k)
    growth = op.Concat(*(op.Reshape(axis.growth, ints(1, 1, 1)) for axis in axes), axis=0)
    stuff = op.Constant(value_int=num_stuff)
    inputs = [logits, op.Mul(offset, growth), *grid, centers, count, stuff]
    codes, votes, sums = _group(*inputs)
    votes = op.Reshape(votes, ints(top_k + 1, num_classes))
    own_votes = op.Slice(votes, ints(1, num_stuff), ints(top_k + 1, num_classes), ints(0, 1))
    if num_stuff == num_classes:
        classes = ints(*[0] * top_k)
    else:
        classes = op.Add(op.ArgMax(own_votes, axis=1, keepdims=0), stuff)
    area = op.ReduceSum(own_votes, ints(1), keepdims=0)
    found = op.Min(heat, floats(1))
    if score != "center":
        own = op.GatherElements(op.Slice(sums, ints(1), ints(top_k + 1)), op.Unsqueeze(classes, ints(1)), axis=1)
        mean = op.Div(op.Squeeze(own, ints(1)), _double(op.Max(area, ints(1))))
        mean = op.Cast(mean, to=FLOAT.dtype)
        found = mean if score == "semantic" else op.Mul(mean, found)
    is_scored = op.And(op.Greater(area, ints(0)), op.Not(op.IsNaN(found)))
    scores = op.Concat(floats(*[1] * num_stuff), op.Where(is_scored, found, floats(0)), axis=0)
    row = op.Squeeze(op.Slice(votes, ints(0), ints(1)), ints(0))
    is_kept = op.GreaterOrEqual(op.Slice(row, ints(0), ints(num_stuff)), ints(limit))
    of_stuff = op.Where(is_kept, ints(*range(1, num_stuff + 1)), ints(0))
    nothing = ints(*[0] * (num_classes - num_stuff))
    table = op.Concat(of_stuff, nothing, ints(*range(num_stuff + 1, num_stuff + top_k + 1)), axis=0)
    return op.Gather(table, codes), op.Concat(ints(*range(num_stuff)), classes, axis=0), scores


def grouped_segments(
    semantic: Value, center: Value, offset: Value, image_sizes: Value, canvas: Value,
    input_height: Value, input_width: Value, num_stuff: int, align_corners: bool,
    center_threshold: float, nms_kernel: int, top_k: int, stuff_area_limit: int, score: str,
) -> tuple[Value, Value, Value]:  # fmt: skip
    """`upsnet::grouped_segments`: ids int32 [B, H, W], classes int64 [B, R] and scores float32 [B, R]."""
    maps = [op.Cast(x, to=FLOAT.dtype) for x in (semantic, center, offset)]
    inputs = [ints(n) if isinstance(n, int) else op.Reshape(n, ints(1)) for n in (input_height, input_width)]
    results = []
    for image in range(semantic.shape[0]):
        logits, heat, own_offset, size = (
            op.Squeeze(op.Slice(x, ints(image), ints(image + 1)), ints(0)) for x in (*maps, image_sizes)
        )
        rows, columns = (
            _Axis.of(
                op.Gather(op.Shape(logits), ints(axis + 1)),
                inputs[axis],
                op.Gather(size, ints(axis)),
                op.Gather(op.Shape(canvas), ints(axis)),
                align_corners,
            )
            for axis in range(2)
        )
        found = _segments(
            logits, heat, own_offset, (rows, columns), num_stuff, semantic.shape[1],
            center_threshold, nms_kernel, top_k, stuff_area_limit, score,
        )  # fmt: skip
        results.append([op.Unsqueeze(x, ints(0)) for x in found])
    ids, classes, scores = (op.Concat(*parts, axis=0) for parts in zip(*results, strict=True))
    return op.Cast(ids, to=INT32.dtype), classes, scores
