"""Scores a checkpoint, or existing prediction files, and writes the results into a folder.

| file | content |
| --- | --- |
| `metrics.json` | PQ, SQ, RQ, mIoU and AP (`metrics.document`) |
| `per_image.json` | the scores and segments of each image (`metrics.per_image`), which `upsnet compare` reads |
| `predictions/` | COCO-panoptic predictions (of a checkpoint) |
| `problems.txt` | contradictions in the files (of prediction files) |
| `report.html` | the report, if asked for |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from upsnet.config import Config, load_config
from upsnet.data.loader import open_dataset
from upsnet.engine import distributed
from upsnet.engine.evaluate import evaluate
from upsnet.io.files import atomic_path, remove_leftovers, write_json
from upsnet.metrics.per_image import write_per_image
from upsnet.metrics.score_files import score_files
from upsnet.metrics.slices import read_attributes
from upsnet.models.checkpoint import load_checkpoint
from upsnet.ops.views import ViewPlan
from upsnet.report.collector import ReportCollector
from upsnet.report.page import Identity, digest, write_report


def evaluate_checkpoint(
    path: Path | str,
    output: Path | str | None = None,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    boundary: bool = False,
    report_images: int | None = None,
    slices: Path | str | None = None,
    views: ViewPlan | None = None,
) -> dict[str, Any] | None:
    """Scores a checkpoint on the validation data of its config.

    It runs on the GPU if there is one. Under `torchrun` every process calls it.

    Args:
        path: `model.pt` or `last.pt` of a run.
        output: folder for the results; None writes nothing.
        config: take `data` and `evaluate` from this config instead of the checkpoint's own.
        overrides: `key=value` changes to the config.
        boundary: also compute Boundary PQ.
        report_images: write a report that shows so many of the worst and of the best images; None: no report.
        slices: CSV file with attributes of the images; PQ is also computed for each value (`metrics.slices`).
        views: average the predictions of these views of each image (test-time augmentation).

    Returns:
        The contents of `metrics.json` in the first process, None in the others. `["panoptic"]["All"]["pq"]` is PQ in
        percent. A section that does not apply is None, and so is a score if there is nothing to score.

    Raises:
        OSError, ValueError: a file is missing, or something does not fit; one line says what to change.
    """
    path, output = Path(path), _path(output)
    attributes = None if slices is None else read_attributes(Path(slices))
    checkpoint = load_checkpoint(path, overrides)
    run = checkpoint.config
    if config is not None:
        other = load_config(config, overrides)
        run = run.model_copy(update={"data": other.data, "evaluate": other.evaluate})
    model = replace(checkpoint, config=run).build()
    is_panoptic = "panoptic" in model.tasks
    if report_images is not None and not is_panoptic:
        raise ValueError(
            f"--report: the model predicts {', '.join(sorted(model.tasks))}, expected panoptic (model.heads=both), "
            "because the report shows PQ; evaluate without --report"
        )
    dataset = open_dataset(run.data, "val", checkpoint.categories)
    report = None if report_images is None else ReportCollector(dataset.categories, report_images)
    with distributed.process_group() as device:
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        metrics = evaluate(
            model,
            dataset,
            run,
            device,
            predictions=output / "predictions" / "panoptic.json" if output and is_panoptic else None,
            boundary=boundary,
            per_image=output / "per_image.json" if output else None,
            report=report,
            attributes=attributes,
            views=views,
        )
        if distributed.rank() != 0:
            return None
        _write_results(metrics, output, report, partial(_identity_of_checkpoint, path, run, device, views))
        return metrics


def evaluate_predictions(
    truth: Path | str,
    predictions: Path | str,
    output: Path | str | None = None,
    *,
    truth_dir: Path | str | None = None,
    predictions_dir: Path | str | None = None,
    instances: Path | str | None = None,
    strict: bool = False,
    workers: int | None = None,
    boundary: bool = False,
    report_images: int | None = None,
    image_dir: Path | str | None = None,
    slices: Path | str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Scores COCO-panoptic prediction files against the ground truth.

    Args:
        truth, predictions: COCO-panoptic JSON files.
        output: folder for the results; None writes nothing.
        truth_dir, predictions_dir: folders of the PNGs; by default the JSON's path without `.json`.
        instances: COCO instance JSON for AP; by default the things of the panoptic ground truth.
        strict: raise an error at the first contradiction in the files.
        workers: processes that read files; by default one per core.
        boundary: also compute Boundary PQ.
        report_images: write a report that shows so many of the worst and of the best images; None: no report.
        image_dir: folder of the images for the report.
        slices: CSV file with attributes of the images; PQ is also computed for each value (`metrics.slices`).

    Returns:
        The contents of `metrics.json` (percent), and one line for each contradiction in the files.

    Raises:
        OSError, ValueError: a file is missing or unusable; one line says what to change.
    """
    truth, predictions, output = Path(truth), Path(predictions), _path(output)
    scores = score_files(
        truth,
        predictions,
        _path(truth_dir),
        _path(predictions_dir),
        instances=_path(instances),
        boundary=boundary,
        strict=strict,
        workers=workers,
        report=None if report_images is None else partial(ReportCollector, num_pictures=report_images),
        image_dir=_path(image_dir),
        attributes=None if slices is None else read_attributes(Path(slices)),
    )
    metrics = scores.metrics()
    if output is not None:
        write_per_image(output / "per_image.json", scores.panoptic.per_image())
        if scores.problems:
            with atomic_path(output / "problems.txt") as path:
                path.write_text("".join(f"{line}\n" for line in scores.problems), errors="replace")
    _write_results(
        metrics, output, scores.report, partial(_identity_of_files, truth, predictions, len(scores.problems))
    )
    return metrics, scores.problems


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def _write_results(
    metrics: dict[str, Any], output: Path | None, report: ReportCollector | None, make_identity: Callable[[], Identity]
) -> None:
    if output is None:
        return
    remove_leftovers(output)
    write_json(output / "metrics.json", metrics)
    if report is not None:
        write_report(output / "report.html", report, metrics, make_identity())


def _identity_of_files(truth: Path, predictions: Path, problems: int) -> Identity:
    facts = [
        ("Ground truth", str(truth)),
        ("Predictions", str(predictions)),
        ("SHA-256 of ground truth and predictions", f"{digest(truth)}, {digest(predictions)}"),
        ("Contradictions in the files", str(problems)),
    ]
    return Identity("/".join(predictions.absolute().parts[-2:]), facts)


def _identity_of_checkpoint(path: Path, config: Config, device: torch.device, views: ViewPlan | None) -> Identity:
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
        ("Test-time augmentation", "none" if views is None else str(views)),
    ]
    return Identity("/".join(path.absolute().parts[-2:]), facts, text)
