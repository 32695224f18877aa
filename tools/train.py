#!/usr/bin/env python
"""Trains a model.

python tools/train.py --config configs/shapes_r18.yaml --output runs/demo train.iterations=500
torchrun --nproc-per-node 8 --max-restarts 3 tools/train.py --config configs/coco_r50.yaml --output runs/coco_r50

SIGTERM, SIGUSR1, SIGHUP and SIGINT save and end the run at the next step. Exit codes: 0 the run is complete; 128 +
number of the signal (143, 138, 129, 130) it was stopped, and --resume goes on; 2 a mistake, in one line; 1 another
process failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from upsnet.config import load_config
from upsnet.engine.data_check import check_before_training
from upsnet.engine.distributed import process_group, restarts_by_itself
from upsnet.engine.train import Trainer
from upsnet.errors import run_tool


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the run")
    parser.add_argument("--output", type=Path, help="folder of the run (default: runs/NAME of the config)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the folder's newest checkpoint, begin if there is none; implied by torchrun --max-restarts",
    )
    parser.add_argument(
        "--init", type=Path, help="weights to begin with: ours, the official UPSNet's, torchvision's, detectron2's"
    )
    parser.add_argument("--profile", action="store_true", help="write profile.json.gz, a trace of a few steps")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    output = args.output or Path("runs") / Path(args.config).stem
    with process_group() as device:
        resume = args.resume or restarts_by_itself()
        trainer = Trainer(config, output, device, resume=resume, init=args.init, profile=args.profile)
        show(trainer, [*(trainer.report.lines() if trainer.report else []), *trainer.notes])
        if trainer.is_main:
            for line in check_before_training(config, trainer.train_set, trainer.val_set, source=args.config):
                print(f"warning: {line}", file=sys.stderr)
        show(trainer, trainer.summary(trainer.run()))
    if trainer.stopped:
        sys.exit(128 + trainer.stopped)


def show(trainer: Trainer, lines: list[str]) -> None:
    """Prints lines, in the first process alone."""
    if trainer.is_main and lines:
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    run_tool(main)
