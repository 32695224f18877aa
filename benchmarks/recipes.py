#!/usr/bin/env python
"""What a training option does to PQ: half of the demo's schedule on `shapes`, three seeds an option.

    python benchmarks/recipes.py --options base copy_paste | grep option >> benchmarks/results/recipes.jsonl

One JSON line a run, three to fourteen CPU minutes each (one thread). Seeds scatter by half a point of PQ, and so do
machines and precisions: look at the mean of the differences to `base` of the same seed and the same machine.
`rare` and `repeat_factor` train on a set in which nine of ten pictures that show the first thing class are left out;
`rare_pq` is that class's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from upsnet.config import load_config
from upsnet.data.shapes import Shapes
from upsnet.engine.train import Trainer
from upsnet.io.predictions import write_samples
from upsnet.ops.backend import autocast_dtype

ROOT = Path(__file__).parents[1]
SCHEDULE = [
    "train.iterations=425",
    "train.checkpoint_every=425",
    "train.evaluate_every=425",
    "evaluate.panels=0",
    "evaluate.instance=false",
    "data.num_workers=0",
]
MANY_ROIS = ["model.rpn.post_nms_train=200", "model.instance.roi_samples=128"]
OPTIONS: dict[str, list[str]] = {
    "base": [],
    "scale_jitter": ["data.augment.crop_size=[128,128]", "data.augment.jitter_scale=[0.7,1.5]"],
    "copy_paste": ["data.augment.copy_paste=0.5"],
    "adamw": ["train.optimizer=adamw", "train.lr=0.001", "train.weight_decay=0.05"],
    "mask_pool_7": ["model.instance.mask_pool=7"],
    "mask_small": ["model.instance.mask_channels=32", "model.instance.mask_layers=1"],
    "mask_large": ["model.instance.mask_channels=128", "model.instance.mask_layers=4"],
    "mask_slots_all": MANY_ROIS,
    "mask_slots_quarter": [*MANY_ROIS, "model.instance.mask_slots=8"],
    "rare": [],
    "repeat_factor": ["data.repeat_threshold=0.3"],
}
WITH_RARE_CLASS = ("rare", "repeat_factor")


def write_rare(folder: Path) -> list[str]:
    """Writes the set with a rare class, and gives the overrides that train on it."""
    data = Shapes(1500, (128, 128), seed=0)
    rare = data.categories.num_stuff
    samples = (data[i] for i in range(len(data)))
    write_samples(
        (s for n, s in enumerate(samples) if n % 10 == 0 or rare not in s.classes), data.categories, folder, "train"
    )
    source = f"{{format: coco, image_dir: {folder}/train, annotation_file: {folder}/annotations/panoptic_train.json}}"
    return [f"data.train={source}"]


def run(option: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains once."""
    overrides = [*SCHEDULE, f"seed={seed}", *OPTIONS[option]]
    if option in WITH_RARE_CLASS:
        overrides += write_rare(folder / "data")
    config = load_config(ROOT / "configs" / "shapes_r18.yaml", overrides)
    start = time.process_time()
    trainer = Trainer(config, folder / "run", torch.device("cpu"))
    metrics = trainer.run()
    assert metrics is not None
    found = metrics["panoptic"]
    row = {"option": option, "seed": seed, "iterations": 425, "pq": found["All"]["pq"], "things": found["Things"]["pq"]}
    row |= {"stuff": found["Stuff"]["pq"], "cpu_s": round(time.process_time() - start)}
    if option in WITH_RARE_CLASS:
        rare = trainer.categories[trainer.categories.num_stuff]
        row["rare_pq"] = found["per_class"][str(rare.id)]["pq"]
    return row


def main() -> None:
    """Prints one JSON line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--options", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()} CPU, {os.cpu_count()} cores, 1 thread",
        "precision": "fp32" if autocast_dtype("auto", torch.device("cpu")) is None else "bf16",
    }
    for seed in args.seeds:
        for option in args.options:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps({**machine, **run(option, seed, Path(folder))}), flush=True)


if __name__ == "__main__":
    main()
