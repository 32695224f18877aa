"""`match_counts`, `find_causes` and the fields of `ImageScores` in loops over the counts, compiled by numba.

Import this module through `image_scores` alone, whose numpy form is the definition. An image has a few dozen segments:
numpy's calls would take ten times as long as the work in them.
"""

import numpy as np

from upsnet.ops.id_maps_numba import compile_now

WRONG_CLASS, SPLIT, MERGE, POOR_MASK, VOID, MISSED, SPURIOUS = range(7)
NO_ERROR = -1


@compile_now("Tuple((i1[::1], i1[::1]))(i8[:, :], i8[::1], b1[::1], i8[::1], i8[::1], i8[::1], b1[::1], b1[::1])")
def error_causes(inter, true, is_crowd, predicted, true_area, predicted_area, missed, unmatched):
    """The cause that each true and each predicted segment has if it is an error, int8 [n + 1] and [m + 1].

    Args:
        inter: counts int64 [n + 1, m + 1]; true, is_crowd, predicted: the segments.
        true_area, predicted_area: sums of the counts over columns and rows.
        missed: [n], true segments without a match; unmatched: [m + 1], predictions without one.
    """
    rows, columns = inter.shape
    of_true, of_predicted = np.full(rows, MISSED, np.int8), np.full(columns, SPURIOUS, np.int8)
    pieces, in_pieces, covered = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    for i in range(1, rows):
        for j in range(1, columns):
            shared = inter[i, j]
            if shared > 0 and not is_crowd[i - 1] and true[i - 1] == predicted[j - 1]:
                if 2 * shared > predicted_area[j] - inter[0, j]:
                    pieces[i] += 1
                    in_pieces[i] += shared
                covered[j] += 2 * shared > true_area[i]
    for i in range(1, rows):
        if is_crowd[i - 1]:
            continue
        is_split = pieces[i] > 1 and 2 * in_pieces[i] > true_area[i]
        if 2 * inter[i, 0] > true_area[i]:
            of_true[i] = VOID
        if is_split:
            of_true[i] = SPLIT
        for j in range(1, columns):
            shared = inter[i, j]
            if shared == 0:
                continue
            iou = shared / (true_area[i] + predicted_area[j] - inter[0, j] - shared)
            if true[i - 1] != predicted[j - 1]:
                if iou > 0.5:
                    of_true[i], of_predicted[j] = WRONG_CLASS, WRONG_CLASS
                continue
            if is_split and 2 * shared > predicted_area[j] - inter[0, j]:
                of_predicted[j] = min(of_predicted[j], SPLIT)
            if covered[j] > 1 and 2 * shared > true_area[i]:
                of_true[i] = min(of_true[i], MERGE)
            if missed[i - 1] and unmatched[j] and iou >= 0.1:
                of_true[i], of_predicted[j] = min(of_true[i], POOR_MASK), min(of_predicted[j], POOR_MASK)
    for j in range(1, columns):
        if covered[j] > 1:
            of_predicted[j] = min(of_predicted[j], MERGE)
    return of_true, of_predicted


@compile_now(
    "Tuple((i2[::1], f8[:, ::1], i4[::1], i4[::1], i4[::1], i2[::1], i4[::1], f8[::1], i1[::1], i8))"
    "(i8[:, :], i8[::1], b1[::1], i8[::1], i8)"
)
def image_scores(inter, true, is_crowd, predicted, num_classes):
    """The fields of `ImageScores` and `ScoredSegments`, in their order.

    Args:
        inter: counts int64 [n + 1, m + 1]; true, is_crowd, predicted: the segments of both sides.
        num_classes: C.
    """
    rows, columns = inter.shape
    true_area, predicted_area = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    occupied = 0
    for i in range(rows):
        for j in range(columns):
            true_area[i] += inter[i, j]
            predicted_area[j] += inter[i, j]
            occupied += i > 0 and inter[i, j] != 0
    sums, ious = np.zeros((num_classes, 4)), np.zeros(rows)
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
                ious[i] = iou
                missed[i - 1] = spurious[j] = False
    of_true, of_predicted = error_causes(inter, true, is_crowd, predicted, true_area, predicted_area, missed, spurious)
    classes, areas = np.empty(rows + columns, np.int16), np.empty(rows + columns, np.int32)
    matched_ious, causes = np.zeros(rows + columns), np.empty(rows + columns, np.int8)
    count = 0
    crowd_row = np.zeros(num_classes, np.int64)
    for i in range(1, rows):
        if is_crowd[i - 1]:
            crowd_row[true[i - 1]] = i  # the last one of a class stays
            continue
        sums[true[i - 1], 3] += missed[i - 1]
        classes[count], areas[count], matched_ious[count] = true[i - 1], true_area[i], ious[i]
        causes[count] = of_true[i] if missed[i - 1] else NO_ERROR
        count += 1
    num_true = count
    for j in range(1, columns):
        row = crowd_row[predicted[j - 1]]
        excused = inter[0, j] + (inter[row, j] if row > 0 else 0)
        if spurious[j] and predicted_area[j] > 0 and 2 * excused <= predicted_area[j]:
            sums[predicted[j - 1], 2] += 1
            classes[count], areas[count], causes[count] = predicted[j - 1], predicted_area[j], of_predicted[j]
            count += 1
    occurs = np.flatnonzero((sums[:, 1] + sums[:, 2] + sums[:, 3]) > 0)
    sizes = occurs.astype(np.int16), sums[occurs], confused[:pairs].copy(), cells, pixels
    segments = classes[:count].copy(), areas[:count].copy(), matched_ious[:count].copy(), causes[:count].copy()
    return sizes + segments + (num_true,)
