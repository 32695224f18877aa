"""The definition of the panoptic head (Xiong et al. 2019, sec. 3.3): the full volume of logits, and its argmax.

Channels: S stuff logits; K instances, each its class's semantic logit plus its mask logit; one `unknown`, the best
thing logit minus what the instances explain. `streaming` and `triton` must give the same maps.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from upsnet.categories import semantic_from_label
from upsnet.ops.mask_paste import inside_boxes, paste_masks
from upsnet.ops.panoptic_fusion.slots import ALWAYS, NEVER, Grid, Method, Slots


def panoptic_logits(semantic: Tensor, slots: Slots, num_stuff: int, method: Method = "unified") -> Tensor:
    """The volume of panoptic logits; differentiable in `semantic` and the mask logits.

    Args:
        semantic: float32 [B, S + T, H, W], semantic logits at the resolution of the result.
        slots: those that compete.
        num_stuff: S.
        method: `unified`: an instance exists in its region only, and an absent one explains 0. `official`: the planes
            are 0 outside, and 0 is explained only where some instance is absent. `heuristic`: the first mask that is
            on wins, and `unknown` wins where a thing does with no mask on.

    Returns:
        float32 [B, S + K + 1, H, W].
    """
    size = (semantic.shape[-2], semantic.shape[-1])
    in_mask, in_semantic = _pixels(slots.mask_region, size), _pixels(slots.semantic_region, size)
    channel = semantic_from_label(slots.labels, num_stuff)[..., None, None].expand(-1, -1, *size)
    class_plane = torch.where(in_semantic, semantic.gather(1, channel), 0)
    mask_plane = torch.where(in_mask, _paste(slots, size), 0)
    valid = slots.valid[..., None, None]
    best_thing = semantic[:, num_stuff:].amax(1, keepdim=True)
    if method == "heuristic":
        instances, explained = torch.where(mask_plane > 0, ALWAYS, NEVER), torch.zeros_like(best_thing)
    elif method == "official":
        instances = class_plane + mask_plane
        explained = class_plane.where(valid, NEVER).amax(1, keepdim=True)
        explained = explained.where(valid.any(1, keepdim=True), 0)
    else:
        instances = torch.where(in_mask, class_plane + mask_plane, NEVER)
        explained = class_plane.where(valid, 0).amax(1, keepdim=True).clamp(min=0)
    return torch.cat([semantic[:, :num_stuff], instances.where(valid, NEVER), best_thing - explained], dim=1)


def keep_instances(slots: Slots, size: tuple[int, int], overlap: Fraction) -> Tensor:
    """Mask removal: drops what is mostly taken by kept instances of the same label before it, and what is empty.

    Args:
        slots: all, in order of falling score.
        size: (H, W) of the result.
        overlap: share of the own pixels (mask logit > 0) above which an instance goes; the arithmetic is exact.

    Returns:
        bool [B, K].
    """
    mask = _pixels(slots.mask_region, size) & (_paste(slots, size) > 0)
    images, keep = torch.arange(len(mask), device=mask.device), torch.zeros_like(slots.valid)
    # What the kept instances of a label cover, in the place of the first slot with that label.
    taken = torch.zeros_like(mask)
    first = (slots.labels[:, :, None] == slots.labels[:, None]).int().argmax(2)
    for k in range(mask.shape[1]):
        own, place = mask[:, k], (images, first[:, k])
        area, shared = own.sum((1, 2)), (own & taken[place]).sum((1, 2))
        fits = shared * overlap.denominator <= area * overlap.numerator
        keep[:, k] = slots.valid[:, k] & (area > 0) & fits
        taken[place] |= own & keep[:, k, None, None]
    return keep


def fuse(
    semantic_logits: Tensor, slots: Slots, grid: Grid, *, num_stuff: int, method: Method, with_semantic: bool
) -> tuple[Tensor, Tensor | None]:
    """The panoptic map.

    Args:
        semantic_logits: float [B, S + T, h, w], at 1/4 of the network's input.
        slots: those that compete.
        grid: the pixels of the result.
        num_stuff: S.
        method: see `panoptic_logits`.
        with_semantic: also give the argmax of the semantic logits.

    Returns:
        int32 [B, H, W]: 0..S-1 stuff, S + k for slot k, S + K unknown; and int32 [B, H, W] or None.
    """
    semantic = upsample(semantic_logits.float(), grid)
    panoptic = panoptic_logits(semantic, slots, num_stuff, method).argmax(1).int()
    return panoptic, semantic.argmax(1).int() if with_semantic else None


def upsample(x: Tensor, grid: Grid) -> Tensor:
    """Bilinear: [..., h, w] -> [..., H, W]."""
    rows, columns = grid.rows, grid.columns
    x = torch.lerp(x[..., rows.low, :], x[..., rows.high, :], rows.weight[:, None])
    return torch.lerp(x[..., columns.low], x[..., columns.high], columns.weight)


def _paste(slots: Slots, size: tuple[int, int]) -> Tensor:
    return paste_masks(slots.mask_logits, slots.frame, *_centers(size, slots.frame.device))


def _pixels(region: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [B, K, H, W]: which pixels lie in a region [B, K, 4]."""
    return inside_boxes(region, *_centers(size, region.device))


def _centers(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.arange(size[1], device=device) + 0.5, torch.arange(size[0], device=device) + 0.5
