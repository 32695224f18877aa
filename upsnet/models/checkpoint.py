"""Saves and loads checkpoints: one file with weights, config and categories.

Files are written atomically, and loading one runs no code. A checkpoint carries a format number. `load_checkpoint`
reads every format up to the current one: `config.migrate` updates the config, `models.file_format` the weights.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn

from upsnet.categories import CategorySet
from upsnet.config import Config, parse_config
from upsnet.config.migrate import require_known_format
from upsnet.io.files import atomic_path, sync_folder
from upsnet.models.base import PanopticModel
from upsnet.models.build import build_model
from upsnet.models.file_format import format_number, format_text, migrated_weights, require_fields, require_finite
from upsnet.text import first_line


class TrainingState(TypedDict):
    """What a run needs, besides its weights, to resume with the same results.

    The order of the images, augmentation and sampling are functions of (seed, epoch, image), hence of the iteration, so
    no generator state is stored. The schedule is a function of the iteration.

    Attributes:
        optimizer: its state dict.
        iteration: updates made.
        best, best_iteration: the best evaluation so far, -1 and 0 before the first. `best` is also -1 if there was
            nothing to score.
        evaluation_due: the evaluation of `iteration` is not finished.
        interval: `Interval.rows` since the last row of `metrics.jsonl`.
        data: `resume.describe_data` of the training and the validation set.
        world_size: number of processes.
        scaler: state dict of the gradient scaler of fp16; absent in older files, empty without one.
    """

    optimizer: dict[str, Any]
    iteration: int
    best: float
    best_iteration: int
    evaluation_due: bool
    interval: torch.Tensor
    data: dict[str, Any]
    world_size: int
    scaler: NotRequired[dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        config, categories: of the run.
        weights: the model's state dict.
        metrics: of the evaluation that chose it, or None.
        training: what it takes to go on (only in `last.pt`).
    """

    config: Config
    categories: CategorySet
    weights: dict[str, torch.Tensor]
    metrics: dict[str, Any] | None = None
    training: TrainingState | None = None

    def build(self) -> PanopticModel:
        """The model with these weights, in evaluation mode."""
        model = build_model(self.config, self.categories, pretrained=False)
        load_weights(model, self.weights, source="checkpoint")
        return model.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically, and returns after it is synced to the disk.

    Raises:
        OSError: it cannot be written; an older file of this name is as it was.
    """
    values = {
        "format": format_text(),
        "config": checkpoint.config.dump(),
        "categories": checkpoint.categories.to_json(),
        "weights": checkpoint.weights,
        "metrics": checkpoint.metrics,
        "training": checkpoint.training,
    }
    with atomic_path(path) as temporary:
        try:
            torch.save(values, temporary)
        except RuntimeError as error:  # what torch makes of a disk that takes no more
            raise OSError(f"{path}: cannot be written ({first_line(error)})") from None
    sync_folder(path.parent)


def load_checkpoint(path: Path, overrides: Sequence[str] = ()) -> Checkpoint:
    """Reads a checkpoint onto the CPU; only tensors and plain values are admitted.

    Args:
        path: the file.
        overrides: `key=value`, changes to its config.

    Raises:
        FileNotFoundError, ValueError: no such file, not a checkpoint of this project, or a wrong override.
    """
    if path.suffix in (".pt2", ".onnx"):
        raise ValueError(f"{path}: an exported graph, expected a checkpoint (model.pt or last.pt of a run)")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint, expected model.pt or last.pt of a run, or an exported checkpoint"
        )
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":  # torch.load would take it for a pickle, whatever follows
                raise ValueError("it does not begin as a zip archive")
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:  # torch.load does not look at the checksums
                raise ValueError(f"{damaged} is damaged")
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; all mean that the file is not a checkpoint
        raise ValueError(f"{path}: cannot be read as a checkpoint ({first_line(error)})") from None
    number = format_number(values, source=str(path))
    config, categories = read_description(values, number, source=str(path))
    config = parse_config(config.dump(), overrides, source=str(path)) if overrides else config
    weights = migrated_weights(values, source=str(path))
    require_finite(weights, source=str(path))
    require_fields(values, {"metrics": (dict, NoneType), "training": (dict, NoneType)}, source=str(path))
    return Checkpoint(config, categories, weights, values["metrics"], values["training"])


def read_description(values: dict[str, Any], file_format: int, *, source: str) -> tuple[Config, CategorySet]:
    """The config and the classes, as checkpoints and exported graphs hold them.

    Args:
        values: with the keys `config` and `categories`.
        file_format: format number of the file.
        source: the file to name in errors.

    Raises:
        ValueError: a newer version of this package wrote the file, or a value does not fit.
    """
    require_known_format(file_format, source=source)
    require_fields(values, {"config": dict, "categories": list}, source=source)
    config = parse_config(values["config"], source=f"{source} (config)", file_format=file_format)
    return config, CategorySet.from_json(values["categories"], source=source)


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], *, source: str) -> None:
    """Fills a model.

    Raises:
        ValueError: names or shapes differ: the checkpoint belongs to another model.
    """
    expected = model.state_dict()
    wrong = sorted(
        key
        for key in expected.keys() | weights.keys()
        if key not in expected or key not in weights or expected[key].shape != weights[key].shape
    )
    if wrong:
        key = wrong[0]
        shapes = [tuple(d[key].shape) if key in d else "absent" for d in (weights, expected)]
        raise ValueError(
            f"{source}: belongs to another model: {len(wrong)} parameters differ, "
            f"the first is {key}: {shapes[0]}, expected {shapes[1]}"
        )
    model.load_state_dict(weights)
