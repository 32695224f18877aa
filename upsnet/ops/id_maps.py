"""One pass over the pixels of id maps: numba's where it is installed (`id_maps_numba.py`), else numpy's, or torch's.

Ids may be any integers of 32 bits. A table of known ids gives them rows: row i + 1 is `known[i]`, row 0 is every id
that the table lacks.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.integer]


@functools.cache
def compiled() -> ModuleType | None:
    """The compiled loops, or None without numba."""
    try:
        from upsnet.ops import id_maps_numba
    except ImportError:
        return None
    return id_maps_numba


def rows_of_ids(ids: IntArray, known: IntArray) -> npt.NDArray[np.int32]:
    """Replaces ids by rows of a table.

    Args:
        ids: [H, W].
        known: [n], all different.

    Returns:
        int32 [H, W], 0..n.
    """
    flat, table = _flat(ids), _flat(known)
    loops = compiled()
    if loops is None or not flat.size:
        return _search(flat, table).reshape(ids.shape)
    rows = np.empty_like(flat)
    loops.rows_of_ids(flat, table, rows)
    return rows.reshape(ids.shape)


def look_up(
    ids: npt.NDArray[np.int32],
    first_table: npt.NDArray[np.int32],
    second_table: npt.NDArray[np.uint8],
    first: npt.NDArray[np.int32],
    second: npt.NDArray[np.uint8],
) -> None:
    """Writes what two tables say of each id, in one pass.

    Args:
        ids: [H, W], 0..n.
        first_table, second_table: [n + 1].
        first, second: [H, W], written to; rows may lie apart.

    Raises:
        IndexError: an id is not in the tables.
    """
    loops = compiled()
    if not ids.size:
        return
    if ids.min() < 0 or ids.max() >= len(first_table):
        raise IndexError(f"ids from {ids.min()} to {ids.max()}, expected 0..{len(first_table) - 1}")
    if loops is None or not ids.flags.c_contiguous or not ids.flags.writeable:
        first[...], second[...] = first_table[ids], second_table[ids]
        return
    loops.look_up(ids, first_table, second_table, first, second)


def count_pairs(first: Any, first_known: IntArray, second: Any, second_known: IntArray) -> npt.NDArray[np.int64]:
    """How many pixels have each pair of ids.

    Args:
        first, second: [H, W] of one size, both numpy arrays, or both tensors on one device. Maps on a GPU are
            counted there; the counts alone come to the host.
        first_known: [n], all different; second_known: [m], all different.

    Returns:
        int64 [n + 1, m + 1]; row and column 0 are ids that the tables lack.

    Raises:
        ValueError: the sizes differ, or an id has more than 32 bits.
    """
    if first.shape != second.shape:
        raise ValueError(f"maps of {tuple(first.shape)} and {tuple(second.shape)}, expected one size")
    shape = (len(first_known) + 1, len(second_known) + 1)
    if isinstance(first, Tensor):
        return _count_tensors(first, first_known, second, second_known, shape)
    flats = _flat(first), _flat(second)
    loops = compiled()
    if loops is None or not flats[0].size:
        pairs = _search(flats[0], first_known).astype(np.int64) * shape[1] + _search(flats[1], second_known)
        return np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    counts = np.zeros(shape, dtype=np.int64)
    loops.count_pairs(flats[0], _flat(first_known), flats[1], _flat(second_known), counts)
    return counts


def _flat(values: IntArray) -> npt.NDArray[np.int32]:
    values = np.asarray(values)
    if values.size and not np.can_cast(values.dtype, np.int32):
        low, high = values.min(), values.max()
        if low < -(2**31) or high >= 2**31:
            raise ValueError(f"ids from {low} to {high}, expected integers of 32 bits")
    flat = np.ascontiguousarray(values, dtype=np.int32).reshape(-1)
    return flat if flat.flags.writeable else flat.copy()  # the loops are compiled for arrays that can be written


def _search(ids: IntArray, known: IntArray) -> npt.NDArray[np.int32]:
    if not len(known):
        return np.zeros(len(ids), dtype=np.int32)
    order = np.argsort(known)
    row = order[np.searchsorted(known[order], ids).clip(max=len(known) - 1)]
    return np.where(known[row] == ids, row + 1, 0).astype(np.int32)


def _count_tensors(
    first: Tensor, first_known: IntArray, second: Tensor, second_known: IntArray, shape: tuple[int, int]
) -> npt.NDArray[np.int64]:
    rows = []
    for ids, known in ((first, first_known), (second, second_known)):
        if not len(known):
            rows.append(torch.zeros(ids.numel(), dtype=torch.int64, device=ids.device))
            continue
        table, order = torch.as_tensor(known).to(ids.dtype).sort()
        table, order = table.to(ids.device), order.to(ids.device)
        position = torch.searchsorted(table, ids.reshape(-1), out_int32=True).clamp_(max=len(known) - 1)
        rows.append(torch.where(table[position] == ids.reshape(-1), order[position] + 1, 0))
    counts = torch.bincount(rows[0] * shape[1] + rows[1], minlength=shape[0] * shape[1])
    return counts.reshape(shape).cpu().numpy()


def segment_geometry(ids: npt.NDArray[np.int32], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Areas and tight boxes of the segments 1..count of a dense id map [H, W].

    Returns:
        areas int64 [count] in pixels, and boxes int64 [count, 4], XYXY with exclusive ends; a segment without
        pixels has area 0 and the box (0, 0, 0, 0).

    Raises:
        ValueError: the map holds another id.
    """
    loops = compiled()
    if loops is None or not ids.size:
        return _geometry_by_axes(ids, count)
    if ids.min() < 0 or ids.max() > count:
        raise ValueError(f"ids from {ids.min()} to {ids.max()}, expected 0..{count}")
    height, width = ids.shape
    areas, boxes = np.zeros(count + 1, dtype=np.int64), np.tile(np.array([width, height, 0, 0]), (count + 1, 1))
    loops.segment_geometry(np.require(ids, np.int32, ("C", "W")), areas, boxes)
    boxes[areas == 0] = 0
    return areas[1:], boxes[1:]


def _geometry_by_axes(ids: npt.NDArray[np.int32], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`segment_geometry` without compiled loops."""
    height, width = ids.shape
    areas = np.bincount(ids.ravel(), minlength=count + 1)[1 : count + 1]
    spans = []
    for size, axis in ((width, np.arange(width)[None, :]), (height, np.arange(height)[:, None])):
        seen = np.zeros((count + 1, size), dtype=bool)
        seen[ids, axis] = True
        first, last = seen.argmax(1), size - seen[:, ::-1].argmax(1)
        spans.append((first[1:], np.where(seen.any(1), last, 0)[1:]))
    (x1, x2), (y1, y2) = spans
    return areas, np.stack([x1, y1, x2, y2], axis=1)
