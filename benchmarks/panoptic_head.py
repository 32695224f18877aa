#!/usr/bin/env python
"""The panoptic head by each implementation: time, memory and bytes moved, against the naive volume of logits.

    python benchmarks/panoptic_head.py | tee -a benchmarks/results/panoptic_head.jsonl

One JSON line per case, each measured in a fresh process. `naive` upsamples the semantic logits, stacks a plane per
stuff class and instance, and takes the argmax; `heuristic` is the merge of Kirillov et al. 2018 by the fastest
implementation. `naive_over_this` above 1 means faster than naive. Logits are smooth random fields with some noise, as
networks give; `--noise` makes them white, which is the worst case for `streaming`. A naive case that needs more than
half of the free memory is printed as skipped. On a GPU `copy_ms` is a measured device-to-device copy of `minimum_mb`:
the logits and masks read once, the map written once; `removal_ms` and `kernel_ms` are the two stages of `triton`, the
second over all instances.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upsnet.ops.panoptic_fusion import reference
from upsnet.ops.panoptic_fusion.pipeline import implementation_for, panoptic_map
from upsnet.ops.panoptic_fusion.slots import STRIDE, Slots, place_slots

SIZES = (((800, 1333), 53, 80), ((1024, 2048), 11, 8))
INSTANCES, BATCHES = (0, 30, 100), (1, 4, 8)
OVERLAP = 0.3
MASK = 28

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def make_inputs(case: dict[str, Any], device: torch.device) -> Inputs:
    """Semantic logits at 1/4, boxes, labels, valid and mask logits; the same for every implementation."""
    g = torch.Generator().manual_seed(0)
    (height, width), batch, count, things = case["size"], case["batch"], max(1, case["instances"]), case["things"]
    cells = (-(-height // STRIDE), -(-width // STRIDE))
    shape = (batch, case["classes"], *cells)
    logits = torch.randn(shape, generator=g)
    if not case["noise"]:
        coarse = torch.randn(*shape[:2], *(-(-n // 12) for n in cells), generator=g) * 4
        logits.mul_(0.2).add_(F.interpolate(coarse, cells, mode="bicubic"))
    scale = torch.tensor([width, height])
    corner = torch.rand(batch, count, 2, generator=g) * scale
    side = torch.rand(batch, count, 2, generator=g).square() * 0.6 * scale + 8
    boxes = torch.cat([corner - side / 2, corner + side / 2], 2)
    labels = torch.randint(1, things + 1, (batch, count), generator=g)
    valid = torch.full((batch, count), case["instances"] > 0)
    masks = F.interpolate(torch.randn(batch, count, 4, 4, generator=g) * 4 + 1, size=MASK, mode="bilinear")
    return tuple(t.to(device) for t in (logits, boxes, labels, valid, masks))  # type: ignore[return-value]


def naive(inputs: Inputs, size: tuple[int, int], num_stuff: int) -> Tensor:
    """The full volume, as one would write it first."""
    logits, *instances = inputs
    slots = place_slots(*instances, size)
    slots = replace(slots, valid=reference.keep_instances(slots, size, Fraction(OVERLAP).limit_denominator(100)))
    semantic = F.interpolate(logits, scale_factor=STRIDE, mode="bilinear")[..., : size[0], : size[1]]
    return reference.panoptic_logits(semantic, slots, num_stuff).argmax(1).int()


def naive_bytes(case: dict[str, Any]) -> int:
    """What `naive` holds at its peak, roughly: upsampled logits, two volumes, three planes per instance."""
    planes = case["classes"] + 2 * (case["classes"] - case["things"] + case["instances"]) + 3 * case["instances"]
    return case["batch"] * case["size"][0] * case["size"][1] * 4 * planes


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One case in this process."""
    device = torch.device(case["device"])
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else _status("/proc/meminfo", "MemAvailable")
    if case["implementation"] == "naive" and naive_bytes(case) > free / 2:
        return {"skipped": f"needs {naive_bytes(case) / 1e9:.1f} GB, more than half of the {free / 1e9:.1f} GB free"}
    inputs, size, num_stuff = make_inputs(case, device), tuple(case["size"]), case["classes"] - case["things"]
    options = {"network_size": size, "size": size, "num_stuff": num_stuff, "overlap_threshold": OVERLAP}
    options["method"] = "heuristic" if case["implementation"] == "heuristic" else "unified"
    use = implementation_for(inputs[0])

    def run() -> Any:
        if case["implementation"] == "naive":
            return naive(inputs, size, num_stuff)
        return panoptic_map(*inputs, **options)

    minimum = sum(t.nbytes for t in inputs) + case["batch"] * size[0] * size[1] * 4
    row = {"minimum_mb": round(minimum / 1e6, 1)}
    if device.type == "cuda":
        row |= _on_gpu(run, repeats=5 if case["implementation"] == "naive" else 30)
        if case["implementation"] == "triton":
            slots = place_slots(*inputs[1:], size)
            row["removal_ms"] = _gpu_ms(lambda: use.keep_instances(slots, size, Fraction(3, 10)), 30)
            row["kernel_ms"] = _kernel_ms(inputs, slots, size, num_stuff)
        source, target = (torch.empty(minimum // 2, dtype=torch.uint8, device=device) for _ in range(2))
        row["copy_ms"] = _gpu_ms(lambda: target.copy_(source), 30)
        return row
    _warm_up(case)
    return row | _on_cpu(run, repeats=1 if case["implementation"] == "naive" else 5)


def _warm_up(case: dict[str, Any]) -> None:
    """A small case, so that what libraries set up once is not counted as memory of the first real run."""
    small = {**case, "size": (128, 128), "batch": 1}
    inputs, num_stuff = make_inputs(small, torch.device(case["device"])), case["classes"] - case["things"]
    naive(inputs, (128, 128), num_stuff)
    options = {"network_size": (128, 128), "size": (128, 128), "num_stuff": num_stuff, "overlap_threshold": OVERLAP}
    panoptic_map(*inputs, **options)


def _kernel_ms(inputs: Inputs, slots: Slots, size: tuple[int, int], num_stuff: int) -> float:
    from upsnet.ops.panoptic_fusion import triton
    from upsnet.ops.panoptic_fusion.slots import Grid

    grid = Grid.of(size, size, (inputs[0].shape[2], inputs[0].shape[3]), inputs[0].device)
    options = {"num_stuff": num_stuff, "method": "unified", "with_semantic": False}
    return _gpu_ms(lambda: triton.fuse(inputs[0], slots, grid, **options), 30)


def _on_cpu(run: Callable[[], Any], repeats: int) -> dict[str, Any]:
    before = _status("/proc/self/status", "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    run()
    peak = _status("/proc/self/status", "VmHWM") - before
    walls, start = [], _cpu_seconds()
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        walls.append(1000 * (time.perf_counter() - begin))
    cpu = (_cpu_seconds() - start) / repeats
    return {"median_ms": round(statistics.median(walls), 1), "cpu_s": round(cpu, 3), "peak_extra_mb": _mb(peak)}


def _on_gpu(run: Callable[[], Any], repeats: int) -> dict[str, Any]:
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return {"median_ms": _gpu_ms(run, repeats), "cpu_s": None, "peak_extra_mb": _mb(peak)}


def _gpu_ms(run: Callable[[], Any], repeats: int) -> float:
    """Median time by CUDA events."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(statistics.median(times[3:]), 4)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _status(path: str, key: str) -> int:
    """Bytes of a `key: n kB` line."""
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def _mb(size: int) -> float:
    return round(max(0, size) / 1e6, 1)


def main() -> None:
    """Runs every case, or, in a child process, one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", action="store_true", help="white logits: nothing can be skipped")
    parser.add_argument("--sizes", type=int, nargs="*", default=[0, 1], help="0: 800x1333, 1: 1024x2048")
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--instances", type=int, nargs="*", default=INSTANCES)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(json.loads(args.case))))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    common = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "threads": torch.get_num_threads()}
    names = ("naive", "triton" if device == "cuda" else "streaming", "heuristic")
    for size, stuff, things in (SIZES[i] for i in args.sizes):
        for instances in args.instances:
            for batch in args.batches:
                case = {"device": device, "size": size, "classes": stuff + things, "things": things}
                case |= {"instances": instances, "batch": batch, "noise": args.noise}
                naive_ms = None
                for name in names:
                    row = _in_a_fresh_process({"implementation": name, **case})
                    naive_ms = row.get("median_ms") if name == "naive" else naive_ms
                    ratio = round(naive_ms / row["median_ms"], 2) if naive_ms and "median_ms" in row else None
                    row = {"implementation": name, **case, **row, "naive_over_this": ratio}
                    print(json.dumps({**common, "torch": torch.__version__, **row}), flush=True)


def _in_a_fresh_process(case: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
