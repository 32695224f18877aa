#!/usr/bin/env python
"""RoIAlign over a pyramid: our embedding bag against torchvision's operator, called level by level.

    python benchmarks/roi_align.py | tee -a benchmarks/results/roi_align.jsonl

One JSON line per case; `torchvision_over_ours` above 1 means that ours is faster.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from upsnet.ops.roi_align import FeatureLayout, assign_levels, roi_align

STRIDES = (4, 8, 16, 32)
CASES: tuple[dict[str, Any], ...] = (
    {"batch": 8, "channels": 64, "size": (128, 128), "rois": 24, "bins": 7},
    {"batch": 4, "channels": 64, "size": (256, 256), "rois": 96, "bins": 7},
    {"batch": 2, "channels": 256, "size": (800, 1344), "rois": 512, "bins": 7},
    {"batch": 2, "channels": 256, "size": (800, 1344), "rois": 128, "bins": 14},
    {"batch": 1, "channels": 256, "size": (800, 1344), "rois": 1000, "bins": 7},
)


def torchvision_pyramid(levels: list[Tensor], boxes: Tensor, bins: int, which: Tensor) -> Tensor:
    """The usual way: one call per level over the RoIs of that level."""
    image = torch.arange(len(boxes), device=boxes.device)[:, None, None].expand(*boxes.shape[:2], 1)
    rois, which = torch.cat([image.to(boxes), boxes], 2).flatten(0, 1), which.flatten()
    pooled = boxes.new_zeros(len(rois), levels[0].shape[1], bins, bins)
    for number, (level, stride) in enumerate(zip(levels, STRIDES, strict=True)):
        chosen = (which == number).nonzero()[:, 0]
        part = torchvision_roi_align(level, rois[chosen], bins, 1 / stride, sampling_ratio=2, aligned=True)
        pooled = pooled.index_put((chosen,), part)
    return pooled


def median_ms(run: Callable[[], Any], device: torch.device, repeats: int = 7) -> float:
    """Median wall time after one warm-up run."""
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def measure(case: dict[str, Any], device: torch.device) -> Iterator[dict[str, Any]]:
    """One row without and one with the backward pass."""
    torch.manual_seed(0)
    batch, channels, (height, width) = case["batch"], case["channels"], case["size"]
    shapes = [(batch, channels, -(-height // s), -(-width // s)) for s in STRIDES]
    levels = [torch.randn(s, device=device).contiguous(memory_format=torch.channels_last) for s in shapes]
    corner = torch.rand(batch, case["rois"], 2, device=device) * torch.tensor([width, height], device=device) * 0.8
    side = torch.exp(torch.rand(batch, case["rois"], 2, device=device) * 4) * min(height, width) / 60
    boxes = torch.cat([corner, corner + side], 2)
    which = assign_levels(boxes, min(height, width) / 3.6, len(STRIDES))

    def ours() -> Tensor:
        return roi_align(FeatureLayout.of(levels, STRIDES), boxes, case["bins"], which)

    def theirs() -> Tensor:
        return torchvision_pyramid(levels, boxes, case["bins"], which)

    difference = float((ours() - theirs()).abs().max())
    yield _row(case, False, median_ms(ours, device), median_ms(theirs, device), difference)
    for level in levels:
        level.requires_grad_()
    found = (median_ms(lambda run=run: run().sum().backward(), device) for run in (ours, theirs))  # type: ignore[misc]
    yield _row(case, True, *found, difference)


def _row(case: dict[str, Any], backward: bool, ours: float, theirs: float, difference: float) -> dict[str, Any]:
    times = {
        "ours_ms": round(ours, 2),
        "torchvision_ms": round(theirs, 2),
        "torchvision_over_ours": round(theirs / ours, 2),
    }
    return {**case, "backward": backward, **times, "max_difference": difference}


def main() -> None:
    """Runs every case."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    common = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "threads": torch.get_num_threads()}
    for case in CASES:
        for row in measure(case, device):
            print(json.dumps({**common, "torch": torch.__version__, **row}), flush=True)


if __name__ == "__main__":
    main()
