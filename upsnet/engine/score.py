"""Scores a checkpoint, or existing prediction files, and writes the results into a folder.

| file | content |
| --- | --- |
| `metrics.json` | PQ, SQ, RQ, mIoU and AP |
| `per_image.json` | the scores of each image |
| `predictions/` | COCO-panoptic predictions (of a checkpoint) |
| `problems.txt` | contradictions in the files (of prediction files) |
| `report.html` | the report, if asked for |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from upsnet.config import Config, load_config, parse_config
from upsnet.data.loader import open_dataset
from upsnet.engine import distributed
from upsnet.engine.evaluate import evaluate
from upsnet.io.files import atomic_path, write_json
from upsnet.metrics.score_files import score_files
from upsnet.models.checkpoint import load_checkpoint
from upsnet.report.collector import ReportCollector
from upsnet.report.page import Identity, digest, write_report


def score_checkpoint(
    path: Path,
    output: Path | None = None,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    boundary: bool = False,
    report_images: int | None = None,
) -> dict[str, Any] | None:
    """Scores a checkpoint on the validation data of its config. Under `torchrun` every process calls it.

    Args:
        path: `model.pt` or `last.pt` of a run.
        output: folder for the results; None writes nothing.
        config: take `data` and `evaluate` from this config instead of the checkpoint's own.
        overrides: `key=value` changes to the config.
        boundary: also find Boundary PQ.
        report_images: also write a report with so many of the worst and of the best images; None: no report.

    Returns:
        The contents of `metrics.json` in the first process, None in the others.

    Raises:
        OSError, ValueError: a file is missing, or something does not fit; one line says what to change.
    """
    checkpoint = load_checkpoint(path)
    own = parse_config(checkpoint.config.dump(), overrides, source=str(path))
    if config is not None:
        other = load_config(config, overrides)
        own = own.model_copy(update={"data": other.data, "evaluate": other.evaluate})
    is_panoptic = own.model.heads == "both"
    if report_images is not None and not is_panoptic:
        raise ValueError(f"--report: the model has model.heads={own.model.heads}, expected both: only PQ is reported")
    dataset = open_dataset(own.data.val, checkpoint.categories)
    report = None if report_images is None else ReportCollector(dataset.categories, report_images)
    with distributed.process_group() as device:
        model = replace(checkpoint, config=own).build()
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        metrics = evaluate(
            model,
            dataset,
            own,
            device,
            predictions=output / "predictions" / "panoptic.json" if output and is_panoptic else None,
            boundary=boundary,
            per_image=output / "per_image.json" if output else None,
            report=report,
        )
        if distributed.rank() != 0:
            return None
        _write(metrics, output, report, partial(_identity_of_checkpoint, path, own, device))
        return metrics


def score_predictions(
    truth: Path,
    predictions: Path,
    output: Path | None = None,
    *,
    truth_dir: Path | None = None,
    predictions_dir: Path | None = None,
    instances: Path | None = None,
    strict: bool = False,
    workers: int | None = None,
    boundary: bool = False,
    report_images: int | None = None,
    image_dir: Path | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Scores COCO-panoptic prediction files against the ground truth.

    Args:
        truth, predictions: COCO-panoptic JSON files.
        output: folder for the results; None writes nothing.
        truth_dir, predictions_dir: folders of the PNGs; by default the JSON's path without `.json`.
        instances: COCO instance JSON for AP; by default the things of the panoptic ground truth.
        strict: raise an error at the first contradiction in the files.
        workers: processes that read files; by default one per core.
        boundary: also find Boundary PQ.
        report_images: also write a report with so many of the worst and of the best images; None: no report.
        image_dir: folder of the images for the report.

    Returns:
        The contents of `metrics.json`, and one line for each contradiction in the files.

    Raises:
        OSError, ValueError: a file is missing or unusable; one line says what to change.
    """
    scores = score_files(
        truth,
        predictions,
        truth_dir,
        predictions_dir,
        instances=instances,
        boundary=boundary,
        strict=strict,
        workers=workers,
        report=None if report_images is None else partial(ReportCollector, num_pictures=report_images),
        image_dir=image_dir,
    )
    metrics = scores.metrics()
    if output is not None:
        write_json(output / "per_image.json", scores.panoptic.per_image())
        if scores.problems:
            with atomic_path(output / "problems.txt") as path:
                path.write_text("".join(f"{line}\n" for line in scores.problems), errors="replace")
    _write(metrics, output, scores.report, partial(_identity_of_files, truth, predictions, len(scores.problems)))
    return metrics, scores.problems


def _write(metrics: dict[str, Any], output: Path | None, report: ReportCollector | None, identity: Any) -> None:
    if output is None:
        return
    write_json(output / "metrics.json", metrics)
    if report is not None:
        write_report(output / "report.html", report, metrics, identity())


def _identity_of_files(truth: Path, predictions: Path, problems: int) -> Identity:
    facts = [
        ("Truth", str(truth)),
        ("Predictions", str(predictions)),
        ("SHA-256 of the two", f"{digest(truth)}, {digest(predictions)}"),
        ("Contradictions in the files", str(problems)),
    ]
    return Identity("/".join(predictions.absolute().parts[-2:]), facts)


def _identity_of_checkpoint(path: Path, config: Config, device: torch.device) -> Identity:
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
