#!/usr/bin/env python
"""A training step beside torchvision's Mask R-CNN: time, peak memory, operators and waits for the host.

    python benchmarks/training.py | tee -a benchmarks/results/training.jsonl
    python benchmarks/training.py --cases r50-800x1333-b8-recorded r18 --device cuda

One JSON line per case. Both sides see the same pictures and the same objects (8 an image), train the same layers (stem
and res2 frozen, frozen norms) by the same optimiser from random weights, and sample alike: 256 anchors, 2,000
proposals before and after NMS, 512 RoIs. torchvision's model has no semantic and no panoptic head; ours has both, with
all eight losses on, for COCO's 133 classes. Our mask branch trains on 32 foreground RoIs an image and the true boxes,
torchvision's on every foreground RoI (`mask_rois`: images together). Each side lives in a process of its own; their
steps take turns. `cpu_s` counts all threads; `peak_mb` is what steps add to the built model: gradients, momentum,
activations. `tv_over_ours` above 1 means that ours takes less. Batches are ready before the clock starts, so no step
waits for data. `recorded`: our step is a CUDA graph (torchvision's cannot be one). CUDA runs in bf16 autocast, the CPU
in float32. `operators` are ATen calls (on CUDA: kernels). `ddp`: as one of several processes, here the only one:
torchvision's under `DistributedDataParallel`, ours with `engine.distributed.FlatGradients`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.distributed as dist
from operator_counts import count_on_cpu, count_on_cuda
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from upsnet.categories import known_categories
from upsnet.config import load_config
from upsnet.data.loader import collate
from upsnet.engine.distributed import FlatGradients
from upsnet.engine.optim import add_gradients, copy_losses
from upsnet.models.build import build_model
from upsnet.models.recording import RecordedFunction, with_slots_padded
from upsnet.ops.backend import training_format
from upsnet.structures import PanopticBatch, Sample

ROOT = Path(__file__).parents[1]
SIZES = {"r50": (800, 1333), "r18": (256, 256)}
FORMS = ("", "-recorded")
CASES = [
    "r50-320x480-b2",
    *(f"{n}-{h}x{w}-b{b}{form}" for form in FORMS for n, (h, w) in SIZES.items() for b in (1, 2, 8)),
    "r50-320x480-b2-ddp",
    "r50-800x1333-b2-recorded-ddp",
]
OBJECTS = 8
OPTIONS = ("model.backbone.weights=null", "model.instance.mask_slots=32")
LOSS_SCALE = 1e-3
"""Keeps random weights where they are: every step then does the same work."""


def make_batch(size: tuple[int, int], count: int) -> PanopticBatch:
    """Noise over two stuff classes and `OBJECTS` ellipses an image, of 1/8 to 1/3 of the height."""
    samples, (height, width) = [], size
    categories = known_categories("coco")
    for index in range(count):
        rng = np.random.default_rng(index)
        ids = np.ones(size, dtype=np.int32)
        ids[height // 2 :] = 2
        y, x = np.mgrid[:height, :width]
        for number in range(OBJECTS):
            ry, rx = rng.uniform(1 / 16, 1 / 6, 2) * height
            cy, cx = (number // 4 * 2 + 1) * height / 4, (number % 4 * 2 + 1) * width / 8
            ids[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = 3 + number
        classes = np.concatenate([[0, 1], rng.integers(categories.num_stuff, len(categories), OBJECTS)])
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        samples.append((Sample(image, ids, classes, np.zeros(len(classes), bool), index, f"{index}.jpg"), index))
    return collate(samples, categories.num_stuff, 32)


class Ours:
    """Our model, all losses on."""

    def __init__(self, case: dict[str, Any], batch: PanopticBatch, device: torch.device) -> None:
        name = {"r50": "resnet50", "r18": "resnet18"}[case["model"]]
        config = load_config(ROOT / "configs/coco_r50.yaml", [*OPTIONS, f"model.backbone.name={name}"])
        model = build_model(config, known_categories("coco"), pretrained=False)
        self.model: nn.Module = model
        weights = {name: weight * LOSS_SCALE for name, weight in config.model.loss.weights().items()}
        model.to(device, memory_format=training_format(device))  # type: ignore[call-overload]
        self.batch = batch.to(device)
        calm(model.backbone)
        assert model.instance_head is not None
        self.mask_layer: nn.Module = model.instance_head.mask_layers
        self.run = partial(add_gradients, model, weights, "bf16" if device.type == "cuda" else "fp32", 1.0)
        self.recorded = RecordedFunction(device, copy_losses) if case["recorded"] else None
        self.batch = with_slots_padded(self.batch) if case["recorded"] else self.batch
        self.flat = FlatGradients(model) if case["ddp"] else None

    def add_gradients(self) -> None:
        """Forward, losses, backward, and the exchange of gradients."""
        _ = self.run(self.batch) if self.recorded is None else self.recorded(self.run, self.batch)
        if self.flat is not None:
            self.flat.average()


class Torchvision:
    """Its Mask R-CNN with 80 classes and the background."""

    def __init__(self, case: dict[str, Any], batch: PanopticBatch, device: torch.device) -> None:
        name = {"r50": "resnet50", "r18": "resnet18"}[case["model"]]
        backbone = resnet_fpn_backbone(
            backbone_name=name, weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
        )
        height, width = case["size"]
        self.model: nn.Module = MaskRCNN(backbone, 81, min_size=min(height, width), max_size=max(height, width))
        self.model.to(device)
        calm(backbone.body)
        self.run = self.model
        if case["ddp"]:
            self.run = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.mask_layer: nn.Module = self.model.roi_heads.mask_predictor.conv5_mask
        assert batch.target is not None
        truth = batch.target
        self.images, self.targets = [], []
        for index, (height, width) in enumerate(batch.network_sizes):
            self.images.append((batch.images[index, :, :height, :width].float() / 255).to(device))
            count = int((truth.labels[index] > 0).sum())
            masks = truth.instance_map[index, :height, :width] == torch.arange(1, count + 1)[:, None, None]
            target = {"boxes": truth.boxes[index, :count], "labels": truth.labels[index, :count], "masks": masks.byte()}
            self.targets.append({k: v.to(device) for k, v in target.items()})

    def add_gradients(self) -> None:
        """Forward, losses, backward."""
        device = self.images[0].device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = torch.stack(list(self.run(self.images, self.targets).values())).sum()
        (loss * LOSS_SCALE).backward()


def calm(resnet: nn.Module) -> None:
    """Gives frozen norms small last scales, as training does: features then stay in a normal range."""
    for name, module in resnet.named_modules():
        last = getattr(module, "bn3", None) or getattr(module, "bn2", None)
        if name.startswith("layer") and last is not None:
            last.weight.data.fill_(0.25)


class Worker:
    """One side in this process: steps when told to, and says what they took."""

    def __init__(self, case: dict[str, Any]) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(case["threads"])
        self.device = torch.device(case["device"])
        if case["ddp"]:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        side = Ours if case["side"] == "ours" else Torchvision
        self.side = side(case, make_batch(tuple(case["size"]), case["batch"]), self.device)
        parameters = [p for p in self.side.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4, fused=True)
        self.recorded, self.ddp = case["recorded"], case["ddp"]
        gc.collect()
        if self.device.type == "cpu":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            self.baseline = status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        else:
            self.baseline = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    def train_step(self) -> None:
        """Forward, losses, backward, update."""
        self.side.add_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.recorded and not self.ddp)

    def step(self) -> dict[str, float]:
        """One step and its cost so far."""
        start, cpu = time.perf_counter(), time.process_time()
        self.train_step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        cost = {"cpu_s": time.process_time() - cpu, "ms": 1000 * (time.perf_counter() - start)}
        peak = status("VmHWM") if self.device.type == "cpu" else torch.cuda.max_memory_allocated()
        return {**cost, "peak_mb": (peak - self.baseline) / 1e6}

    def counts(self) -> dict[str, int | None]:
        """Operators, waits for the host, and RoIs of the mask branch of one step."""
        found: dict[str, int | None] = {"mask_rois": None, "operators": None, "syncs": None}

        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found["mask_rois"] = len(inputs[0])

        hook = None if self.recorded else self.side.mask_layer.register_forward_pre_hook(look)
        counted = count_on_cuda(self.train_step) if self.device.type == "cuda" else count_on_cpu(self.train_step)
        if hook is not None:
            hook.remove()
        return {**found, **counted}


def status(key: str) -> int:
    """Bytes of a `key: n kB` line of this process."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(key + ":")).split()[1]) * 1024


class Child:
    """A `Worker` in a process of its own, told to step line by line."""

    def __init__(self, case: dict[str, Any]) -> None:
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        command, pipe = [sys.executable, __file__, "--worker", json.dumps(case)], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(self, what: str) -> dict[str, Any]:
        """Sends a request and waits for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{what}: the measuring process ended with code {self.process.wait()}")
        return json.loads(answer)

    def end(self) -> None:
        """Closes the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(case: dict[str, Any], requests: IO[str]) -> None:
    """The child's side of `Child`."""
    worker = Worker(case)
    for line in requests:
        print(json.dumps(getattr(worker, line.strip())()), flush=True)


def measure(name: str, device: str, repeats: int, threads: int) -> dict[str, Any]:
    """One row: both sides, taking turns."""
    pattern = r"(r\d+)-(\S+x\d+)-b(\d+)(-recorded)?(-ddp)?"
    ((model, size, batch, recorded, ddp),) = re.findall(pattern, name)
    case = {"model": model, "device": device, "size": [int(n) for n in size.split("x")], "batch": int(batch)}
    case |= {"recorded": bool(recorded), "ddp": bool(ddp), "threads": threads}
    sides = {side: Child({**case, "side": side}) for side in ("ours", "torchvision")}
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    warm_up = 2
    for _ in range(repeats + warm_up):
        for side, child in sides.items():
            steps[side].append(child.ask("step"))
    rows = {}
    for side, child in sides.items():
        cpu_s, ms = (statistics.median(s[key] for s in steps[side][warm_up:]) for key in ("cpu_s", "ms"))
        rows[side] = {
            "cpu_s": round(cpu_s, 3), "median_ms": round(ms, 1),
            "peak_mb": round(max(s["peak_mb"] for s in steps[side]), 1),
            "images_per_s": round(1000 * case["batch"] / ms, 3), **child.ask("counts"),
        }  # fmt: skip
        child.end()
    ratios = {k: round(rows["torchvision"][k] / rows["ours"][k], 3) for k in ("cpu_s", "median_ms", "peak_mb")}
    return {"case": name, **case, **rows["ours"], "torchvision": rows["torchvision"], "tv_over_ours": ratios}


def machine(device: str) -> str:
    """In words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{platform.machine()} CPU, {names[0] if names else 'unknown'}, {os.cpu_count()} cores"


def main() -> None:
    """Runs the chosen cases, or, in a child process, serves one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    cases = f"names or their beginnings; by default all on cuda, the first on the CPU ({', '.join(CASES)})"
    parser.add_argument("--cases", nargs="*", help=cases)
    parser.add_argument("--repeats", type=int, default=9, help="measured steps of each side")
    parser.add_argument("--threads", type=int, default=1, help="of each side; with one, no CPU second is spent waiting")
    parser.add_argument("--note", help="kept in every row, for example what else the machine was doing")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(json.loads(args.worker), sys.stdin)
        return
    chosen = args.cases if args.cases is not None else (CASES if args.device == "cuda" else CASES[:1])
    common = {"date": time.strftime("%Y-%m-%d"), "machine": machine(args.device), "torch": torch.__version__}
    common |= {"note": args.note} if args.note else {}
    for part in chosen:
        names = [part] if part in CASES else [name for name in CASES if name.startswith(part)]
        if not names:
            parser.error(f"no case begins with {part!r}, expected {cases}")
        for name in names:
            print(json.dumps({**common, **measure(name, args.device, args.repeats, args.threads)}), flush=True)


if __name__ == "__main__":
    main()
