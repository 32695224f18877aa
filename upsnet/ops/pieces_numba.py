"""Connected pieces of an id map, compiled by numba. Import this module through `pieces` alone."""

import numpy as np
from numba import njit

from upsnet.ops.id_maps_numba import compile_now


@njit(inline="always")
def _root(parent, run):
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


@compile_now("i8[:, ::1](i4[:, ::1])")
def connected_pieces(ids):
    """`pieces.connected_pieces`: runs of equal ids, joined with those that touch them in the row above."""
    height, width = ids.shape
    total = height
    for y in range(height):
        for x in range(1, width):
            total += ids[y, x] != ids[y, x - 1]
    start, stop, row, parent = (
        np.empty(total, np.int32), np.empty(total, np.int32), np.empty(total, np.int32), np.empty(total, np.int32)
    )  # fmt: skip
    run, above, first = 0, 0, 0
    for y in range(height):
        above, first, x = first, run, 0
        while x < width:
            value, begin = ids[y, x], x
            x += 1
            while x < width and ids[y, x] == value:
                x += 1
            start[run], stop[run], row[run], parent[run] = begin, x, y, run
            while above < first and stop[above] < begin:
                above += 1
            other = above
            while other < first and start[other] <= x:  # a corner is enough
                if ids[y - 1, start[other]] == value:
                    a, b = _root(parent, other), _root(parent, run)
                    parent[max(a, b)] = min(a, b)
                other += 1
            run += 1
    count = 0
    for run in range(total):
        count += parent[run] == run
    pieces = np.empty((count, 6), np.int64)
    number, count = np.empty(total, np.int32), 0
    for run in range(total):  # a root stands before its runs
        root = _root(parent, run)
        if root == run:
            number[run] = count
            pieces[count] = np.array([ids[row[run], start[run]], 0, start[run], row[run], stop[run], row[run] + 1])
            count += 1
        piece = pieces[number[root]]
        piece[1] += stop[run] - start[run]
        piece[2] = min(piece[2], start[run])
        piece[4] = max(piece[4], stop[run])
        piece[5] = row[run] + 1
    return pieces
