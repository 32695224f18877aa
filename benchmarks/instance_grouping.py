#!/usr/bin/env python
"""What Panoptic-DeepLab does after its network, at 1024x2048 with 19 classes and 200 centres: time and memory.

    python benchmarks/instance_grouping.py | tee -a benchmarks/results/instance_grouping.jsonl

One JSON line for each kind of offsets: `smooth` ones point to the centre within a pixel or two, as those of a trained
network; `noise` adds 60 pixels of noise, and `wild` 1000: there every centre may be the nearest to a tile. On the CPU,
CPU seconds: `fuse_s` of the whole, from maps at 1/4 to segments, and `fuse_mb`, the memory that it adds at its peak;
`group_s` of the grouping of the thing pixels alone; `broadcast_s` of its definition, in bands of rows, since all
distances at once take gigabytes; `kd_tree_s` of scipy's cKDTree, with building (None without scipy). The ratios
`..._over_group` are above 1 where ours is faster, medians of interleaved runs. `differing` are thing pixels on which
the KD-tree chooses another centre although the two nearest are 1e-3 pixels or more apart. On a GPU, microseconds by
CUDA events, and whether the host waited for the device. Each kind runs in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from training import machine

from upsnet.ops.instance_grouping import reference
from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.instance_grouping.pipeline import fuse, implementation_for
from upsnet.ops.instance_grouping.placement import Placement

SIZE, INPUT, CELLS = (1024, 2048), (1025, 2049), (257, 513)
STUFF, THINGS, CENTERS = 11, 8, 200
BAND = 64
NOISE = {"smooth": 1.0, "noise": 60.0, "wild": 1000.0}
"""Standard deviation that is added to the offsets, in pixels of the input."""
OPTIONS = GroupingOptions(top_k=CENTERS)
REST: dict[str, Any] = {"num_stuff": STUFF, "options": OPTIONS, "align_corners": True}


def make_maps(noise: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, heat and offsets of one image at 1/4; about half of the pixels are things.

    Args:
        noise: standard deviation that is added to the offsets, in pixels of the input.
        device: of the maps.
    """
    g = torch.Generator().manual_seed(0)
    height, width = CELLS
    coarse = torch.randn(1, STUFF + THINGS, height // 12, width // 12, generator=g) * 4
    logits = F.interpolate(coarse, CELLS, mode="bicubic") + 0.2 * torch.randn(1, STUFF + THINGS, *CELLS, generator=g)
    logits[:, STUFF:] += 1
    # One centre in each cell of a grid, so that no two are in one window.
    y, x = (n.flatten() for n in torch.meshgrid(torch.arange(10), torch.arange(20), indexing="ij"))
    jitter = torch.rand(2, CENTERS, generator=g) * 0.8 + 0.1
    centers = torch.stack([((y + jitter[0]) * height / 10).long(), ((x + jitter[1]) * width / 20).long()], 1)
    cells = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), 2)
    squared = (cells[:, :, None] - centers).square().sum(3)
    heat = ((-squared / 8).exp() * torch.linspace(0.5, 1, CENTERS)).amax(2)
    offset = (centers[squared.argmin(2)] - cells).movedim(2, 0).float()
    offset = offset + torch.randn(offset.shape, generator=g) * noise / 4
    return logits.to(device), heat[None, None].to(device), offset[None].to(device)


def measure(noise: float, device: torch.device, repeats: int) -> dict[str, Any]:
    """The numbers of one kind of offsets."""
    maps = make_maps(noise, device)
    use = implementation_for(maps[0])
    placement = Placement(CELLS, INPUT, SIZE, SIZE, True)
    grid = placement.grid(device)
    points, _, valid = use.find_centers(use.upsample(maps[1], grid)[:, 0], OPTIONS)
    is_thing = use.best_channels(maps[0], grid) >= STUFF
    offset = use.upsample(maps[2] * torch.tensor(placement.pixels_per_cell(), device=device)[:, None, None], grid)
    row = {"centers": int(valid.sum()), "thing_share": round(float(is_thing.float().mean()), 3)}

    def whole() -> Any:
        return fuse(*maps, [SIZE], [SIZE], input_size=INPUT, **REST)

    def group() -> Tensor:
        return use.group_pixels(offset, points, valid, is_thing)

    if device.type == "cuda":
        return row | {"fuse_us": gpu_us(whole), "group_us": gpu_us(group), "fuse_waits": waits(whole)}
    fuse(*(x[..., :33, :33] for x in maps), [(129, 129)], [(129, 129)], input_size=(129, 129), **REST)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    whole()
    row["fuse_mb"] = round((_status("VmHWM") - before) / 1024, 1)
    row["fuse_s"] = round(statistics.median(cpu_seconds(whole) for _ in range(repeats)), 3)
    peers: dict[str, Callable[[], Tensor]] = {
        "group": group,
        "broadcast": lambda: broadcast(offset, points, valid, is_thing),
        "kd_tree": lambda: kd_tree(offset, points, valid, is_thing),
    }
    try:
        from scipy import spatial  # noqa: F401
    except ImportError:
        peers.pop("kd_tree")
    times: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(repeats):
        for name, run in peers.items():
            times[name].append(cpu_seconds(run))
    for name in ("group", "broadcast", "kd_tree"):
        row[f"{name}_s"] = round(statistics.median(times[name]), 4) if name in times else None
    for name in ("broadcast", "kd_tree"):
        pairs = zip(times.get(name, ()), times["group"], strict=False)
        ratios = [peer / ours for peer, ours in pairs]
        row[f"{name}_over_group"] = round(statistics.median(ratios), 1) if ratios else None
    if "kd_tree" in peers:
        row["differing"] = differing(peers["kd_tree"](), group(), offset, points, valid)
    return row


def broadcast(offset: Tensor, points: Tensor, valid: Tensor, is_thing: Tensor) -> Tensor:
    """The definition, in bands of rows: int32 [1, H, W]."""
    bands = []
    for top in range(0, SIZE[0], BAND):
        rows = slice(top, top + BAND)
        moved = points - torch.tensor([top, 0])
        bands.append(reference.group_pixels(offset[:, :, rows], moved, valid, is_thing[:, rows]))
    return torch.cat(bands, 1)


def kd_tree(offset: Tensor, points: Tensor, valid: Tensor, is_thing: Tensor) -> Tensor:
    """The same by scipy's KD-tree, of the thing pixels alone."""
    from scipy.spatial import cKDTree

    where = is_thing[0].nonzero()
    pointed = where + offset[0].movedim(0, 2)[is_thing[0]]
    _, nearest = cKDTree(points[valid].numpy()).query(pointed.numpy())
    instance = torch.zeros_like(is_thing, dtype=torch.int32)
    instance[is_thing] = torch.from_numpy(nearest).int() + 1
    return instance


def differing(first: Tensor, second: Tensor, offset: Tensor, points: Tensor, valid: Tensor) -> int:
    """Pixels with another centre in two results [1, H, W] whose distances differ by 1e-3 pixels or more."""
    where = (first != second)[0].nonzero()
    pointed = where + offset[0, :, where[:, 0], where[:, 1]].T.double()
    near = [points[valid][ids[0, where[:, 0], where[:, 1]].long() - 1] for ids in (first, second)]
    distances = [(pointed - own).square().sum(1).sqrt() for own in near]
    return int(((distances[0] - distances[1]).abs() >= 1e-3).sum())


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of all threads."""

    def now() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    start = now()
    run()
    return now() - start


def gpu_us(run: Callable[[], Any], repeats: int = 30) -> float:
    """Median time by CUDA events."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end))
    return round(statistics.median(times[3:]), 1)


def waits(run: Callable[[], Any]) -> bool:
    """Whether the host waits for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return any("synchroniz" in str(warning.message) for warning in found)


def _status(key: str) -> int:
    """Kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def main() -> None:
    """Prints a row for each kind of offsets, or for one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="runs on the CPU; the median counts")
    parser.add_argument("--offsets", choices=NOISE, help="one kind; by default all")
    args = parser.parse_args()
    if args.offsets is None:
        for name in NOISE:
            command = [sys.executable, __file__, "--repeats", str(args.repeats), "--offsets", name]
            subprocess.run(command, check=True)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    common = {"date": time.strftime("%Y-%m-%d"), "machine": machine(device.type), "torch": torch.__version__}
    case = {"size": SIZE, "classes": STUFF + THINGS}
    row = measure(NOISE[args.offsets], device, args.repeats)
    print(json.dumps({**common, **case, "offsets": args.offsets, **row}), flush=True)


if __name__ == "__main__":
    main()
