"""Pictures that stand twice: thumbnails find the candidates, the pictures themselves decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from upsnet.doctor.image_files import THUMBNAIL, Pixels, shrink

ALIKE = 0.99
"""Least correlation of two thumbnails, and of the pictures at `LARGE` pixels a side."""
LARGE = 64
COARSE_ALIKE = 0.98
"""The same at half the side, which is where candidates are sought."""
FLAT = 3.0
"""Grey levels of standard deviation under which a thumbnail shows nothing to compare."""
BLOCK = 128
"""Images that are compared with all others at once."""


class Twins(NamedTuple):
    """Two images, by (split, index), and whether their pixels are the same or look alike."""

    first: tuple[int, int]
    second: tuple[int, int]
    kind: Literal["equal", "alike"]


def find_twins(
    thumbnails: Sequence[Sequence[Pixels | None]],
    digests: Sequence[Sequence[bytes | None]],
    read: Callable[[int, int], Pixels],
) -> list[Twins]:
    """Finds for each picture at most one twin before it in its own split, and one in each split before.

    Args:
        thumbnails, digests: of the images of each split (`pictures.Picture`), None where there is none.
        read: (split, index) -> the whole picture.
    """
    places = [
        (split, row) for split, found in enumerate(thumbnails) for row, one in enumerate(found) if one is not None
    ]
    if not places:
        return []
    flat = np.array([thumbnails[split][row] for split, row in places], dtype=np.float32)
    splits = np.array([split for split, _ in places])
    candidates = _equal_digests([digests[split][row] for split, row in places], splits)
    candidates |= _alike(flat.reshape(-1, THUMBNAIL, THUMBNAIL), splits)
    twins: dict[tuple[int, int], Twins] = {}
    for second, first in sorted(candidates):
        key = (second, int(splits[first]))
        if key in twins and twins[key].kind == "equal":
            continue
        kind = _compare(read(*places[first]), read(*places[second]))
        if kind == "equal" or (kind is not None and key not in twins):
            twins[key] = Twins(places[first], places[second], kind)
    return list(twins.values())


def _equal_digests(digests: Sequence[bytes | None], splits: npt.NDArray[np.int64]) -> set[tuple[int, int]]:
    """(later, earlier): the first image of each split with the same digest."""
    first: dict[tuple[bytes | None, int], int] = {}
    found = set()
    for row, (digest, split) in enumerate(zip(digests, splits.tolist(), strict=True)):
        found |= {(row, first[digest, other]) for other in range(split + 1) if (digest, other) in first}
        first.setdefault((digest, split), row)
    return found


def _alike(thumbnails: npt.NDArray[np.float32], splits: npt.NDArray[np.int64]) -> set[tuple[int, int]]:
    """(later, earlier): the image of each split that an image resembles most, if it does."""
    half = thumbnails.reshape(-1, THUMBNAIL // 2, 2, THUMBNAIL // 2, 2).mean((2, 4))
    coarse, fine = _standardised(half), _standardised(thumbnails)
    found = set()
    for split in np.unique(splits).tolist():
        first, end = np.searchsorted(splits, (split, split + 1)).tolist()
        for at in range(first + 1, len(splits), BLOCK):
            rows = np.arange(at, min(at + BLOCK, len(splits)))
            columns = np.arange(first, min(end, rows[-1]))
            likeness = coarse[at : rows[-1] + 1] @ coarse[first : columns[-1] + 1].T
            likeness = likeness.round(4)  # the first of equals wins, whatever the rounding of this block
            likeness[rows[:, None] <= columns] = -1
            best = likeness.argmax(1)
            close = np.flatnonzero(likeness.max(1) >= COARSE_ALIKE)
            pairs = zip(rows[close].tolist(), columns[best[close]].tolist(), strict=True)
            found |= {(row, column) for row, column in pairs if fine[row] @ fine[column] >= ALIKE}
    return found


def _standardised(thumbnails: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[N, h, w] -> vectors whose product is the correlation; zeros where there is nothing to compare."""
    vectors = thumbnails.reshape(len(thumbnails), -1)
    vectors = vectors - vectors.mean(1, keepdims=True)
    deviation = vectors.std(1, keepdims=True)
    return vectors / np.maximum(deviation * vectors.shape[1] ** 0.5, 1e-6) * (deviation >= FLAT)


def _compare(first: Pixels, second: Pixels) -> Literal["equal", "alike"] | None:
    if first.shape == second.shape and np.array_equal(first, second):
        return "equal"
    grey = [shrink(cv2.cvtColor(np.ascontiguousarray(p), cv2.COLOR_RGB2GRAY), LARGE) for p in (first, second)]
    a, b = _standardised(np.array(grey, dtype=np.float32))
    return "alike" if a @ b >= ALIKE else None
