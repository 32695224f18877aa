"""PQ-dagger's part for stuff (Porzi et al. 2019, *Seamless Scene Segmentation*, the section on metrics)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.metrics.image_scores import ImageScores

CHUNK = 256
"""Images that are laid end to end at a time."""


def stuff_iou(images: Sequence[ImageScores], num_classes: int, num_stuff: int) -> list[float | None]:
    """The mean IoU of each stuff class over the images whose truth has it, whatever the IoU is: no threshold.

    All pixels of a class in an image are one region. Crowds are no truth; the union leaves out the prediction's pixels
    on void truth.

    Args:
        images: in the order of summation.
        num_classes: C; num_stuff: S.

    Returns:
        [S], 0..1, None for a class that no truth has.
    """
    sums, number = np.zeros(num_stuff), np.zeros(num_stuff, dtype=np.int64)
    for start in range(0, len(images) if num_stuff else 0, CHUNK):
        iou, has = _by_image(images[start : start + CHUNK], num_classes, num_stuff)
        sums += iou.sum(0)
        number += has.sum(0)
    return [iou / n if n else None for iou, n in zip(sums.tolist(), number.tolist(), strict=True)]


def _by_image(
    images: Sequence[ImageScores], num_classes: int, num_stuff: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """[images, S]: IoU, 0 where the truth lacks the class, and whether it has it."""
    image = np.repeat(np.arange(len(images)), [len(scores.cells) for scores in images])
    cells, pixels = (np.concatenate([getattr(s, name) for s in images]) for name in ("cells", "pixels"))
    true, predicted = np.divmod(cells, num_classes + 1)

    def by_class(chosen: npt.NDArray[np.bool_], classes: npt.NDArray[np.int32]) -> Any:
        index = image[chosen] * num_stuff + classes[chosen]
        return np.bincount(index, pixels[chosen], len(images) * num_stuff).reshape(len(images), num_stuff)

    area, claimed = by_class(true < num_stuff, true), by_class(predicted < num_stuff, predicted)
    both = by_class((true < num_stuff) & (true == predicted), true)
    return both / np.maximum(area + claimed - both, 1), area > 0
