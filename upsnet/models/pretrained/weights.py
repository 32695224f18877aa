"""Weights from elsewhere: reads foreign files, translates their names, and fills a model, classes matched by name.

This is the only place where rows of one set of classes meet rows of another. Nothing but tensors is ever unpickled.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from upsnet.categories import CategorySet
from upsnet.models.backbone import ResNet
from upsnet.models.file_format import migrated_weights, require_finite
from upsnet.models.pretrained.array_pickle import load_arrays
from upsnet.models.pretrained.formats import RESNET, TRANSLATORS, Names, Weights, class_names


@dataclass
class Report:
    """What happened to the parameters and buffers of a model.

    Attributes:
        kind: what the file was.
        loaded: filled as they were; resized: row -> filled for some of the classes; fresh: left as they were.
        unused: names in the file that the model has no place for.
        kept, missing: names of classes that the file had, and had not.
    """

    kind: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{self.kind}: {len(self.loaded)} tensors loaded"]
        if self.resized:
            text = f"{len(self.resized)} resized to other classes: {len(self.kept)} kept by name"
            found.append(text + (f", fresh for {_some(self.missing)}" if self.missing else ""))
        if self.fresh:
            found.append(f"{len(self.fresh)} fresh: {_some(sorted({_part(name) for name in self.fresh}))}")
        if self.unused:
            found.append(f"{len(self.unused)} in the file are not used: {_some(self.unused)}")
        return found


def read_weights(path: str | Path) -> Weights:
    """Reads weights: this project's, the official UPSNet's, torchvision's (ResNet, Mask R-CNN) or detectron2's.

    Raises:
        FileNotFoundError, ValueError: no such file, not a file of tensors, or none of these; says what it looks like.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    values = _read_torch(path) if path.suffix != ".pkl" or zipfile.is_zipfile(path) else load_arrays(path)
    if isinstance(values, dict) and "categories" in values and "weights" in values:
        categories = CategorySet.from_json(values["categories"], source=str(path))
        own = migrated_weights(values, source=str(path))
        require_finite(own, source=str(path))
        return Weights("checkpoint of this project", own, class_names(categories), class_names(categories, things=True))
    for key in ("model", "state_dict"):
        if isinstance(values, dict) and isinstance(values.get(key), Mapping):
            values = values[key]
    tensors = _tensors(values, path)
    require_finite(tensors, source=str(path))
    for marker, translate in TRANSLATORS.items():
        if marker in tensors:
            try:
                return translate(tensors)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    raise ValueError(
        f"{path}: {len(tensors)} tensors ({_some(list(tensors))}), expected a checkpoint of this project, the official "
        "UPSNet's, torchvision's ResNet or Mask R-CNN, or detectron2's; convert the names first"
    )


@torch.no_grad()
def fill(model: nn.Module, weights: Weights, categories: CategorySet) -> Report:
    """Fills a model with what fits; rows of classes are matched by name.

    Raises:
        ValueError: a tensor that does not depend on the classes has another shape, something frozen would stay random,
            or nothing fits at all.
    """
    report = Report(weights.kind)
    known = {name for name in (*(weights.classes or ()), *(weights.things or ())) if name}
    own, own_things = class_names(categories), class_names(categories, things=True)
    report.kept, report.missing = [n for n in own if n in known], [n for n in own if n not in known]
    state = model.state_dict()
    for name, target in state.items():
        source = weights.tensors.get(name)
        ours = _row_labels(name, own, own_things)
        theirs = _row_labels(name, weights.classes, weights.things)
        if source is None or (ours is not None and theirs is None):
            report.fresh.extend([] if name.endswith("num_batches_tracked") else [name])
            continue
        by_name = ours is not None and ours != theirs
        if target.shape[by_name:] != source.shape[by_name:] or (by_name and len(theirs or ()) != len(source)):
            raise ValueError(
                f"{weights.kind}: {name} is {tuple(source.shape)}, expected {tuple(target.shape)}: "
                "the weights belong to another architecture; use the config they were made with"
            )
        if by_name:
            for row, label in enumerate(ours or ()):
                if label in (theirs or ()):
                    target[row] = source[(theirs or []).index(label)]
        else:
            target.copy_(source)
        (report.resized if by_name else report.loaded).append(name)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if random := sorted(name for name in frozen.intersection(report.fresh) if ".offset." not in name):
        raise ValueError(
            f"{weights.kind}: has no {_some(random)}, which the config freezes: they would stay random; "
            "choose weights with a backbone, or set model.backbone.norm to bn or gn and freeze_at to 0"
        )
    report.unused = sorted(weights.tensors.keys() - state.keys())
    if not [name for name in report.loaded if not name.startswith("pixel_")]:
        raise ValueError(f"{weights.kind}: nothing fits this model, expected names such as {_some(report.fresh)}")
    return report


def load_backbone_weights(backbone: ResNet, name: str, weights: str) -> None:
    """Fills a backbone with pretrained weights.

    Args:
        backbone: the network.
        name: resnet18, ...
        weights: torchvision's name of the weights (`IMAGENET1K_V1`), or a file with torchvision's parameter names.

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


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds; all mean that the file holds more or less than tensors
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "unreadable"
        raise ValueError(f"{path}: refused as a PyTorch file of plain tensors ({reason})") from None


def _tensors(values: Any, path: Path) -> dict[str, Tensor]:
    """Tensors by name, without the prefix of a data-parallel wrapper."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: holds a {type(values).__name__}, expected a state dict")
    found = {}
    for key, value in values.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.itemsize <= 8:
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        if isinstance(value, Tensor):
            found[str(key).removeprefix("module.")] = value
    return found


def _row_labels(name: str, classes: Names | None, things: Names | None) -> list[Any] | None:
    """What each row of a parameter stands for; None if it does not depend on the classes, or they are not known."""
    if name.startswith("semantic_head.score."):
        return None if classes is None else list(classes)
    layer = name.split(".")[1] if name.startswith("instance_head.") else ""
    if things is None or layer not in ("cls_score", "bbox_pred", "mask_score"):
        return None
    if layer == "bbox_pred":
        return [(thing, i) for thing in things for i in range(4)]
    return ["background", *things] if layer == "cls_score" else list(things)


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _part(name: str) -> str:
    """The module of the model that a parameter belongs to."""
    return ".".join(name.split(".")[:2])
