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
        method: `unified`: an instance exists in its region only, and an absent one explains 0. `heuristic`: the first
            mask that is on wins, and `unknown` wins where a thing does with no mask on.

    Returns:
        float32 [B, S + K + 1, H, W].
    """
    x, y = pixel_centers((semantic.shape[-2], semantic.shape[-1]), semantic.device)
    valid, inside = slots.valid[..., None, None], inside_boxes(slots.region, x, y)
    best_thing = semantic[:, num_stuff:].amax(1, keepdim=True)
    mask = paste_masks(slots.mask_logits, slots.frame, x, y)
    if method == "heuristic":
        instances, explained = torch.where(inside & (mask > 0), ALWAYS, NEVER), torch.zeros_like(best_thing)
    else:
        own = torch.where(inside, class_logits(semantic, slots.labels, num_stuff), 0)
        instances = torch.where(inside, own + mask, NEVER)
        explained = own.where(valid, 0).amax(1, keepdim=True).clamp(min=0)
    return torch.cat([semantic[:, :num_stuff], instances.where(valid, NEVER), best_thing - explained], dim=1)


def class_logits(semantic: Tensor, labels: Tensor, num_stuff: int) -> Tensor:
    """The semantic logits [B, K, H, W] of the classes of labels [B, K]."""
    channel = semantic_from_label(labels, num_stuff)[..., None, None]
    return semantic.gather(1, channel.expand(-1, -1, *semantic.shape[-2:]))


def keep_instances(slots: Slots, size: tuple[int, int], overlap: Fraction) -> Tensor:
    """Mask removal: drops what is mostly taken by kept instances of the same label before it, and what is empty.

    Args:
        slots: all, in order of falling score.
        size: (H, W) of the result.
        overlap: share of the own pixels (mask logit > 0) above which an instance goes; the arithmetic is exact.

    Returns:
        bool [B, K].
    """
    x, y = pixel_centers(size, slots.frame.device)
    mask = inside_boxes(slots.region, x, y) & (paste_masks(slots.mask_logits, slots.frame, x, y) > 0)
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


def pixel_centers(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The centres x [W] and y [H] of the pixels of a result of `size` = (H, W)."""
    return torch.arange(size[1], device=device) + 0.5, torch.arange(size[0], device=device) + 0.5
