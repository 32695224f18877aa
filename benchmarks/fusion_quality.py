#!/usr/bin/env python
"""PQ of the same weights under each panoptic head, and the time that the head takes per image.

    python benchmarks/fusion_quality.py --checkpoint runs/demo/model.pt >> benchmarks/results/fusion_quality.jsonl

One JSON line per head, on the validation set of the checkpoint's config. The heuristic merge runs twice: with the
thresholds of the config, and with the usual ones of its authors' baselines (score 0.5, overlap 0.5).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from upsnet.config import parse_config
from upsnet.data.loader import open_dataset
from upsnet.engine.evaluate import evaluate
from upsnet.models.checkpoint import load_checkpoint

USUAL = ("model.panoptic.score_threshold=0.5", "model.panoptic.overlap_threshold=0.5")
HEADS = (("unified", ()), ("official", ()), ("heuristic", ()), ("heuristic", USUAL))


class Timer:
    """Seconds spent in a module's forward pass."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds, self.start = 0.0, 0.0
        module.register_forward_pre_hook(self.begin)
        module.register_forward_hook(self.end)

    def begin(self, *_: object) -> None:
        """Before the pass."""
        self.start = self.now()

    def end(self, *_: object) -> None:
        """After the pass."""
        self.seconds += self.now() - self.start

    @staticmethod
    def now() -> float:
        """Seconds, when the device has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Scores every head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    checkpoint = load_checkpoint(args.checkpoint)
    for method, overrides in HEADS:
        changes = ["evaluate.instance=false", f"model.panoptic.method={method}", *overrides]
        config = parse_config(checkpoint.config.dump(), changes, source=str(args.checkpoint))
        dataset = open_dataset(config.data, "val", checkpoint.categories)
        model = replace(checkpoint, config=config).build().to(device, memory_format=torch.channels_last)
        timer = Timer(model.panoptic_head)
        metrics = evaluate(model, dataset, config, device)["panoptic"]
        scores = {f"pq_{group.lower()}": metrics[group]["pq"] for group in ("All", "Things", "Stuff")}
        row: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "torch": torch.__version__}
        row |= {"checkpoint": str(args.checkpoint), "images": len(dataset), "method": method, "overrides": overrides}
        row |= {k: round(v, 2) for k, v in scores.items()}
        row["head_ms_per_image"] = round(1000 * timer.seconds / len(dataset), 2)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
