#!/usr/bin/env python
"""Scores a model on a data set, or existing COCO-panoptic predictions against their truth.

python tools/evaluate.py --checkpoint runs/demo/model.pt --output runs/demo/evaluation
python tools/evaluate.py --gt panoptic_val2017.json --pred predictions.json --output out --report --images val2017

With --gt and --pred, files that contradict each other are reported, and count so: an image without a usable prediction
has all its segments missed; an id that the JSON lacks and a segment of an unknown category are void; where an area in
the JSON is not the number of pixels, the pixels count.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from upsnet.config import Config, load_config, parse_config
from upsnet.data.categories import CategorySet
from upsnet.data.loader import open_dataset
from upsnet.engine import distributed
from upsnet.engine.checkpoint import load_checkpoint
from upsnet.engine.evaluate import evaluate
from upsnet.engine.logging import headlines
from upsnet.errors import run_tool
from upsnet.files import atomic_path, write_json
from upsnet.inference.visualize import overlay
from upsnet.metrics.panoptic_json import score_files
from upsnet.metrics.report.collector import ReportCollector
from upsnet.metrics.report.page import Identity, digest, write_report

SHOWN_PROBLEMS = 10


def main() -> None:
    """Parses the command line and evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="model to score")
    what.add_argument("--gt", type=Path, help="COCO-panoptic JSON of the truth (with --pred)")
    parser.add_argument(
        "--config", help="take `data` and `evaluate` from this YAML instead of the checkpoint's own config"
    )
    parser.add_argument("--pred", type=Path, help="COCO-panoptic JSON of the predictions (with --gt)")
    parser.add_argument("--gt-dir", type=Path, help="PNGs of the truth (default: --gt without .json)")
    parser.add_argument("--pred-dir", type=Path, help="PNGs of the predictions (default: --pred without .json)")
    parser.add_argument("--instances", type=Path, help="COCO instances for AP (default: things of the panoptic truth)")
    parser.add_argument("--strict", action="store_true", help="the first contradiction in the files is an error")
    parser.add_argument("--workers", type=int, help="processes that read files (default: one per core)")
    parser.add_argument("--boundary", action="store_true", help="also Boundary PQ")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for metrics.json, per_image.json, of a model predictions/, of files problems.txt",
    )
    parser.add_argument("--report", action="store_true", help="also write report.html into --output")
    parser.add_argument("--images", type=Path, help="with --gt and --report: folder of the photographs")
    parser.add_argument(
        "--report-images", type=int, default=8, metavar="N", help="show the N worst and the N best images (default: 8)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    if (args.gt is None) != (args.pred is None):
        parser.error("--gt and --pred go together")
    if args.gt is not None and (args.config or args.overrides):
        parser.error("--config and key=value need --checkpoint")
    of_files = (args.gt_dir, args.pred_dir, args.instances, args.strict, args.workers)
    if args.gt is None and any(of_files):
        parser.error("--gt-dir, --pred-dir, --instances, --strict and --workers need --gt and --pred")
    if args.gt is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        parser.error("--gt and --pred run in one process with --workers, not under torchrun")
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers is {args.workers}, expected 1 or more")
    if args.report and args.output is None:
        parser.error("--report needs --output")
    if args.images and not (args.report and args.gt):
        parser.error("--images needs --gt and --report")
    result = _score_files(args) if args.gt is not None else _score_model(args)
    if result is None:
        return
    metrics, report, identity = result
    for name, value in {**headlines(metrics), **_beside_pq(metrics["panoptic"])}.items():
        print(f"{name:12s} {value:7.3f}")
    if args.output is not None:
        write_json(args.output / "metrics.json", metrics)
    if report is not None:
        write_report(args.output / "report.html", report, metrics, identity)
        print(f"report: {args.output / 'report.html'}")


def _beside_pq(panoptic: dict[str, Any] | None) -> dict[str, float]:
    if panoptic is None:
        return {}
    values = {"pq_dagger": panoptic["pq_dagger"]["All"]}
    if panoptic["boundary"] is not None:
        values["boundary_pq"] = panoptic["boundary"]["All"]["pq"]
    if panoptic["interval"] is not None and panoptic["interval"]["All"] is not None:
        values["pq_low"], values["pq_high"] = panoptic["interval"]["All"]["pq"]
    return values


_Result = tuple[dict[str, Any], ReportCollector | None, Identity]


def _score_files(args: argparse.Namespace) -> _Result:
    options = {"instances": args.instances, "boundary": args.boundary, "strict": args.strict, "workers": args.workers}
    options |= {"report": partial(_collector, args) if args.report else None, "image_dir": args.images}
    scores = score_files(args.gt, args.pred, args.gt_dir, args.pred_dir, **options)
    for line in scores.problems[:SHOWN_PROBLEMS]:
        print(f"warning: {line}", file=sys.stderr)
    if len(scores.problems) > SHOWN_PROBLEMS:
        print(f"warning: {len(scores.problems) - SHOWN_PROBLEMS} more contradictions in the files", file=sys.stderr)
    if args.output is not None:
        write_json(args.output / "per_image.json", scores.panoptic.per_image())
        if scores.problems:
            with atomic_path(args.output / "problems.txt") as path:
                path.write_text("".join(f"{line}\n" for line in scores.problems), errors="replace")
    facts = [("Truth", str(args.gt)), ("Predictions", str(args.pred))]
    if args.report:
        facts += [("SHA-256 of the two", f"{digest(args.gt)}, {digest(args.pred)}")]
        facts += [("Contradictions in the files", str(len(scores.problems)))]
    return scores.metrics(), scores.report, Identity("/".join(args.pred.absolute().parts[-2:]), facts)


def _score_model(args: argparse.Namespace) -> _Result | None:
    """The result on rank 0, None on the others."""
    checkpoint = load_checkpoint(args.checkpoint)
    config = parse_config(checkpoint.config.dump(), args.overrides, source=str(args.checkpoint))
    if args.config is not None:
        other = load_config(args.config, args.overrides)
        config = config.model_copy(update={"data": other.data, "evaluate": other.evaluate})
    if args.report and config.model.heads != "both":
        raise ValueError(
            f"--report: the model has model.heads={config.model.heads}, expected both: only PQ is reported"
        )
    dataset = open_dataset(config.data.val, checkpoint.categories)
    with distributed.process_group() as device:
        model = replace(checkpoint, config=config).build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        predictions = (
            args.output / "predictions" / "panoptic.json" if args.output and config.model.heads == "both" else None
        )
        options: dict[str, Any] = {"predictions": predictions, "boundary": args.boundary}
        options["per_image"] = args.output / "per_image.json" if args.output else None
        options["report"] = _collector(args, dataset.categories) if args.report else None
        metrics = evaluate(model, dataset, config, device, **options)
        if distributed.rank() != 0:
            return None
        return metrics, options["report"], _identity(args.checkpoint, config, device)


def _collector(args: argparse.Namespace, categories: CategorySet) -> ReportCollector:
    return ReportCollector(categories, partial(overlay, label_fit=1.3), args.report_images)


def _identity(path: Path, config: Config, device: torch.device) -> Identity:
    text = yaml.safe_dump(config.dump(), sort_keys=False)
    processor = (
        f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    )
    values = config.data.val.model_dump(exclude={"format"}, exclude_none=True)
    facts = [
        ("Data set", f"{config.data.val.format}: " + ", ".join(f"{key} {value}" for key, value in values.items())),
        ("Checkpoint", str(path)),
        ("SHA-256 of the checkpoint", digest(path)),
        ("SHA-256 of the config", digest(text)),
        ("Device", processor),
    ]
    return Identity("/".join(path.absolute().parts[-2:]), facts, text)


if __name__ == "__main__":
    run_tool(main)
