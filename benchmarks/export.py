#!/usr/bin/env python
"""An exported model against the model: time, memory, file size and agreement, in one run.

    python benchmarks/export.py --checkpoint runs/demo/model.pt --size 800 1344 >> benchmarks/results/export.jsonl
    python benchmarks/export.py --config configs/coco_r50.yaml --size 800 1344 >> benchmarks/results/export.jsonl

One JSON line per form, each measured in a fresh process: `eager`, `pt2` (the loaded `torch.export` graph) and `onnx`
(onnxruntime). With `--config` the weights are random: the time of the network does not depend on them, only how many
instances are fused does.
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
from upsnet.config import load_config
from upsnet.data.known_categories import known_categories
from upsnet.data.shapes import Shapes
from upsnet.engine.checkpoint import Checkpoint, save_checkpoint
from upsnet.inference.export import export_graph
from upsnet.models.build import build_model

FORMS = ("eager", "pt2", "onnx")
REPEATS = 3


def random_checkpoint(config_path: str, path: Path) -> None:
    """A model of a COCO config with random weights."""
    config = load_config(config_path)
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
    torch.nn.init.normal_(model.instance_head.cls_score.weight, std=0.2)
    save_checkpoint(path, Checkpoint(config, categories, model.state_dict()))


def measure(path: Path, size: tuple[int, int]) -> dict[str, Any]:
    """One form in this process."""
    predictor = PanopticPredictor.from_checkpoint(path)
    image = Shapes(2, size, seed=5)[1].image
    prediction = predictor(image)
    walls, before = [], _cpu_seconds()
    for _ in range(REPEATS):
        start = time.perf_counter()
        predictor(image)
        walls.append(1000 * (time.perf_counter() - start))
    cpu = (_cpu_seconds() - before) / REPEATS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {"median_ms": round(statistics.median(walls), 1), "cpu_s": round(cpu, 3), "peak_mb": round(peak)}
    things = sum(s.is_thing for s in prediction.segments)
    return {
        **row,
        "file_mb": round(path.stat().st_size / 2**20, 1),
        "segments": len(prediction.segments),
        "things": things,
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
    args = parser.parse_args()
    size = (args.size[0], args.size[1])
    if args.measure:
        print(json.dumps(measure(args.measure, size)))
        return
    machine = f"{platform.machine()} CPU"
    common = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "threads": torch.get_num_threads()}
    common |= {"torch": torch.__version__, "model": str(args.checkpoint or args.config), "size": size}
    with tempfile.TemporaryDirectory() as folder:
        path = args.checkpoint
        if path is None:
            path = Path(folder) / "model.pt"
            random_checkpoint(args.config, path)
        eager_cpu = None
        for form in FORMS:
            row: dict[str, Any] = {"form": form}
            target = path
            if form != "eager":
                target = Path(folder) / f"model.{form}"
                start = time.perf_counter()
                agreement = export_graph(path, target, size=size)
                assert agreement is not None
                row |= {"export_s": round(time.perf_counter() - start, 1), "differing_pixels": agreement.disagreement}
            command = [sys.executable, __file__, "--measure", str(target), "--size", *map(str, size)]
            row |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            eager_cpu = eager_cpu or row["cpu_s"]
            print(json.dumps({**common, **row, "cpu_over_eager": round(row["cpu_s"] / eager_cpu, 2)}), flush=True)


if __name__ == "__main__":
    main()
