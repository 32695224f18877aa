"""Rules for the sizes of images."""

from __future__ import annotations


def exact_scale(size: tuple[int, int], short_side: int, max_side: int) -> float:
    """`short_side` / shorter side, unless the longer one would then round to more than `max_side`."""
    scale = short_side / min(size)
    return max_side / max(size) if round(scale * max(size)) > max_side else scale
