"""Runs a model over a data set and scores it: PQ, mIoU and AP, alone or with every process taking its share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from upsnet.categories import CategorySet
from upsnet.config import Config
from upsnet.data.loader import InferenceInput, PanopticDataset, test_loader
from upsnet.data.reading import FileDataset
from upsnet.data.targets import semantic_truth
from upsnet.engine import distributed
from upsnet.engine.signals import StopRequestedError, StopSignals
from upsnet.inference.augmented import AugmentedModel
from upsnet.inference.drawing import comparison, grid
from upsnet.inference.predictor import PanopticPredictor
from upsnet.io.files import remove_leftovers
from upsnet.io.predictions import PanopticWriter, prediction_rows, to_prediction
from upsnet.metrics.document import compute_metrics
from upsnet.metrics.image_pair import ImagePair
from upsnet.metrics.instance_ap import InstanceAP, encode_window
from upsnet.metrics.panoptic_quality import PanopticQuality, SegmentTable
from upsnet.metrics.per_image import write_per_image
from upsnet.metrics.semantic_iou import SemanticIoU
from upsnet.metrics.slices import Attributes
from upsnet.models.base import PanopticModel
from upsnet.ops.backend import autocast
from upsnet.ops.views import ViewPlan
from upsnet.report.collector import ReportCollector
from upsnet.structures import Instances, PanopticBatch, PanopticOutput, Sample


@dataclass
class _Meters:
    """The metrics that apply to what a model predicts."""

    panoptic: PanopticQuality | None
    semantic: SemanticIoU | None
    instance_ap: InstanceAP | None
    panoptic_ap: InstanceAP | None

    @classmethod
    def of(cls, tasks: frozenset[str], categories: CategorySet, *, with_ap: bool, boundary: bool) -> _Meters:
        return cls(
            PanopticQuality(categories, boundary=boundary) if "panoptic" in tasks else None,
            SemanticIoU(categories) if "semantic" in tasks else None,
            InstanceAP(categories) if "instance" in tasks and with_ap else None,
            InstanceAP(categories) if "panoptic" in tasks and with_ap else None,
        )

    def update(self, batch: PanopticBatch, output: PanopticOutput) -> None:
        for row, truth in enumerate(batch.truths):
            if self.panoptic is not None:
                segments = SegmentTable.of(truth.classes, truth.is_crowd)
                predicted = SegmentTable.of(output.segment_classes[row].cpu())
                ids = output.segment_ids[row]  # counted where it is; the truth goes there
                truth_map = torch.from_numpy(truth.segment_map).to(ids.device)
                maps = (truth_map, ids) if ids.is_cuda else (truth.segment_map, ids.numpy())
                self.panoptic.update(truth.image_id, maps[0], segments, maps[1], predicted, truth.file_name)
            if self.semantic is not None and output.semantic is not None:
                self.semantic.update(semantic_truth(truth), output.semantic[row].cpu().numpy())
            if self.instance_ap is not None and output.instances is not None:
                _add_instances(self.instance_ap, truth, output.instances[row])
            if self.panoptic_ap is not None:
                columns = (output.segment_ids, output.segment_classes, output.segment_scores)
                self.panoptic_ap.update_segments(truth, *(column[row].cpu().numpy() for column in columns))

    def merge(self) -> None:
        """Brings the rows of all processes to the first one."""
        if self.panoptic is not None:
            self.panoptic.merge(distributed.gather_to_first(self.panoptic.rows))
        if self.semantic is not None and (parts := distributed.gather_to_first(self.semantic.confusion)):
            self.semantic.confusion = np.sum(parts, axis=0)
        for meter in (self.instance_ap, self.panoptic_ap):
            if meter is not None:
                meter.merge(distributed.gather_to_first(meter.rows))

    def compute(self, attributes: Attributes | None) -> dict[str, Any]:
        """The metrics, which the first process computes for all."""
        meters = (self.panoptic, self.semantic, self.instance_ap, self.panoptic_ap)
        found: dict[str, Any] = distributed.from_first(
            compute_metrics(*meters, attributes) if distributed.rank() == 0 else None
        )
        return found


def _add_instances(meter: InstanceAP, truth: Sample, found: Instances) -> None:
    """Adds the instances of an image, whose masks are made and encoded one at a time."""
    valid = found.valid
    masks = (encode_window(window.numpy(), top, left, truth.size) for window, top, left in found.windows())
    meter.update(truth, found.scores[valid].cpu().numpy(), found.labels[valid].cpu().numpy(), masks)


def _add_to_report(report: ReportCollector, batch: PanopticBatch, output: PanopticOutput) -> None:
    for row, truth in enumerate(batch.truths):
        pair = ImagePair(
            truth.segment_map,
            SegmentTable.of(truth.classes, truth.is_crowd),
            output.segment_ids[row].cpu().numpy(),
            SegmentTable.of(output.segment_classes[row].cpu()),
            output.segment_scores[row].cpu().numpy(),
            partial(_picture, batch, row),
        )
        report.update(truth.image_id, truth.file_name, pair)


def _writer(target: Path, dataset: PanopticDataset) -> PanopticWriter:
    remove_leftovers(target.parent)
    names = [dataset.file_name(i) for i in range(len(dataset))] if isinstance(dataset, FileDataset) else []
    return PanopticWriter(target, dataset.categories, names)


def _add_to_writer(
    writer: PanopticWriter, batch: PanopticBatch, output: PanopticOutput, categories: CategorySet
) -> None:
    for row, truth in enumerate(batch.truths):
        prediction = to_prediction(output, row, categories)
        writer.add(truth.image_id, truth.file_name, prediction.segment_ids, prediction_rows(prediction))


def _close(writer: PanopticWriter) -> None:
    """Writes the JSON in the first process, with the rows of all."""
    writer.images = [row for part in distributed.gather_to_first(writer.images) for row in part]
    writer.annotations = [row for part in distributed.gather_to_first(writer.annotations) for row in part]
    if distributed.rank() == 0:
        writer.close()


@dataclass
class _Results:
    """Where the predictions of an evaluation go: the metrics, the report and the prediction files."""

    meters: _Meters
    report: ReportCollector | None
    writer: PanopticWriter | None
    categories: CategorySet

    def add(self, batch: PanopticBatch, output: PanopticOutput) -> None:
        """Adds the predictions of a batch."""
        self.meters.update(batch, output)
        if self.report is not None:
            _add_to_report(self.report, batch, output)
        if self.writer is not None:
            _add_to_writer(self.writer, batch, output, self.categories)

    def gather(self) -> None:
        """Collects the results of all processes in the first one, and completes the prediction files."""
        if self.writer is not None:
            _close(self.writer)
        if self.report is not None:
            self.report.merge(distributed.gather_to_first(self.report))
        self.meters.merge()


def _picture(batch: PanopticBatch, row: int) -> np.ndarray:
    """The network's input as a picture, uint8 RGB [H, W, 3], without its padding."""
    height, width = batch.network_sizes[row]
    return batch.images[row, :, :height, :width].permute(1, 2, 0).contiguous().numpy()


def evaluate(
    model: PanopticModel,
    dataset: PanopticDataset,
    config: Config,
    device: torch.device,
    *,
    predictions: Path | None = None,
    report: ReportCollector | None = None,
    boundary: bool = False,
    per_image: Path | None = None,
    with_ap: bool | None = None,
    attributes: Attributes | None = None,
    views: ViewPlan | None = None,
    progress: bool = True,
    stop: StopSignals | None = None,
) -> dict[str, Any]:
    """Scores a model.

    Args:
        model: on `device`.
        dataset: with truth.
        config: `data` and `evaluate` count.
        device: to run on.
        predictions: JSON to write COCO-panoptic predictions to; the PNGs go into the folder of its name.
        report: takes every image; at the end, that of the first process holds those of all.
        boundary: find Boundary PQ, too.
        per_image: JSON to write `PanopticQuality.per_image` to, where PQ applies.
        with_ap: find AP; by default unless `evaluate.instance` is false.
        attributes: attributes of the images, for slices.
        views: average the predictions of these views of each image (test-time augmentation).
        progress: show a bar, if there is a terminal.
        stop: looked at after every batch.

    Returns:
        The contents of `metrics.json`; sections that do not apply are None.

    Raises:
        StopRequestedError: in all processes, if one was asked to stop.
    """
    with_ap = config.evaluate.instance is not False if with_ap is None else with_ap
    meters = _Meters.of(model.tasks, dataset.categories, with_ap=with_ap, boundary=boundary)
    writer = None if predictions is None else _writer(predictions, dataset)
    results = _Results(meters, report, writer, dataset.categories)
    rank, world_size = distributed.rank(), distributed.world_size()
    loader = test_loader(
        dataset,
        config.data,
        batch_size=config.evaluate.batch_size,
        rank=rank,
        world_size=world_size,
        form=model.input_form,
        views=views,
    )
    predictor = model if views is None else AugmentedModel(model, views)
    training = model.training
    model.eval()
    try:
        for batch in tqdm(loader, desc="evaluate", disable=None if progress and rank == 0 else True, leave=False):
            if stop is not None and stop.received:
                break
            with autocast(config.evaluate.precision, device):
                output = predictor.predict(
                    batch.to(device),
                    with_semantic=meters.semantic is not None,
                    with_instances=meters.instance_ap is not None,
                )
            results.add(batch, output)
    except ChildProcessError:  # a signal to all processes of a job ends the data workers, too
        if stop is None or not stop.received:
            raise
    model.train(training)
    if stop is not None and (number := distributed.agree(stop.received)):
        raise StopRequestedError(number)
    results.gather()
    if per_image is not None and meters.panoptic is not None and rank == 0:
        write_per_image(per_image, meters.panoptic.per_image())
    return meters.compute(attributes)


def comparison_panel(
    model: PanopticModel, dataset: PanopticDataset, config: Config, device: torch.device
) -> npt.NDArray[np.uint8] | None:
    """Predictions beside truth for the first `evaluate.panels` images, in one picture [H, W, 3]."""
    training = model.training
    make_input = InferenceInput(config.data, model.input_form)
    precision = config.evaluate.precision
    predictor = PanopticPredictor(model, dataset.categories, make_input, device, precision=precision)
    pictures = []
    for index in range(min(config.evaluate.panels, len(dataset))):
        sample = dataset[index]
        pictures.append(comparison(sample.image, predictor(sample.image), sample, dataset.categories))
    model.train(training)
    return grid(pictures) if pictures else None


def headline(metrics: dict[str, Any]) -> tuple[str, float | None]:
    """Name and value of the number that chooses the best model: PQ, else AP, else mIoU.

    The value is None if there is nothing to score.
    """
    for section, key, name in (("panoptic", "All", "PQ"), ("instance_ap", "ap", "AP"), ("semantic", "miou", "mIoU")):
        if metrics[section] is not None:
            value = metrics[section][key]
            return name, value["pq"] if section == "panoptic" else value
    raise ValueError("no section of the metrics applies to this model")
