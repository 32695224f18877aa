"""Segment map -> boxes, labels, instance map and semantic map: everything a loss needs, after augmentation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from upsnet.categories import IGNORE_LABEL, label_from_semantic
from upsnet.ops.id_maps import look_up, segment_geometry
from upsnet.structures import PanopticTarget, Sample


def make_target(
    sample: Sample, num_stuff: int, seed: int, maps: tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]] | None = None
) -> PanopticTarget:
    """Derives the targets of one image; segments that augmentation cut away vanish.

    Args:
        sample: the augmented sample.
        num_stuff: S; semantic channels from S on are things.
        seed: the image's random stream, not negative.
        maps: memory [H, W] for the instance map and the semantic map, such as a part of a batch; by default new.
    """
    areas, boxes = segment_geometry(sample.segment_map, len(sample.classes))
    things = np.flatnonzero((sample.classes >= num_stuff) & (areas > 0))
    slot = np.zeros(len(sample.classes) + 1, dtype=np.int32)
    slot[things + 1] = np.arange(1, len(things) + 1)
    instance_map, semantic_map = maps or (np.empty(sample.size, np.int32), np.empty(sample.size, np.uint8))
    look_up(sample.segment_map, slot, _channels(sample).astype(np.uint8), instance_map, semantic_map)
    return PanopticTarget(
        boxes=torch.from_numpy(boxes[things].astype(np.float32)),
        labels=torch.from_numpy(label_from_semantic(sample.classes[things], num_stuff)),
        is_crowd=torch.from_numpy(sample.is_crowd[things]),
        instance_map=torch.from_numpy(instance_map),
        semantic_map=torch.from_numpy(semantic_map),
        seeds=torch.tensor(seed),
    )


def semantic_truth(sample: Sample) -> np.ndarray:
    """int64 [H, W]: the semantic channel of every pixel, `IGNORE_LABEL` on void."""
    return _channels(sample)[sample.segment_map]


def _channels(sample: Sample) -> npt.NDArray[np.int64]:
    """Semantic channel of each value of the segment map."""
    return np.concatenate([[IGNORE_LABEL], sample.classes])
