"""`match_counts` and the sums of `ImageScores` in one loop over the counts, compiled by numba.

Import this module through `image_scores` alone, whose numpy form is the definition. An image has a few dozen segments:
numpy's calls would take ten times as long as the work in them.
"""

import numpy as np

from upsnet.ops.id_maps_numba import compile_now


@compile_now("Tuple((i2[::1], f8[:, ::1], i4[::1], i4[::1], i4[::1]))(i8[:, :], i8[::1], b1[::1], i8[::1], i8)")
def image_scores(inter, true, is_crowd, predicted, num_classes):
    """The fields of `ImageScores`, in its order, of counts int64 [n + 1, m + 1] and the segments of both sides."""
    rows, columns = inter.shape
    true_area, predicted_area = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    occupied = 0
    for i in range(rows):
        for j in range(columns):
            true_area[i] += inter[i, j]
            predicted_area[j] += inter[i, j]
            occupied += i > 0 and inter[i, j] != 0
    sums = np.zeros((num_classes, 4))
    missed, spurious = ~is_crowd, np.ones(columns, np.bool_)
    cells, pixels, confused = np.empty(occupied, np.int32), np.empty(occupied, np.int32), np.empty(rows, np.int32)
    cell, pairs = 0, 0
    for i in range(1, rows):
        kind = true[i - 1]
        for j in range(columns):
            shared = inter[i, j]
            if shared == 0:
                continue
            other = predicted[j - 1] if j > 0 else num_classes
            cells[cell] = (kind + num_classes * is_crowd[i - 1]) * (num_classes + 1) + other
            pixels[cell] = shared
            cell += 1
            if j == 0 or is_crowd[i - 1]:
                continue
            iou = shared / (true_area[i] + predicted_area[j] - inter[0, j] - shared)
            if iou <= 0.5:
                continue
            confused[pairs] = kind * num_classes + other
            pairs += 1
            if kind == other:
                sums[kind, 0] += iou
                sums[kind, 1] += 1
                missed[i - 1] = spurious[j] = False
    crowd_row = np.zeros(num_classes, np.int64)
    for i in range(1, rows):
        if missed[i - 1]:
            sums[true[i - 1], 3] += 1
        if is_crowd[i - 1]:
            crowd_row[true[i - 1]] = i  # the last one of a class stays
    for j in range(1, columns):
        row = crowd_row[predicted[j - 1]]
        excused = inter[0, j] + (inter[row, j] if row > 0 else 0)
        if spurious[j] and predicted_area[j] > 0 and 2 * excused <= predicted_area[j]:
            sums[predicted[j - 1], 2] += 1
    occurs = np.flatnonzero((sums[:, 1] + sums[:, 2] + sums[:, 3]) > 0)
    return occurs.astype(np.int16), sums[occurs], confused[:pairs].copy(), cells, pixels
