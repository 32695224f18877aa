"""Connected pieces of the segments of an id map, in one pass over its pixels."""

from __future__ import annotations

import functools
from types import ModuleType

import cv2
import numpy as np
import numpy.typing as npt


@functools.cache
def compiled() -> ModuleType | None:
    """The compiled loop, or None without numba."""
    try:
        from upsnet.ops import pieces_numba
    except ImportError:
        return None
    return pieces_numba


def connected_pieces(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Finds the largest regions of one id whose pixels touch at an edge or a corner.

    Args:
        ids: [H, W].

    Returns:
        int64 [P, 6]: id, pixels, and box (x1, y1, x2, y2; ends exclusive) of each piece, in the order of their first
        pixels.
    """
    loops = compiled()
    if loops is not None:
        return loops.connected_pieces(np.ascontiguousarray(ids, dtype=np.int32))
    found = []
    for value in np.unique(ids).tolist():
        count, labels, stats, _ = cv2.connectedComponentsWithStats((ids == value).astype(np.uint8), connectivity=8)
        where, first = np.unique(labels, return_index=True)
        position = dict(zip(where.tolist(), first.tolist(), strict=True))
        for label in range(1, count):
            x, y, width, height, area = stats[label].tolist()
            found.append((position[label], [value, area, x, y, x + width, y + height]))
    return np.array([piece for _, piece in sorted(found)], dtype=np.int64).reshape(-1, 6)
