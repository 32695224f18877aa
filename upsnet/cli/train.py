"""Trains a model.

examples:
  upsnet train --config shapes_r18 --output runs/demo train.iterations=500
  upsnet train --config mine.yaml --output runs/mine --resume
  torchrun --nproc-per-node 8 --max-restarts 3 -m upsnet train --config coco_r50 --output runs/coco_r50

On SIGTERM, SIGUSR1, SIGHUP or SIGINT the run finishes its step, saves a checkpoint and ends.

exit codes: 0 the run is complete; 128 + n signal n stopped the run (143, 138, 129, 130), continue it with
--resume;
2 a mistake in the input; 1 another process failed; 3 a bug
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = _parse(argv)
    from upsnet.config import load_config
    from upsnet.engine.train import train

    if args.dry_run:
        from upsnet.engine.dry_run import dry_run

        for line in dry_run(load_config(args.config, args.overrides), _output(args), init=args.init):
            print(line)
        return 0
    result = train(
        load_config(args.config, args.overrides),
        _output(args),
        resume=args.resume,
        init=args.init,
        profile=args.profile,
        config_name=args.config,
        tell=partial(print, flush=True),
        warn=lambda line: print(f"warning: {line}", file=sys.stderr),
    )
    return 128 + result.stop_signal if result.stop_signal else 0


def _output(args: argparse.Namespace) -> Path:
    output: Path = args.output or Path("runs") / Path(args.config).stem
    return output


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    from upsnet.config import list_configs

    shipped = list_configs()
    folder = next(iter(shipped.values())).parent if shipped else None
    parser = argparse.ArgumentParser(
        "upsnet train",
        description=__doc__,
        epilog=f"configs in {folder}:\n  {' '.join(shipped)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="YAML file of the run, or the name of a config of this project")
    parser.add_argument("--output", type=Path, help="folder of the run (default: runs/NAME of the config)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest checkpoint in the folder, or start a new run if there is none; "
        "always on under torchrun --max-restarts",
    )
    parser.add_argument(
        "--init",
        type=Path,
        help="initial weights: a checkpoint of this project, of the official UPSNet, Panoptic-DeepLab, torchvision or "
        "detectron2; layers that fit the config are taken, classes by name, and the first lines of the output name "
        "what stays random",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="run the largest batch for a few steps, print memory, time, hours and disk, and write nothing",
    )
    parser.add_argument("--profile", action="store_true", help="write profile.json.gz, a trace of a few steps")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the config, for example train.lr=0.01"
    )
    return parser.parse_intermixed_args(argv)
