"""From channels of the panoptic map to segment ids: the rules that look at whole segments, on the device of the map."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LANES = 32
"""Histograms kept side by side on a GPU, so that the pixels of one segment do not queue for one counter."""


def segment_ids(
    channels: Tensor, classes: Tensor, num_stuff: int, stuff_area_limit: int, semantic: Tensor | None = None
) -> Tensor:
    """Ids of the segments of a batch; stuff that is too small becomes void.

    Args:
        channels: int32 [B, H, W], the panoptic map: 0..S-1 stuff, S + k for slot k, S + K unknown.
        classes: int64 [B, S + K], the semantic channel of each.
        num_stuff: S.
        stuff_area_limit: stuff classes with fewer pixels in the image become void.
        semantic: int32 [B, H, W], the semantic head's own map, for the official program's majority rule: a slot joins
            the stuff class that at least half of its pixels have there.

    Returns:
        int32 [B, H, W]: channel + 1, or 0 for void.
    """
    count = classes.shape[1]
    rows = torch.arange(count, device=classes.device).expand_as(classes)
    owner = rows
    if semantic is not None:
        bins = num_stuff + 1  # The last is for all things.
        pairs = _histogram(channels.long() * bins + semantic.clamp(max=num_stuff), (count + 1) * bins)
        pairs = pairs.view(-1, count + 1, bins)[:, :count]
        pixels, stuff = pairs[..., :num_stuff].max(2)
        joins = (2 * pixels >= pairs.sum(2)) & (rows >= num_stuff) & (stuff != classes)
        owner = stuff.where(joins, rows)
        classes = classes.gather(1, owner)
    stuff = classes.clamp(max=num_stuff)
    area = stuff.new_zeros(len(stuff), num_stuff + 1)
    area.scatter_add_(1, stuff, _histogram(channels.long(), count + 1)[:, :count])
    too_small = (stuff < num_stuff) & (area.gather(1, stuff) < stuff_area_limit)
    ids = torch.cat([(owner + 1).masked_fill(too_small, 0), owner.new_zeros(len(owner), 1)], 1)
    return ids.gather(1, channels.flatten(1).long()).view(channels.shape).int()


def nearest(maps: Tensor, source: tuple[int, int], target: tuple[int, int], scale: float | None = None) -> Tensor:
    """Resizes maps [..., h, w] as the official program does: pixel floor(i scale), one float32 scale for both axes.

    Args:
        maps: of size `source` = (h, w).
        source, target: sizes; `source` is `target` times the scale, rounded.
        scale: by default what the sizes tell, taking the shorter side to be exact.
    """
    ratios = [new / old for new, old in zip(source, target, strict=True)]
    fits = [all(round(size * r) == n for size, n in zip(target, source, strict=True)) for r in ratios]
    short = 0 if target[0] <= target[1] else 1
    if scale is None:
        scale = ratios[short] if fits[short] else ratios[1 - short]
    scale = float(np.float32(scale))
    rows, columns = (
        (torch.arange(new, device=maps.device, dtype=torch.float64) * scale).floor().long().clamp(max=old - 1)
        for new, old in zip(target, source, strict=True)
    )
    return maps[..., rows[:, None], columns]


def _histogram(values: Tensor, bins: int) -> Tensor:
    """Counts int64 [B, bins] of values int64 [B, H, W], without a sync."""
    flat = values.flatten(1)
    lanes = LANES if flat.is_cuda else 1
    if lanes > 1:
        flat = flat + torch.arange(flat.shape[1], device=flat.device) % lanes * bins
    counts = flat.new_zeros(len(flat), lanes * bins)
    counts.scatter_add_(1, flat, flat.new_ones(()).expand_as(flat))
    return counts.view(len(flat), lanes, bins).sum(1)
