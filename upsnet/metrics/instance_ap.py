"""COCO's average precision of masks, against the things of the panoptic truth or an instance file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as rle

from upsnet.categories import CategorySet, semantic_from_label
from upsnet.structures import Sample

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class ImageInstances:
    """The masks of one image as rows of COCO's instance format, without `image_id`.

    Attributes:
        image_id: as in the data set; size: (H, W).
        truth: with iscrowd, area and bbox; detections: with score, in any order.
    """

    image_id: int | str
    size: tuple[int, ...]
    truth: list[dict[str, Any]]
    detections: list[dict[str, Any]]


class InstanceAP:
    """Collects run-length masks of truth and detections.

    Args:
        categories: the classes.
        truth: the ground truth as rows of COCO's instance format (`instance_file.read_instances`), in place of those
            that images bring along.

    Attributes:
        rows: image id -> its masks.
    """

    def __init__(self, categories: CategorySet, truth: list[dict[str, Any]] | None = None) -> None:
        self.categories = categories
        self.rows: dict[Any, ImageInstances] = {}
        self.given_truth = truth

    def update(
        self,
        truth: Sample,
        scores: npt.NDArray[np.floating],
        labels: npt.NDArray[np.integer],
        masks: Iterable[dict[str, Any]],
    ) -> None:
        """Adds one image.

        Args:
            truth: its sample.
            scores: [n], 0..1; labels: [n], 1..T.
            masks: n run-length masks, made one at a time, as `encode_window` makes them.
        """
        detections = [
            {
                "category_id": self.categories[semantic_from_label(label, self.categories.num_stuff)].id,
                "score": score,
                "segmentation": mask,
            }
            for score, label, mask in zip(scores.tolist(), labels.tolist(), masks, strict=True)
        ]
        self.add(
            ImageInstances(truth.image_id, truth.size, mask_rows(truth.segment_map, self._things(truth)), detections)
        )

    def update_segments(
        self,
        truth: Sample,
        ids: npt.NDArray[np.int32],
        classes: npt.NDArray[np.integer],
        scores: npt.NDArray[np.floating],
    ) -> None:
        """Adds the things of the panoptic map of one image.

        Args:
            truth: its sample.
            ids: [H, W], 0 = void, i + 1 = row i.
            classes: [m], semantic channels; scores: [m], 0..1, NaN where there is none.
        """
        found = [
            {"id": row + 1, "category_id": self.categories[channel].id}
            | ({} if np.isnan(score) else {"score": float(score)})
            for row, (channel, score) in enumerate(zip(classes.tolist(), scores.tolist(), strict=True))
            if self.categories[channel].is_thing
        ]
        masks = mask_rows(truth.segment_map, self._things(truth))
        self.add(ImageInstances(truth.image_id, truth.size, masks, mask_rows(ids, found)))

    def _things(self, truth: Sample) -> list[dict[str, Any]]:
        """The true things, as `mask_rows` takes them."""
        return [
            {"id": row + 1, "category_id": self.categories[channel].id, "iscrowd": int(is_crowd)}
            for row, (channel, is_crowd) in enumerate(zip(truth.classes.tolist(), truth.is_crowd.tolist(), strict=True))
            if self.categories[channel].is_thing
        ]

    @property
    def is_scored(self) -> bool:
        """Whether every detection has a score, which AP needs."""
        return all("score" in row for image in self.rows.values() for row in image.detections)

    def add(self, image: ImageInstances) -> None:
        """Adds one image."""
        self.rows[image.image_id] = image

    def merge(self, others: list[dict[Any, ImageInstances]]) -> None:
        """Takes the images of other processes, too."""
        for rows in others:
            self.rows.update(rows)

    def compute(self) -> dict[str, Any]:
        """A section of `metrics.json`, in percent: AP over IoU 0.50-0.95, AP50, AP75, by size, and AP of each class.

        A score without true objects is None. `ground_truth` says what the detections were compared with: "instances" if
        the rows of an instance file were given, else "panoptic". Images are taken in the order of their ids, so that
        any split over processes gives the same bits.
        """
        images = [self.rows[key] for key in sorted(self.rows, key=str)]
        numbers = {image.image_id: number for number, image in enumerate(images, 1)}
        truth = self.given_truth
        if truth is None:
            truth = [{**row, "image_id": image.image_id} for image in images for row in image.truth]
        truth = [row for row in truth if row["image_id"] in numbers]
        found = [{**row, "image_id": numbers[image.image_id]} for image in images for row in image.detections]
        if not found or not truth:
            return self._section(
                dict.fromkeys(NAMES, 0.0 if truth else None), {row["category_id"]: 0.0 for row in truth}
            )
        document = {
            "images": [{"id": numbers[i.image_id], "height": i.size[0], "width": i.size[1]} for i in images],
            "annotations": [{**r, "id": n, "image_id": numbers[r["image_id"]]} for n, r in enumerate(truth, 1)],
            "categories": [{"id": c.id, "name": c.name} for c in self.categories.categories if c.is_thing],
        }
        reference = COCO(document)
        evaluation = COCOeval_faster(reference, reference.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        values = [100 * float(value) if value >= 0 else None for value in evaluation.stats[: len(NAMES)]]
        precision = np.reshape(evaluation.eval["precision"], evaluation.eval["counts"])[:, :, :, 0, -1]
        by_class = zip(evaluation.params.catIds, np.moveaxis(precision, 2, 0), strict=True)
        return self._section(
            dict(zip(NAMES, values, strict=True)),
            {key: 100 * float(own.mean()) for key, own in by_class if own.max() >= 0},
        )

    def _section(self, values: dict[str, float | None], of_class: dict[int, float]) -> dict[str, Any]:
        things = [c for c in self.categories.categories if c.is_thing]
        return {
            **values,
            "ground_truth": "panoptic" if self.given_truth is None else "instances",
            "per_class": {str(c.id): {"name": c.name, "ap": of_class.get(c.id)} for c in things},
        }


def encode_window(window: npt.NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's run-length mask of an image in which only a window has pixels.

    Args:
        window: bool [h, w].
        top, left: row and column of its first pixel in the image.
        size: (H, W) of the image.

    Returns:
        `size` and compressed `counts`, as `pycocotools.mask.encode` gives for the whole image.
    """
    height = window.shape[0]
    columns = np.zeros((window.shape[1], height + 2), dtype=np.int8)  # run-length masks go down the columns
    columns[:, 1 : height + 1] = window.T
    column, row = np.diff(columns, axis=1).nonzero()  # where runs start and end, in turn
    edges = (left + column) * size[0] + top + row
    # A run that ends at the foot of a column and one that starts at the head of the next are one run.
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    lengths = np.diff(edges, prepend=0, append=size[0] * size[1])
    counts = lengths[: len(lengths) - (lengths[-1] == 0)].tolist()
    encoded: dict[str, Any] = rle.frPyObjects({"size": list(size), "counts": counts}, *size)
    return encoded


def mask_rows(ids: npt.NDArray[np.int32], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of COCO's instance format for segments of an id map, in the rows' order.

    Args:
        ids: [H, W].
        rows: with id and category_id, and iscrowd or score; ids without a pixel are left out.
    """
    flat = np.ascontiguousarray(ids.T).reshape(-1)  # run-length masks go down the columns
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends, values = np.append(starts[1:], flat.size), flat[starts]
    found = []
    for row in rows:
        own = np.flatnonzero(values == row["id"])
        if not len(own):
            continue
        edges = np.stack([starts[own], ends[own]], axis=1).reshape(-1)
        lengths = np.diff(edges, prepend=0, append=flat.size)
        plain: dict[str, Any] = {
            "size": list(ids.shape),
            "counts": lengths[: len(lengths) - (lengths[-1] == 0)].tolist(),
        }
        mask = rle.frPyObjects(plain, *ids.shape)
        fields = {"segmentation": mask, "area": int(lengths[1::2].sum()), "bbox": rle.toBbox(mask).tolist()}
        score = {"score": row["score"]} if "score" in row else {}
        found.append({**score, "category_id": row["category_id"], "iscrowd": int(row.get("iscrowd", 0)), **fields})
    return found
