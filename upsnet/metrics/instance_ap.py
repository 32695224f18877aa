"""COCO's average precision of boxes-with-masks, by pycocotools, against the things of the panoptic truth."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from upsnet.data.categories import CategorySet, semantic_from_label
from upsnet.structures import Sample


class InstanceAP:
    """Collects run-length masks of truth and detections.

    Args:
        categories: the classes.
    """

    def __init__(self, categories: CategorySet) -> None:
        self.categories = categories
        self.images: list[dict[str, Any]] = []
        self.truth: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []

    def update(
        self,
        truth: Sample,
        scores: npt.NDArray[np.floating],
        labels: npt.NDArray[np.integer],
        masks: npt.NDArray[np.bool_],
    ) -> None:
        """Adds one image.

        Args:
            truth: its sample.
            scores: [n], 0..1; labels: [n], 1..T; masks: [n, H, W].
        """
        height, width = truth.size
        self.images.append({"id": truth.image_id, "height": height, "width": width})
        for row, (channel, is_crowd) in enumerate(zip(truth.classes.tolist(), truth.is_crowd.tolist(), strict=True)):
            if self.categories[channel].is_thing:
                mask = truth.segment_map == row + 1
                if not mask.any():
                    continue
                encoded = _encode(mask)
                fields = {"segmentation": encoded, "area": int(mask.sum()), "bbox": rle.toBbox(encoded).tolist()}
                self.truth.append(
                    {"image_id": truth.image_id, "category_id": self._id(channel), "iscrowd": int(is_crowd), **fields}
                )
        for score, label, mask in zip(scores.tolist(), labels.tolist(), masks, strict=True):
            channel = semantic_from_label(label, self.categories.num_stuff)
            self.detections.append(
                {
                    "image_id": truth.image_id,
                    "category_id": self._id(channel),
                    "score": score,
                    "segmentation": _encode(mask),
                }
            )

    def _id(self, channel: int) -> int:
        return self.categories[channel].id

    def compute(self) -> dict[str, float | None]:
        """The `instance` section of `metrics.json`, in percent: AP over IoU 0.50-0.95, AP50, AP75, and by size.

        A size that no true object has is None.
        """
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        if not self.detections or not self.truth:
            return dict.fromkeys(names, 0.0 if self.truth else None)
        things = [{"id": c.id, "name": c.name} for c in self.categories.categories if c.is_thing]
        truth = COCO()
        with contextlib.redirect_stdout(io.StringIO()):
            rows = [{**row, "id": i + 1} for i, row in enumerate(self.truth)]
            truth.dataset = {"images": self.images, "annotations": rows, "categories": things, "info": {}}
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(self.detections), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        values = [100 * float(value) if value >= 0 else None for value in evaluation.stats[: len(names)]]
        return dict(zip(names, values, strict=True))


def _encode(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return rle.encode(np.asfortranarray(mask, dtype=np.uint8))
