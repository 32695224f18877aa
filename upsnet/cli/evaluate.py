"""Scores a model on a data set, or COCO-panoptic prediction files against the ground truth.

examples:
  upsnet evaluate --checkpoint runs/demo/model.pt --output runs/demo/evaluation
  upsnet evaluate --gt panoptic_val2017.json --pred predictions.json --output out --report --images val2017
  upsnet evaluate --submission coco --help          # packs predictions for a benchmark server

With --gt and --pred, the command prints every contradiction in the files. If an image has no usable prediction, all its
segments count as missed. Predictions for images that the ground truth does not have are left out. Pixels whose id is
not in the JSON, and segments of an unknown category, count as void. If an area in the JSON differs from the number of
pixels, the number of pixels is used. Image ids may be numbers in one file and texts in the other (7, "7", "000007").
A score is `-` on the screen and null in the files if there is nothing to score.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upsnet.cli import submission, test_time_views

SHOWN_PROBLEMS = 10


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    if any(_names_submission(word) for word in argv):
        return submission.main(argv)
    args = _parse(argv)
    metrics = _score_files(args) if args.gt is not None else _evaluate_checkpoint(args)
    if metrics is None:  # another process prints
        return 0
    from upsnet.engine.logging import score_text
    from upsnet.metrics.document import flat_metrics

    for name, value in flat_metrics(metrics).items():
        print(f"{name:18s} {score_text(value, '.3f'):>7s}")
    if args.report:
        print(f"report: {args.output / 'report.html'}")
    return 0


def _names_submission(word: str) -> bool:
    """Whether an argument is `--submission`, or an abbreviation that means no other option."""
    name = word.partition("=")[0]
    return len(name) >= len("--su") and "--submission".startswith(name)


def _evaluate_checkpoint(args: argparse.Namespace) -> dict[str, Any] | None:
    from upsnet.engine.score import evaluate_checkpoint

    return evaluate_checkpoint(
        args.checkpoint,
        args.output,
        config=args.config,
        overrides=args.overrides,
        boundary=args.boundary,
        report_images=args.report_images if args.report else None,
        slices=args.slices,
        views=test_time_views.chosen(args),
    )


def _score_files(args: argparse.Namespace) -> dict[str, Any]:
    from upsnet.engine.score import evaluate_predictions

    metrics, problems = evaluate_predictions(
        args.gt,
        args.pred,
        args.output,
        truth_dir=args.gt_dir,
        predictions_dir=args.pred_dir,
        instances=args.instances,
        strict=args.strict,
        workers=args.workers,
        boundary=args.boundary,
        report_images=args.report_images if args.report else None,
        image_dir=args.images,
        slices=args.slices,
    )
    for line in problems[:SHOWN_PROBLEMS]:
        print(f"warning: {line}", file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"warning: {len(problems) - SHOWN_PROBLEMS} more contradictions in the files", file=sys.stderr)
    return metrics


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "upsnet evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="model to score: model.pt or last.pt of a run")
    what.add_argument("--gt", type=Path, help="COCO-panoptic JSON of the ground truth (with --pred)")
    what.add_argument("--submission", metavar="SET", help="pack a submission instead: coco or cityscapes")
    parser.add_argument("--config", help="take `data` and `evaluate` from this config instead of the checkpoint's own")
    parser.add_argument("--pred", type=Path, help="COCO-panoptic JSON of the predictions (with --gt)")
    parser.add_argument("--gt-dir", type=Path, help="PNGs of the ground truth (default: --gt without .json)")
    parser.add_argument("--pred-dir", type=Path, help="PNGs of the predictions (default: --pred without .json)")
    parser.add_argument("--instances", type=Path, help="COCO instances for AP (default: things of --gt)")
    parser.add_argument("--strict", action="store_true", help="the first contradiction in the files is an error")
    parser.add_argument("--workers", type=int, help="processes that read files (default: one per core)")
    parser.add_argument("--boundary", action="store_true", help="also compute Boundary PQ")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for metrics.json and per_image.json; also predictions/ (--checkpoint) or problems.txt (--gt)",
    )
    parser.add_argument("--report", action="store_true", help="also write report.html into --output")
    parser.add_argument(
        "--slices", type=Path, metavar="CSV", help="also PQ by attribute; columns: `image`, and one for each attribute"
    )
    parser.add_argument("--images", type=Path, help="with --gt and --report: folder of the images")
    parser.add_argument(
        "--report-images", type=int, default=8, metavar="N", help="show the N worst and the N best images (default: 8)"
    )
    test_time_views.add_options(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    if (args.gt is None) != (args.pred is None):
        parser.error("--gt and --pred go together")
    if args.gt is not None and (args.config or args.overrides):
        parser.error("--config and key=value need --checkpoint")
    if args.gt is not None and (args.tta_scales or args.tta_flip):
        parser.error("--tta-scales and --tta-flip need --checkpoint")
    of_files = (args.gt_dir, args.pred_dir, args.instances, args.strict, args.workers)
    if args.gt is None and any(of_files):
        parser.error("--gt-dir, --pred-dir, --instances, --strict and --workers need --gt and --pred")
    if args.gt is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        parser.error("--gt and --pred do not run under torchrun; run one process and set --workers")
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers is {args.workers}, expected 1 or more")
    if args.report and args.output is None:
        parser.error("--report needs --output")
    if args.images and not (args.report and args.gt):
        parser.error("--images needs --gt and --report")
    return args
