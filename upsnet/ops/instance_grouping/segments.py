"""From grouped pixels to segments: classes by majority, scores, and ids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from upsnet.categories import label_from_semantic
from upsnet.ops.id_maps import segment_geometry
from upsnet.ops.instance_grouping.options import Score
from upsnet.structures import Instances


def majority_classes(votes: Tensor, num_stuff: int) -> Tensor:
    """The thing class that most pixels of each instance have; the first channel wins a tie.

    Args:
        votes: int64 [B, K + 1, S + T], as `count_votes` gives them.
        num_stuff: S.

    Returns:
        int64 [B, K], channels. Without thing classes: 0.
    """
    if votes.shape[2] == num_stuff:
        return torch.zeros_like(votes[:, 1:, 0])
    return num_stuff + votes[:, 1:, num_stuff:].argmax(2)


def instance_scores(sums: Tensor | None, area: Tensor, heat: Tensor, score: Score) -> Tensor:
    """The score of each instance, 0..1; 0 without pixels.

    Args:
        sums: float64 [B, K], as `probability_sums` gives them; not needed for the score `center`.
        area: int64 [B, K], pixels of each instance.
        heat: float32 [B, K], at the centre of each.
        score: which.

    Returns:
        float32 [B, K].
    """
    found = heat.clamp(max=1)
    if sums is not None and score != "center":
        mean = (sums / area.clamp(min=1)).float()
        found = mean if score == "semantic" else mean * found
    return torch.where(area > 0, found, 0).nan_to_num(0)


def segment_ids(instance: Tensor, channels: Tensor, votes: Tensor, num_stuff: int, stuff_area_limit: int) -> Tensor:
    """The ids of the segments; stuff that is too small and things without a centre are void.

    Args:
        instance: int32 [B, H, W], 0..K.
        channels: int32 [B, H, W], 0..S+T-1.
        votes: int64 [B, K + 1, S + T], as `count_votes` gives them for the two maps.
        num_stuff: S.
        stuff_area_limit: a stuff class with fewer pixels in the image becomes void.

    Returns:
        int32 [B, H, W]: 0 is void, c + 1 stuff of channel c, S + k instance k.
    """
    row = torch.arange(1, votes.shape[2] + 1, device=votes.device, dtype=torch.int32)
    is_kept = (votes[:, 0] >= stuff_area_limit) & (row <= num_stuff)
    of_channel = torch.where(is_kept, row, 0)
    pairs = zip(of_channel, channels, strict=True)
    ids = torch.stack([table.index_select(0, own.flatten()).view_as(own) for table, own in pairs])
    # An instance lies on pixels of thing channels, which have no id so far.
    return ids.add_(instance).add_(instance.clamp(max=1), alpha=num_stuff)


def instances_of_segments(segment_ids: Tensor, classes: Tensor, scores: Tensor, num_stuff: int) -> Instances:
    """The instances of one image for AP: the segments of things, whose masks do not overlap.

    Args:
        segment_ids: int32 [H, W]; 0 = void, `i + 1` = row `i` of the table.
        classes: int64 [R], semantic channel of each row; the first S rows are stuff.
        scores: float32 [R].
        num_stuff: S.
    """
    ids = segment_ids.cpu()
    areas, boxes = segment_geometry(ids.numpy(), len(classes))
    valid = torch.from_numpy(areas[num_stuff:] > 0)
    rows = [num_stuff + slot for slot in valid.nonzero()[:, 0].tolist()]
    windows = partial(_masks, ids, [(row + 1, boxes[row].tolist()) for row in rows])
    labels = label_from_semantic(classes[num_stuff:].clamp(min=num_stuff), num_stuff)
    return Instances(scores[num_stuff:], labels, valid.to(scores.device), windows)


def _masks(ids: Tensor, windows: list[tuple[int, list[int]]]) -> Iterator[tuple[Tensor, int, int]]:
    """The masks of segments in their boxes, each with row and column of its first pixel."""
    for number, (x1, y1, x2, y2) in windows:
        yield ids[y1:y2, x1:x2] == number, y1, x1
