"""Weights from other files: reads them, translates their names, and fills a model with what fits.

This is the only place where rows of one set of classes meet rows of another. Nothing but tensors is ever unpickled.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from upsnet.categories import CategorySet
from upsnet.config import UPSNetConfig
from upsnet.models.backbone import ResNet
from upsnet.models.file_format import migrated_model_section, migrated_weights, require_finite
from upsnet.models.pretrained.array_pickle import load_arrays
from upsnet.models.pretrained.formats import RESNET, TRANSLATORS, Weights
from upsnet.models.pretrained.report import PIXEL_STATISTICS, Outcome, Report, some
from upsnet.models.pretrained.rows import Label, Rows, Shapes, class_names
from upsnet.models.upsnet.rpn import Anchors
from upsnet.text import first_line

OWN = "checkpoint of this project"
COUNTER = ".num_batches_tracked"
"""Ending of the counters of batch norms. They have no effect on a model and are in no report."""
ENOUGH_OF_BACKBONE = 0.5
"""Share of the weights of the backbone that a file should fill. Below it the user gets a warning."""


def read_weights(path: str | Path) -> Weights:
    """Reads weights: this project's, the official UPSNet's, Panoptic-DeepLab's, torchvision's or detectron2's.

    Raises:
        FileNotFoundError, ValueError: no such file, not a file of tensors, or none of these; says what it looks like.
    """
    path = Path(path)
    values = _read_values(path)
    if _is_own(values):
        categories = CategorySet.from_json(values["categories"], source=str(path))
        own = migrated_weights(values, source=str(path))
        require_finite(own, source=str(path))
        names = class_names(categories), class_names(categories, things=True)
        return Weights(OWN, own, Rows(*names, _anchor_shapes_of_file(values, str(path))), str(path))
    tensors = _tensors(values, path)
    for marker, translate in TRANSLATORS.items():
        if marker in tensors:
            try:
                return replace(translate(tensors), source=str(path))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            except (IndexError, KeyError, RuntimeError, TypeError):  # from indexing tensors of unexpected shapes
                raise ValueError(
                    f"{path}: tensors such as {marker} are missing or have unexpected shapes; the file is damaged"
                ) from None
    raise ValueError(
        f"{path}: {len(tensors)} tensors ({some(list(tensors), 3)}), expected a checkpoint of this project, the "
        "official UPSNet's, Panoptic-DeepLab's, torchvision's ResNet or Mask R-CNN, or detectron2's; convert the names "
        "first, or give weights of a timm model as model.backbone.weights"
    )


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a file of another program, and keeps their names.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is not a file of tensors.
    """
    path = Path(path)
    values = _read_values(path)
    if _is_own(values):
        raise ValueError(f"{path}: {OWN}, expected weights of the backbone alone; --init takes this file")
    return _tensors(values, path)


@torch.no_grad()
def fill(model: nn.Module, weights: Weights, categories: CategorySet) -> Report:
    """Fills a model with what fits.

    Rows of classes are matched by name, rows of anchors by aspect ratio and order of size. If the file does not tell
    its anchors, they count as those of the model. A residual block or a layer is taken as a whole or not at all,
    because a part of it is of no use without the rest.

    Args:
        model: stays as it was if this raises an error.
        weights: of the file.
        categories: the classes of the model.

    Returns:
        What was taken, and what stays fresh.

    Raises:
        ValueError: nothing fits at all, or something that training never changes would stay random.
    """
    own = Rows(class_names(categories), class_names(categories, things=True), _anchor_shapes(model))
    told = weights.rows
    theirs = Rows(told.classes, told.things, told.anchors or own.anchors)
    state = model.state_dict()
    fits = {
        name: _fit(target, weights.tensors.get(name), own.labels(name), theirs.labels(name))
        for name, target in state.items()
    }
    torn = {_unit(name) for name, fit in fits.items() if fit.outcome is Outcome.OTHER_SHAPE}
    for name, fit in fits.items():
        if _unit(name) in torn and fit.outcome is not Outcome.ABSENT:
            fits[name] = _Fit(Outcome.OTHER_SHAPE)
    report = _report(weights, state, fits, own)
    _require_some(report)
    _require_no_random_frozen(report, model)
    for name, fit in fits.items():
        if fit.outcome is Outcome.LOADED:
            state[name].copy_(weights.tensors[name])
        elif fit.outcome is Outcome.MATCHED:
            state[name][fit.rows] = weights.tensors[name][fit.file_rows].to(state[name])
    return replace(report, warnings=_backbone_warnings(report, model))


@dataclass(frozen=True)
class _Fit:
    """How a tensor of the file fits one of the model.

    Attributes:
        outcome: what it comes to.
        rows, file_rows: rows of the model, and the rows of the file that belong there; for a match by rows.
    """

    outcome: Outcome
    rows: list[int] = field(default_factory=list)
    file_rows: list[int] = field(default_factory=list)


def _fit(target: Tensor, source: Tensor | None, labels: list[Label] | None, file_labels: list[Label] | None) -> _Fit:
    """Compares a tensor of the model with the one of the file, by the labels of their rows if these have labels."""
    if source is None:
        return _Fit(Outcome.ABSENT)
    if labels is None or labels == file_labels:
        return _Fit(Outcome.LOADED if source.shape == target.shape else Outcome.OTHER_SHAPE)
    if file_labels is None or source.shape[:1] != (len(file_labels),):
        return _Fit(Outcome.UNNAMED)
    if source.shape[1:] != target.shape[1:]:
        return _Fit(Outcome.OTHER_SHAPE)
    place = {label: row for row, label in enumerate(file_labels)}
    pairs = [(row, place[label]) for row, label in enumerate(labels) if label in place]
    return _Fit(Outcome.MATCHED if pairs else Outcome.NO_ROWS, [row for row, _ in pairs], [row for _, row in pairs])


def _unit(name: str) -> str:
    """The smallest part of the model that is taken as a whole: a residual block, the stem, or a layer."""
    parts = name.split(".")
    if name in PIXEL_STATISTICS or parts[0] == "backbone":
        return ".".join(parts[:3]) if parts[1:] and parts[1].startswith("layer") else "backbone"
    return ".".join(part for part in parts[:-1] if part not in ("offset", "conv", "norm"))


def _report(weights: Weights, state: dict[str, Tensor], fits: dict[str, _Fit], own: Rows) -> Report:
    both = [name for name in state if name in weights.tensors]
    shapes = {name: (tuple(weights.tensors[name].shape), tuple(state[name].shape)) for name in both}
    rows = {}
    for name, fit in fits.items():
        labels = own.labels(name)
        if labels is not None and fit.outcome in (Outcome.LOADED, Outcome.MATCHED, Outcome.NO_ROWS):
            rows[name] = (labels, labels if fit.outcome is Outcome.LOADED else [labels[row] for row in fit.rows])
    return Report(
        kind=weights.kind,
        source=weights.source,
        outcomes={name: fit.outcome for name, fit in fits.items() if not name.endswith(COUNTER)},
        shapes={name: pair for name, pair in shapes.items() if pair[0] != pair[1]},
        rows=rows,
        unused=[name for name in weights.tensors if name not in state and not name.endswith(COUNTER)],
        model_rows=own,
        file_rows=weights.rows,
    )


def _require_some(report: Report) -> None:
    """An error if not one tensor with weights comes from the file."""
    if set(report.loaded + report.matched) - set(PIXEL_STATISTICS):
        return
    unfit = report.names(Outcome.OTHER_SHAPE)
    reason = report.example(unfit) if unfit else f"expected names such as {some(report.fresh, 3)}"
    raise ValueError(
        f"{report.source}: nothing in this {report.kind} fits the model: {reason}; use the config that the weights "
        "were made with, or other weights"
    )


def _require_no_random_frozen(report: Report, model: nn.Module) -> None:
    """An error if a module that training never changes stays fresh. Offsets are zero then, which does no harm."""
    frozen: set[str] = set()
    for prefix, module in model.named_modules():
        parameters = dict(module.named_parameters(prefix, recurse=False))
        if parameters and not any(parameter.requires_grad for parameter in parameters.values()):
            frozen.update(parameters, dict(module.named_buffers(prefix, recurse=False)))
    if random := [name for name in report.fresh if name in frozen and ".offset." not in name]:
        raise ValueError(
            f"{report.source}: nothing in this {report.kind} fits {some(random, 3)}, which the config freezes: they "
            "would stay random; choose weights whose backbone fits model.backbone, or set model.backbone.norm to bn or "
            "gn and model.backbone.freeze_at to 0"
        )


def _backbone_warnings(report: Report, model: nn.Module) -> list[str]:
    """A warning if little of the backbone comes from the file."""
    sizes = {n: p.numel() for n, p in model.named_parameters() if n.startswith("backbone.")}
    share = sum(sizes.get(name, 0) for name in report.loaded) / max(1, sum(sizes.values()))
    if not sizes or share >= ENOUGH_OF_BACKBONE:
        return []
    amount = f"only {100 * share:.2g} %" if share else "nothing"
    return [
        f"{report.source}: the file fills {amount} of the backbone, the rest is random (model.backbone.weights is not "
        "used); set model.backbone as in the file, or plan a training from random weights"
    ]


def _anchor_shapes(model: nn.Module) -> Shapes | None:
    """(width, height) of the anchors of each level; None for a model without."""
    anchors = next((module for module in model.modules() if isinstance(module, Anchors)), None)
    return None if anchors is None else (2 * anchors.base[..., 2:]).tolist()


def _anchor_shapes_of_file(values: dict[str, Any], source: str) -> Shapes | None:
    """The same by the config in a checkpoint; None if the config does not tell."""
    try:
        return UPSNetConfig.model_validate(migrated_model_section(values, source=source)).rpn.shapes()
    except ValueError:
        return None


def load_backbone_weights(backbone: ResNet, name: str, weights: str) -> str:
    """Fills a backbone with pretrained weights.

    Args:
        backbone: the network.
        name: resnet18, ...
        weights: torchvision's name of the weights (`IMAGENET1K_V1`), or a file with torchvision's parameter names.

    Returns:
        A line that says which tensors were loaded.

    Raises:
        FileNotFoundError, ValueError: no such name or file, the download failed, or the parameters do not fit.
    """
    names = list(get_model_weights(name).__members__)
    if weights in names:
        try:
            state = get_model_weights(name)[weights].get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"model.backbone.weights={weights}: the download of {name} failed ({error}); "
                "give a local file instead, or null to start from random weights"
            ) from None
    elif not Path(weights).is_file():
        raise FileNotFoundError(f"model.backbone.weights={weights}: no such file, and not one of {', '.join(names)}")
    else:
        read = read_weights(weights)
        if read.kind != RESNET:
            raise ValueError(f"{weights}: {read.kind}, expected {RESNET}; --init takes other files")
        state = {k.removeprefix("backbone."): v for k, v in read.tensors.items() if k.startswith("backbone.")}
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    expected = {k: v for k, v in backbone.state_dict().items() if "num_batches" not in k and ".offset." not in k}
    wrong = sorted(k for k in expected if k not in state or state[k].shape != expected[k].shape)
    wrong += sorted(k for k in state if k not in backbone.state_dict() and "num_batches" not in k)
    if wrong:
        raise ValueError(
            f"{weights}: does not fit {name} of this width ({len(wrong)} parameters, the first is {wrong[0]})"
        )
    backbone.load_state_dict(state, strict=False)
    return f"model.backbone.weights={weights}: {len(expected)} of {len(expected)} tensors of {name} loaded"


def _read_values(path: Path) -> Any:
    """Reads the contents of a file of weights."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    if path.suffix in (".pt2", ".onnx"):
        raise ValueError(f"{path}: an exported graph, expected a checkpoint (model.pt or last.pt of a run)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path) if path.suffix != ".pkl" or zipfile.is_zipfile(path) else load_arrays(path)


def _is_own(values: Any) -> bool:
    """Whether these are the values of a checkpoint of this project."""
    return isinstance(values, dict) and "categories" in values and "weights" in values


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError(f"{path}: needs the package safetensors: pip install safetensors") from None
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors raises several kinds; all mean that the file is damaged
        raise ValueError(f"{path}: cannot be read as a safetensors file ({first_line(error)})") from None
    return tensors


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; all mean that the file holds more or less than tensors
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "unreadable"
        raise ValueError(f"{path}: refused as a PyTorch file of plain tensors ({reason})") from None


def _tensors(values: Any, path: Path) -> dict[str, Tensor]:
    """Finite tensors by name, without the prefix of a data-parallel wrapper."""
    for key in ("model", "state_dict"):
        if isinstance(values, dict) and isinstance(values.get(key), Mapping):
            values = values[key]
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: holds a {type(values).__name__}, expected a state dict")
    found = {}
    for key, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8:
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        if isinstance(value, Tensor):
            found[str(key).removeprefix("module.")] = value
    require_finite(found, source=str(path))
    return found
