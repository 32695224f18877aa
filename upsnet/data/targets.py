"""Segment map -> boxes, labels, instance map and semantic map: everything a loss needs, after augmentation."""

from __future__ import annotations

import numpy as np
import torch

from upsnet.data.categories import IGNORE_LABEL, label_from_semantic
from upsnet.data.panoptic_png import segment_geometry
from upsnet.structures import PanopticTarget, Sample


def make_target(sample: Sample, num_stuff: int, seed: int) -> PanopticTarget:
    """Derives the targets of one image; segments that augmentation cut away vanish.

    Args:
        sample: the augmented sample.
        num_stuff: S; semantic channels from S on are things.
        seed: the image's random stream, not negative.
    """
    areas, boxes = segment_geometry(sample.segment_map, len(sample.classes))
    things = np.flatnonzero((sample.classes >= num_stuff) & (areas > 0))
    slot = np.zeros(len(sample.classes) + 1, dtype=np.int32)
    slot[things + 1] = np.arange(1, len(things) + 1)
    semantic = np.concatenate([[IGNORE_LABEL], sample.classes]).astype(np.uint8)
    return PanopticTarget(
        boxes=torch.from_numpy(boxes[things].astype(np.float32)),
        labels=torch.from_numpy(label_from_semantic(sample.classes[things], num_stuff)),
        is_crowd=torch.from_numpy(sample.is_crowd[things]),
        instance_map=torch.from_numpy(slot[sample.segment_map]),
        semantic_map=torch.from_numpy(semantic[sample.segment_map]),
        seeds=torch.tensor(seed),
    )


def semantic_truth(sample: Sample) -> np.ndarray:
    """int64 [H, W]: the semantic channel of every pixel, `IGNORE_LABEL` on void."""
    return np.concatenate([[IGNORE_LABEL], sample.classes])[sample.segment_map]
