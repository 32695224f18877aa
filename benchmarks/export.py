#!/usr/bin/env python
"""An exported model against the model: time, memory, file size and agreement, in one run.

    python benchmarks/export.py --checkpoint runs/demo/model.pt --size 256 256 | tee -a benchmarks/results/export.jsonl
    python benchmarks/export.py --config configs/coco_r50.yaml --size 800 1344 | tee -a benchmarks/results/export.jsonl

One JSON line per form, each measured in a fresh process: `eager`; `compiled` (torch.compile of all but the fusion);
`pt2` (the loaded torch.export graph); `aoti` (the same as machine code); `onnx` (onnxruntime, onnxruntime-gpu on a
GPU); `cuda_graph` (on a GPU). With `--config` the weights are random, made so that the picture is full of things: the
time of the network does not depend on them, only how many instances are fused does. `cpu_over_eager` and
`ms_over_eager` below 1 are better than the model as it is.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from upsnet import PanopticPredictor
from upsnet.categories import known_categories
from upsnet.config import load_config
from upsnet.data.shapes import Shapes
from upsnet.export.exporter import export_graph
from upsnet.models.build import build_model
from upsnet.models.checkpoint import Checkpoint, save_checkpoint

FORMS = ("eager", "compiled", "pt2", "aoti", "onnx", "cuda_graph")
ON_GPU = torch.cuda.is_available()
REPEATS = 5


def random_checkpoint(config_path: str, path: Path) -> None:
    """A model of a COCO config with random weights."""
    config = load_config(config_path, ["model.panoptic.score_threshold=0.3"])
    categories = known_categories("coco")
    torch.manual_seed(0)
    model = build_model(config, categories, pretrained=False)
    for name, parameter in model.backbone.named_parameters():
        if name.endswith("bn3.weight"):  # so that activations stay of one scale
            torch.nn.init.constant_(parameter, 0.3)
    # Prediction layers far from zero: something is found, and scores are no near-ties that rounding would reorder.
    assert model.instance_head is not None
    assert model.rpn is not None
    assert model.semantic_head is not None
    for layer in (model.rpn.cls_logits, *model.semantic_head.score):
        torch.nn.init.normal_(layer.weight, std=0.5)
    torch.nn.init.normal_(model.instance_head.cls_score.weight, std=1.0)
    torch.nn.init.constant_(model.instance_head.mask_score.bias, 20.0)
    save_checkpoint(path, Checkpoint(config, categories, model.state_dict()))


def measure(path: Path, form: str, size: tuple[int, int]) -> dict[str, Any]:
    """One form in this process."""
    predictor = PanopticPredictor.from_checkpoint(path, cuda_graph=form == "cuda_graph")
    if form == "compiled":
        predictor.model.raw = torch.compile(predictor.model.raw)  # type: ignore[union-attr, method-assign]
    image = Shapes(2, size, seed=5)[1].image
    start = time.perf_counter()
    prediction = predictor(image)
    first = time.perf_counter() - start
    predictor(image)  # a CUDA graph is recorded when a size comes for the second time
    walls, before = [], _cpu_seconds()
    for _ in range(REPEATS):
        start = time.perf_counter()
        predictor(image)
        walls.append(1000 * (time.perf_counter() - start))
    cpu = (_cpu_seconds() - before) / REPEATS
    peak = torch.cuda.max_memory_allocated() / 2**20 if ON_GPU else 0
    return {
        "first_s": round(first, 1),
        "median_ms": round(statistics.median(walls), 1),
        "cpu_s": round(cpu, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **({"gpu_peak_mb": round(peak)} if ON_GPU else {}),
        "file_mb": round(path.stat().st_size / 2**20, 1),
        "segments": len(prediction.segments),
        "things": sum(s.is_thing for s in prediction.segments),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Exports, verifies and measures every form, or, in a child process, measures one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="a trained model")
    source.add_argument("--config", help="a COCO config, with random weights")
    source.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=[f for f in FORMS if ON_GPU or f != "cuda_graph"])
    args = parser.parse_args()
    size = (args.size[0], args.size[1])
    if args.measure:
        print(json.dumps(measure(args.measure, args.forms[0], size)))
        return
    machine = torch.cuda.get_device_name() if ON_GPU else f"{platform.machine()} CPU, {_cpu_name()}"
    common = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "threads": torch.get_num_threads()}
    common |= {"torch": torch.__version__, "model": str(args.checkpoint or args.config), "size": size}
    with tempfile.TemporaryDirectory() as folder:
        path = args.checkpoint
        if path is None:
            path = Path(folder) / "model.pt"
            random_checkpoint(args.config, path)
        eager: dict[str, Any] = {}
        for form in args.forms:
            target, exported = export(path, form, size, Path(folder))
            command = [sys.executable, __file__, "--measure", str(target), "--forms", form, "--size", *map(str, size)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            eager = row if form == "eager" else eager
            pairs = (("cpu", "cpu_s"), ("ms", "median_ms")) if eager else ()
            ratios = {f"{name}_over_eager": round(row[key] / eager[key], 2) for name, key in pairs}
            print(json.dumps({**common, "form": form, **exported, **row, **ratios}), flush=True)


def export(path: Path, form: str, size: tuple[int, int], folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file of a form, and what its export cost and how it agrees."""
    if form not in ("pt2", "aoti", "onnx"):
        return path, {}
    target = folder / f"{form}.{'onnx' if form == 'onnx' else 'pt2'}"
    device = torch.device("cuda" if ON_GPU else "cpu") if form == "aoti" else None
    start = time.perf_counter()
    agreement = export_graph(path, target, size=size, compile_for=device)
    assert agreement is not None
    cost = {"export_s": round(time.perf_counter() - start, 1), "differing_pixels": agreement.disagreement}
    return target, {**cost, "compared_things": agreement.instances}


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
