"""Panoptic copy-paste: things of one picture laid on another (Ghiasi et al. 2021, "Simple Copy-Paste", sec. 3).

Segments move with their pixels, ids and classes in the one map that everything else is derived from, so boxes, masks
and semantics stay in step. Only whole, separate things move: stuff, crowds and void stay where they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from upsnet.structures import Sample


def paste_things(sample: Sample, source: Sample, num_stuff: int, rng: np.random.Generator) -> Sample:
    """Lays a random half of the things of `source` on `sample`, top left corners together.

    Args:
        sample: the picture that keeps its size; what is covered vanishes from its map.
        source: where things come from, augmented on its own; what reaches beyond `sample` is cut.
        num_stuff: S; semantic channels from S on are things.
        rng: decides which things.
    """
    is_thing = (source.classes >= num_stuff) & ~source.is_crowd
    chosen = np.flatnonzero(is_thing & (rng.random(len(is_thing)) < 0.5))
    height, width = (min(pair) for pair in zip(sample.size, source.size, strict=True))
    rows = np.zeros(len(is_thing) + 1, dtype=np.int32)
    rows[chosen + 1] = len(sample.classes) + 1 + np.arange(len(chosen))
    pasted = rows[source.segment_map[:height, :width]]
    covered = pasted > 0
    if not covered.any():
        return sample
    image, segment_map = sample.image.copy(), sample.segment_map.copy()
    image[:height, :width][covered] = source.image[:height, :width][covered]
    segment_map[:height, :width][covered] = pasted[covered]
    return replace(
        sample,
        image=image,
        segment_map=segment_map,
        classes=np.concatenate([sample.classes, source.classes[chosen]]),
        is_crowd=np.concatenate([sample.is_crowd, np.zeros(len(chosen), dtype=bool)]),
    )
