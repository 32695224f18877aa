"""Checks the data of a config: all of it for `upsnet doctor`, what takes seconds before a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from upsnet.config import AugmentConfig, CocoConfig, Config, DataConfig
from upsnet.data.coco import CocoPanoptic
from upsnet.data.loader import PanopticDataset, coco_of, configured_categories, data_root, open_dataset
from upsnet.data.transforms import fit_size
from upsnet.doctor.coco_files import CocoFiles, read_coco
from upsnet.doctor.diagnosis import Diagnosis, Source, diagnose
from upsnet.doctor.segments import Floats, Size, Use
from upsnet.models.base import Limits
from upsnet.models.build import model_limits

SAMPLED = 32
"""Images of each split that are read before a training."""


def examine(config: Config, splits: Sequence[str], *, workers: int | None = None, progress: bool = True) -> Diagnosis:
    """Examines the data of a config as a whole.

    Args:
        config: the run.
        splits: `train`, `val`, or both in this order.
        workers: processes; progress: show a bar.

    Raises:
        FileNotFoundError, ValueError: a split cannot be opened at all.
    """
    expected = configured_categories(config.data)
    sources = {}
    for name in splits:
        source = getattr(config.data, name)
        data: CocoFiles | PanopticDataset
        if isinstance(source, CocoConfig):
            root = data_root()
            png_dir = root / source.panoptic_dir if source.panoptic_dir else None
            data = read_coco(root / source.annotation_file, root / source.image_dir, png_dir)
        else:
            data = open_dataset(config.data, name)
        sources[name] = Source(data, use_of(config, name))
    same = len(splits) == 2 and config.data.train == config.data.val
    return diagnose(sources, expected=expected, same_data=same, workers=workers, progress=progress)


def check_before_training(
    config: Config, train_set: PanopticDataset, val_set: PanopticDataset, *, source: str
) -> list[str]:
    """Looks for what would ruin a run, in a few seconds: are all files there, can some images be read, do counts fit.

    Args:
        config: the run.
        train_set, val_set: its data, whose JSONs have been read and checked.
        source: the config's path, for the remedy.

    Returns:
        Warnings, a line each.

    Raises:
        ValueError: the first error, and how to find the others.
    """
    try:
        return _first_look(config, train_set, val_set)
    except (OSError, ValueError) as error:
        remedy = f"upsnet doctor --config {source} lists everything that is wrong with the data"
        raise ValueError(f"{error}; {remedy}") from error


def _first_look(config: Config, train_set: PanopticDataset, val_set: PanopticDataset) -> list[str]:
    warnings = []
    present: dict[str, set[int]] = {}
    for name, dataset in (("train", train_set), ("val", val_set)):
        if (reader := coco_of(dataset)) is not None:
            _require_files(reader)
        wanted = np.linspace(0, len(dataset) - 1, min(SAMPLED, len(dataset))).round().astype(int).tolist()
        samples = {index: dataset[index] for index in wanted}
        if isinstance(dataset, CocoPanoptic):
            rows = [dataset.truth.segments(image_id) for image_id in dataset.image_ids]
            tables = list(rows)
        else:
            tables = [(sample.classes, sample.is_crowd) for sample in samples.values()]
        if len(tables) == len(dataset):
            present[name] = set(np.unique(np.concatenate([classes for classes, _ in tables])).tolist())
        warnings += [f"data.{name}: {line}" for line in _odd_tables(tables, dataset.categories.num_stuff, config, name)]
    unseen = set(range(len(train_set.categories))) - present["train"] if "train" in present else set()
    if unseen:
        names = [train_set.categories[channel].name for channel in sorted(unseen)]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings.append(f"data.train: no segment of {', '.join(names[:5])}{more}")
    return warnings


def _require_files(dataset: CocoPanoptic) -> None:
    """Lists each folder once instead of asking for each file."""
    truth = dataset.truth
    for folder, names, what in (
        (dataset.image_dir, map(truth.images.file_name, dataset.image_ids), "image"),
        (truth.png_dir, map(truth.annotations.file_name, dataset.image_ids), "panoptic PNG"),
    ):
        there: dict[Path, set[str]] = {}
        for path in (folder / name for name in names):
            if path.parent not in there:
                there[path.parent] = _names(path.parent)
            if path.name not in there[path.parent]:
                raise FileNotFoundError(f"{path}: no such {what}")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _odd_tables(
    tables: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]], num_stuff: int, config: Config, split: str
) -> list[str]:
    """What classes and crowd flags of a split's images tell."""
    lines = []
    instances = np.array([((classes >= num_stuff) & ~is_crowd).sum() for classes, is_crowd in tables])
    slots = model_limits(config.model).max_detections
    if split == "val" and slots is not None and (instances > slots).any():
        lines.append(
            f"{(instances > slots).mean():.1%} of the images have more than model.instance.max_detections {slots} "
            f"instances, up to {instances.max()}"
        )
    split_stuff = sum(len(stuff) > len(np.unique(stuff)) for stuff in (c[c < num_stuff] for c, _ in tables))
    if split_stuff:
        lines.append(
            f"{split_stuff} images have several segments of one stuff class, of which PQ can match one at most"
        )
    stuff_crowds = sum(bool((is_crowd & (classes < num_stuff)).any()) for classes, is_crowd in tables)
    if stuff_crowds:
        lines.append(f"{stuff_crowds} images have a stuff segment marked iscrowd")
    return lines


def use_of(config: Config, split: str) -> Use:
    """What a run makes of a split.

    The size is that of testing for `val`. For `train` it is the middle of what augmentation draws: the median short
    side, or the geometric mean of the jitter's scales.
    """
    data, limits = config.data, model_limits(config.model)
    crop = data.augment.crop_size if split == "train" else None
    size = partial(_train_size, augment=data.augment) if split == "train" else partial(_test_size, data=data)
    return Use(
        size,
        crop,
        limits.best_iou and partial(_best_iou, limits=limits),
        limits.positive_iou,
        limits.negative_iou,
        limits.max_detections if split == "val" else None,
        limits.train_slots if split == "train" else None,
        data.value_range,
    )


def _train_size(size: Size, augment: AugmentConfig) -> Size:
    if augment.crop_size is not None:
        fit = min(crop / side for crop, side in zip(augment.crop_size, size, strict=True))
        scale = fit * math.sqrt(math.prod(augment.jitter_scale))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    if augment.short_sides:
        return fit_size(size, sorted(augment.short_sides)[len(augment.short_sides) // 2], augment.max_side)
    return size


def _test_size(size: Size, data: DataConfig) -> Size:
    return size if data.test_short_side is None else fit_size(size, data.test_short_side, data.test_max_side)


def _best_iou(boxes: Floats, size: Size, limits: Limits) -> Floats:
    assert limits.best_iou is not None
    best: npt.NDArray[np.float32] = limits.best_iou(torch.from_numpy(boxes), size).numpy()
    return best
