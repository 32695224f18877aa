"""The loops of `tiles`, compiled by numba; each takes one image. Import this module through `tiles` alone."""

import math

import numpy as np
from numba import njit

from upsnet.ops.id_maps_numba import compile_now

ROWS, COLUMNS = 16, 32
"""Pixels of a tile, whose points share a list of centres that may be the nearest."""
NEGLIGIBLE = np.float32(-20)
"""A logit so far below the largest adds nothing to the softmax in float32."""


@njit(inline="always")
def _row_between(values, low, high, weight, row):
    """Writes one row of values [h, w] between two rows of cells."""
    for x in range(len(row)):
        row[x] = values[low, x] + weight * (values[high, x] - values[low, x])


@compile_now("void(f4[:, :, ::1], i8[::1], i8[::1], f4[::1], i8[::1], i8[::1], f4[::1], f4[:, :, ::1])")
def upsample(values, row_low, row_high, row_weight, low, high, weight, result):
    """`reference.upsample`: [N, h, w] -> result [N, H, W]."""
    row = np.empty(values.shape[2], np.float32)
    for n in range(len(values)):
        for y in range(result.shape[1]):
            _row_between(values[n], row_low[y], row_high[y], row_weight[y], row)
            out = result[n, y]
            for x in range(len(out)):
                out[x] = row[low[x]] + weight[x] * (row[high[x]] - row[low[x]])


@compile_now("void(f4[:, :, ::1], i8[::1], i8[::1], f4[::1], i8[::1], i8[::1], f4[::1], i4[:, ::1])")
def best_channels(logits, row_low, row_high, row_weight, low, high, weight, channels):
    """`reference.best_channels`: [C, h, w] -> channels [H, W]."""
    row, best = np.empty(logits.shape[2], np.float32), np.empty(channels.shape[1], np.float32)
    for y in range(len(channels)):
        winner = channels[y]
        best[:] = -np.inf
        winner[:] = 0
        for c in range(len(logits)):
            _row_between(logits[c], row_low[y], row_high[y], row_weight[y], row)
            for x in range(len(best)):
                value = row[low[x]] + weight[x] * (row[high[x]] - row[low[x]])
                wins = value > best[x]
                best[x] = value if wins else best[x]
                winner[x] = c if wins else winner[x]


@njit
def _has_earlier(is_peak, y, x, reach):
    """Whether another peak in the window of a peak comes before it in row-major order."""
    for v in range(max(0, y - reach), y + 1):
        for u in range(max(0, x - reach), x if v == y else min(is_peak.shape[1], x + reach + 1)):
            if is_peak[v, u]:
                return True
    return False


@compile_now("void(f4[:, ::1], f4, i8, b1, b1[:, ::1])")
def find_peaks(heat, threshold, kernel, strict, is_peak):
    """The peaks of `reference.find_centers`: heat [H, W] -> is_peak [H, W]."""
    height, width = heat.shape
    reach = kernel // 2
    for y in range(height):
        for x in range(width):
            value = heat[y, x]
            is_largest = value > threshold
            if is_largest:
                left, right = max(0, x - reach), min(width, x + reach + 1)
                for v in range(max(0, y - reach), min(height, y + reach + 1)):
                    for u in range(left, right):
                        is_largest &= not heat[v, u] > value
                    if not is_largest:
                        break
            is_peak[y, x] = is_largest
    if strict:
        return
    # From the last pixel to the first: a peak that is cleared is before those that have yet to look at it.
    for y in range(height - 1, -1, -1):
        for x in range(width - 1, -1, -1):
            if is_peak[y, x]:
                is_peak[y, x] = not _has_earlier(is_peak, y, x, reach)


@compile_now("void(f4[:, :, ::1], f4[:, ::1], b1[:, ::1], i4[:, ::1])")
def group_pixels(offset, centers, is_thing, instance):
    """`reference.group_pixels` with valid centers [n, 2] alone, n > 0: -> instance [H, W], zeros before.

    A tile compares only centres that can be the nearest to one of its points: those not farther from the box around the
    points than another centre is from the box's farthest corner. Rounding keeps order, so this is exact in float32.
    """
    height, width = instance.shape
    size, count = ROWS * COLUMNS, len(centers)
    where_y, where_x = np.empty(size, np.int32), np.empty(size, np.int32)
    ys, xs, best = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    nearest, least = np.empty(size, np.int32), np.empty(count, np.float32)
    zero = np.float32(0)
    for top in range(0, height, ROWS):
        for left in range(0, width, COLUMNS):
            points = 0
            y1, y2, x1, x2 = np.float32(np.inf), np.float32(-np.inf), np.float32(np.inf), np.float32(-np.inf)
            for v in range(top, min(top + ROWS, height)):
                for u in range(left, min(left + COLUMNS, width)):
                    if is_thing[v, u]:
                        y, x = np.float32(v) + offset[0, v, u], np.float32(u) + offset[1, v, u]
                        y1, y2 = (y if y < y1 else y1), (y if y > y2 else y2)
                        x1, x2 = (x if x < x1 else x1), (x if x > x2 else x2)
                        where_y[points], where_x[points], ys[points], xs[points] = v, u, y, x
                        points += 1
            if points == 0:
                continue
            bound = np.float32(np.inf)
            for k in range(count):
                y, x = centers[k, 0], centers[k, 1]
                near_y, near_x = max(y1 - y, y - y2, zero), max(x1 - x, x - x2, zero)
                far_y, far_x = max(abs(y1 - y), abs(y2 - y)), max(abs(x1 - x), abs(x2 - x))
                least[k] = near_y * near_y + near_x * near_x
                bound = min(bound, far_y * far_y + far_x * far_x)
            best[:points] = np.inf
            nearest[:points] = 0
            for k in range(count):
                if not least[k] > bound:
                    y, x = centers[k, 0], centers[k, 1]
                    for i in range(points):
                        to_y, to_x = ys[i] - y, xs[i] - x
                        distance = to_y * to_y + to_x * to_x
                        wins = distance < best[i]
                        best[i] = distance if wins else best[i]
                        nearest[i] = k if wins else nearest[i]
            for i in range(points):
                instance[where_y[i], where_x[i]] = nearest[i] + 1


@compile_now("void(i4[:, ::1], i4[:, ::1], i8[:, ::1])")
def count_votes(instance, channels, votes):
    """`reference.count_votes`: adds to votes [K + 1, C]."""
    for y in range(len(instance)):
        for x in range(instance.shape[1]):
            votes[instance[y, x], channels[y, x]] += 1


@compile_now("void(f4[:, :, ::1], i8[::1], i8[::1], f4[::1], i8[::1], i8[::1], f4[::1], i4[:, ::1], i8[::1], f8[::1])")
def probability_sums(logits, row_low, row_high, row_weight, low, high, weight, instance, classes, sums):
    """`reference.probability_sums`: adds to sums [K]."""
    count, cells = len(logits), logits.shape[2]
    row, values = np.empty((cells, count), np.float32), np.empty(count, np.float32)
    for y in range(len(instance)):
        if not instance[y].any():
            continue
        above, below, between = row_low[y], row_high[y], row_weight[y]
        for c in range(count):
            for x in range(cells):
                row[x, c] = logits[c, above, x] + between * (logits[c, below, x] - logits[c, above, x])
        for x in range(instance.shape[1]):
            k = instance[y, x] - 1
            if k < 0:
                continue
            a, b = row[low[x]], row[high[x]]
            largest = np.float32(-np.inf)
            for c in range(count):
                values[c] = a[c] + weight[x] * (b[c] - a[c])
                largest = max(largest, values[c])
            total = np.float32(0)
            for c in range(count):
                if not values[c] - largest < NEGLIGIBLE:
                    total += math.exp(values[c] - largest)
            sums[k] += math.exp(values[classes[k]] - largest) / total
