"""Mean intersection over union of semantic maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.data.categories import IGNORE_LABEL, CategorySet


class SemanticIoU:
    """A confusion matrix over all labelled pixels.

    Args:
        categories: the classes.
    """

    def __init__(self, categories: CategorySet) -> None:
        self.categories = categories
        size = len(categories)
        self.confusion = np.zeros((size, size), dtype=np.int64)

    def update(self, truth: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer]) -> None:
        """Adds one image: semantic channels [H, W], `IGNORE_LABEL` where the truth is unknown."""
        known = truth != IGNORE_LABEL
        size = len(self.categories)
        pairs = truth[known].astype(np.int64) * size + predicted[known]
        self.confusion += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def compute(self) -> dict[str, Any]:
        """The `semantic` section of `metrics.json`, in percent; classes that never occur are left out of the mean."""
        hit = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hit
        iou = {c.name: float(100 * hit[i] / union[i]) for i, c in enumerate(self.categories.categories) if union[i]}
        correct = float(100 * hit.sum() / max(1, self.confusion.sum()))
        return {"miou": sum(iou.values()) / max(1, len(iou)), "pixel_accuracy": correct, "per_class": iou}
