"""Loads weights into a `TimmBackbone`: timm downloads them, or a file has them under timm's parameter names."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from upsnet.models.pretrained.report import some
from upsnet.models.pretrained.weights import COUNTER, read_tensors
from upsnet.models.timm_backbone import TimmBackbone, full_model, known_name, plain_name
from upsnet.text import first_line

PRETRAINED = "pretrained"
"""The value of `model.backbone.weights` with which timm downloads the weights."""


@torch.no_grad()
def load_timm_weights(backbone: TimmBackbone, weights: str) -> str:
    """Loads pretrained weights into a backbone.

    The names must be those of timm's complete model. All tensors of the backbone are required; the classifier is
    optional.

    Args:
        backbone: the network.
        weights: `pretrained`, or a file (.pth, .safetensors).

    Returns:
        A line that says which tensors were loaded.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, the download failed, or names or shapes of tensors do
            not fit.
    """
    where = f"model.backbone.weights={weights}"
    if weights == PRETRAINED:
        state, known = _downloaded(backbone.name), set[str]()
    elif not Path(weights).is_file():
        raise FileNotFoundError(
            f"{where}: no such file, expected {PRETRAINED}, or a file with the parameter names of {backbone.name}"
        )
    else:
        state = {name: value for name, value in read_tensors(weights).items() if not name.endswith(COUNTER)}
        known = {plain_name(name) for name in full_model(backbone.name).state_dict()}
    own = {plain_name(name): (name, value) for name, value in backbone.net.state_dict().items()}
    own = {key: pair for key, pair in own.items() if not pair[0].endswith(COUNTER)}
    found = {plain_name(name): value for name, value in state.items()}
    missing = [name for key, (name, _) in own.items() if key not in found]
    unknown = [name for name in state if known and plain_name(name) not in known]
    shapes = [
        f"{name} is {_shape(found[key])} in the file, {_shape(value)} in the model"
        for key, (name, value) in own.items()
        if key in found and found[key].shape != value.shape
    ]
    faults = [
        f"{len(names)} tensors {what}: {some(names, 2)}"
        for what, names in (("are missing", missing), ("have other shapes", shapes), ("are unknown", unknown))
        if names
    ]
    if faults:
        raise ValueError(
            f"{where}: does not fit {backbone.name}: {'; '.join(faults)}; expected the weights of this model under "
            "timm's names"
        )
    for key, (_, value) in own.items():
        value.copy_(found[key])
    unused = [name for name in state if plain_name(name) not in own and not name.endswith(COUNTER)]
    line = f"{where}: {len(own)} of {len(own)} tensors of {backbone.name} loaded"
    return line + (f"; not used, because the backbone has no such tensors: {some(unused, 2)}" if unused else "")


def _downloaded(name: str) -> dict[str, Tensor]:
    """The weights that timm downloads, or finds in its cache."""
    known_name(name)
    logger = logging.getLogger("huggingface_hub")  # it logs a warning for every attempt
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        state: dict[str, Tensor] = full_model(name, pretrained=True).state_dict()
    except Exception as error:  # many types: network, disk, or a model without weights
        raise ValueError(
            f"model.backbone.weights={PRETRAINED}: timm has no weights of {name}, or the download failed "
            f"({first_line(error)}); give a local file (.pth or .safetensors), or null to start from random weights"
        ) from None
    finally:
        logger.setLevel(level)
    return state


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
