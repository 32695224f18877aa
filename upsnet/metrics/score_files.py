"""Scores existing COCO-panoptic files, truth against predictions, without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from upsnet.categories import CategorySet
from upsnet.io.panoptic_json import PanopticJson
from upsnet.io.parallel import in_order
from upsnet.metrics import image_scores
from upsnet.metrics.document import compute_metrics
from upsnet.metrics.image_pair import ImageReport, PairResult, PairScorer
from upsnet.metrics.instance_ap import InstanceAP
from upsnet.metrics.instance_file import read_instances
from upsnet.metrics.panoptic_quality import PanopticQuality
from upsnet.metrics.slices import Attributes
from upsnet.ops import id_maps

Report = TypeVar("Report", bound=ImageReport)


@dataclass
class FileScores(Generic[Report]):
    """The sums over all images.

    Attributes:
        panoptic, panoptic_ap: the metrics; the latter is None where predictions carry no scores.
        problems: one line for each fault of a file, in the order of the images.
        report: what `score_files` was given to make, if anything.
        attributes: attributes of the images, for slices.
    """

    panoptic: PanopticQuality
    panoptic_ap: InstanceAP | None
    problems: list[str] = field(default_factory=list)
    report: Report | None = None
    attributes: Attributes | None = None

    def add(self, result: PairResult) -> None:
        """Adds one image."""
        self.problems += result.problems
        if result.scores is not None:
            self.panoptic.rows[result.image_id] = result.scores
        if self.panoptic_ap is not None and result.instances is not None:
            self.panoptic_ap.add(result.instances)
        if self.report is not None and result.report is not None:
            self.report.add(result.image_id, result.report)

    def metrics(self) -> dict[str, Any]:
        """The contents of `metrics.json`."""
        return compute_metrics(self.panoptic, panoptic_ap=self.panoptic_ap, attributes=self.attributes)


def evaluate_files(
    truth_json: Path,
    predicted_json: Path,
    truth_dir: Path | None = None,
    predicted_dir: Path | None = None,
    **options: Any,
) -> tuple[dict[str, Any], list[str]]:
    """The contents of `metrics.json`, and one line for each fault of a file; arguments as in `score_files`."""
    scores = score_files(truth_json, predicted_json, truth_dir, predicted_dir, **options)
    return scores.metrics(), scores.problems


def score_files(
    truth_json: Path,
    predicted_json: Path,
    truth_dir: Path | None = None,
    predicted_dir: Path | None = None,
    *,
    instances: Path | None = None,
    boundary: bool = False,
    strict: bool = False,
    workers: int | None = None,
    report: Callable[[CategorySet], Report] | None = None,
    image_dir: Path | None = None,
    attributes: Attributes | None = None,
    progress: bool = True,
) -> FileScores[Report]:
    """Scores every annotated image of the truth.

    Faults of single images are reported and counted as `PairScorer` says; an image whose truth cannot be read is left
    out. Predictions for images that the truth does not have are left out too, and reported. AP is found if every
    predicted thing of known category carries a score.

    Args:
        truth_json, predicted_json: COCO-panoptic JSON files.
        truth_dir, predicted_dir: folders of their PNGs; by default the JSON's path without `.json`.
        instances: COCO instance file to find AP against; by default the things of the panoptic truth.
        boundary: find Boundary PQ, too.
        strict: the first fault is an error.
        workers: processes; by default one per core. The result does not depend on it.
        report: makes an `ImageReport` for the classes, which then takes every image.
        image_dir: folder of the images that it draws on.
        attributes: attributes of the images, for slices.
        progress: show a bar.

    Raises:
        FileNotFoundError, ValueError: a JSON or a folder is missing or unusable; with `strict`, any fault. The message
            names the file.
    """
    problems: list[str] = []
    truth = PanopticJson(truth_json, truth_dir)
    if image_dir is not None:
        _require_photographs(truth, image_dir)
    predicted = PanopticJson(predicted_json, predicted_dir, truth=truth, problems=problems)
    problems += _missing(truth, predicted)
    scored = _things_with_scores(predicted)
    if 0 < sum(scored) < len(scored):
        problems.append(f"{predicted_json}: {len(scored) - sum(scored)} of {len(scored)} things lack a score: no AP")
    has_scores = any(row.scores is not None for row in predicted.annotations.values())
    with_ap = all(scored) and (has_scores or (instances is not None and not scored))
    if instances is not None and not with_ap:
        problems.append(f"{predicted_json}: no AP against {instances}, which needs a score on every predicted thing")
    image_report = report(truth.categories) if report is not None else None
    true_instances = read_instances(instances, truth, problems) if instances is not None and with_ap else None
    scores = FileScores(
        PanopticQuality(truth.categories, boundary=boundary),
        InstanceAP(truth.categories, true_instances) if with_ap else None,
        problems,
        image_report,
        attributes,
    )
    describe = image_report.describe if image_report is not None else None
    scorer = PairScorer(truth, predicted, boundary, with_ap, with_ap and instances is None, describe)
    pairs = _Pairs(scorer, list(truth.annotations))
    bar = tqdm(total=len(pairs), desc="evaluate", disable=not progress, leave=False)
    with bar:
        id_maps.compiled(), image_scores.compiled()  # once, before there are several processes
        for result in in_order(pairs, workers):
            if strict and problems:
                break
            scores.add(result)
            bar.update()
    if strict and problems:
        raise ValueError(problems[0])
    if scores.report is not None:
        problems += scores.report.illustrate(partial(scorer.pair, image_dir=image_dir))
    return scores


class _Pairs(Dataset[PairResult]):
    def __init__(self, scorer: PairScorer, image_ids: list[int | str]) -> None:
        self.scorer = scorer
        self.image_ids = image_ids

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> PairResult:
        return self.scorer(self.image_ids[index])


def _missing(truth: PanopticJson, predicted: PanopticJson) -> list[str]:
    missing = [row.file_name for image_id, row in truth.annotations.items() if image_id not in predicted.annotations]
    if not missing:
        return []
    return [
        f"{predicted.path}: no prediction for {len(missing)} of {len(truth.annotations)} images, "
        f"the first is {missing[0]}: their segments count as missed"
    ]


def _things_with_scores(predicted: PanopticJson) -> list[bool]:
    """Whether each predicted thing carries a score."""
    scored: list[bool] = []
    for row in predicted.annotations.values():
        is_thing = row.classes >= predicted.categories.num_stuff
        scores = np.full(len(is_thing), np.nan) if row.scores is None else row.scores
        scored += (~np.isnan(scores[is_thing])).tolist()
    return scored


def _require_photographs(truth: PanopticJson, folder: Path) -> None:
    """Asks before the long work, not after it."""
    names = [image.file_name for image_id, image in truth.images.items() if image_id in truth.annotations]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{folder / absent[0]}: no such photograph ({len(absent)} of {len(names)} are missing)")
