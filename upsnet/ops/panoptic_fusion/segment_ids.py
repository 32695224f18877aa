"""From channels of the panoptic map to segment ids: the rules that look at whole segments, on the device of the map."""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 32
"""Histograms kept side by side on a GPU, so that the pixels of one segment do not queue for one counter."""


def segment_ids(channels: Tensor, classes: Tensor, num_stuff: int, stuff_area_limit: int) -> Tensor:
    """Ids of the segments of a batch; stuff that is too small becomes void.

    Args:
        channels: int32 [B, H, W], the panoptic map: 0..S-1 stuff, S + k for slot k, S + K unknown.
        classes: int64 [B, S + K], the semantic channel of each.
        num_stuff: S.
        stuff_area_limit: stuff classes with fewer pixels in the image become void.

    Returns:
        int32 [B, H, W]: channel + 1, or 0 for void.
    """
    count = classes.shape[1]
    owner = torch.arange(count, device=classes.device).expand_as(classes)
    return ids_of_owners(channels, owner, classes, num_stuff, stuff_area_limit)


def ids_of_owners(channels: Tensor, owner: Tensor, classes: Tensor, num_stuff: int, stuff_area_limit: int) -> Tensor:
    """As `segment_ids`, where channel `c` becomes a part of channel `owner[c]`.

    Args:
        owner: int64 [B, S + K].
        classes: int64 [B, S + K], the semantic channel of each owner.
        channels, num_stuff, stuff_area_limit: as in `segment_ids`.
    """
    count = classes.shape[1]
    stuff = classes.clamp(max=num_stuff)
    area = stuff.new_zeros(len(stuff), num_stuff + 1)
    area.scatter_add_(1, stuff, histogram(channels.long(), count + 1)[:, :count])
    too_small = (stuff < num_stuff) & (area.gather(1, stuff) < stuff_area_limit)
    ids = torch.cat([(owner + 1).masked_fill(too_small, 0), owner.new_zeros(len(owner), 1)], 1)
    return ids.gather(1, channels.flatten(1).long()).view(channels.shape).int()


def histogram(values: Tensor, bins: int) -> Tensor:
    """Counts int64 [B, bins] of values int64 [B, H, W], without a sync."""
    flat = values.flatten(1)
    lanes = LANES if flat.is_cuda else 1
    if lanes > 1:
        flat = flat + torch.arange(flat.shape[1], device=flat.device) % lanes * bins
    counts = flat.new_zeros(len(flat), lanes * bins)
    counts.scatter_add_(1, flat, flat.new_ones(()).expand_as(flat))
    return counts.view(len(flat), lanes, bins).sum(1)
