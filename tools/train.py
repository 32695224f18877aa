#!/usr/bin/env python
"""Trains a model.

python tools/train.py --config configs/shapes_r18.yaml --output runs/demo train.iterations=500
torchrun --nproc-per-node 8 tools/train.py --config configs/coco_r50.yaml --output runs/coco_r50
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from upsnet.config import load_config
from upsnet.engine.data_check import check_before_training
from upsnet.engine.distributed import process_group
from upsnet.engine.evaluate import headline
from upsnet.engine.train import Trainer
from upsnet.errors import run_tool


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("--output", type=Path, help="folder of the run (default: runs/NAME of the config)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from last.pt in the folder")
    start.add_argument(
        "--init", type=Path, help="weights to start from: ours, the official UPSNet's, torchvision's, detectron2's"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    output = args.output or Path("runs") / Path(args.config).stem
    with process_group() as device:
        trainer = Trainer(config, output, device, resume=args.resume, init=args.init)
        if trainer.report is not None and trainer.is_main:
            print("\n".join(trainer.report.lines()))
        if trainer.is_main:
            for line in check_before_training(config, trainer.train_set, trainer.val_set, source=args.config):
                print(f"warning: {line}", file=sys.stderr)
        name, value = headline(trainer.run())
        if trainer.is_main:
            print(f"last {name} {value:.2f}, best {name} {trainer.best:.2f}; model: {output / 'model.pt'}")


if __name__ == "__main__":
    run_tool(main)
