"""The format number of checkpoints, and the migration of weights of older formats.

`config.migrate` does the same for configs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from upsnet.config.migrate import current_format, migrate_config, require_known_format

FORMAT_NAME = "upsnet-checkpoint"
"""What the `format` of a checkpoint begins with; the format number follows, as in `upsnet-checkpoint-1`."""

Weights = dict[str, Tensor]

WEIGHT_STEPS: tuple[Callable[[Weights], Weights], ...] = (
    lambda weights: weights,  # format 2 renamed a key of the config
    lambda weights: weights,  # format 3 removed a key of the config
    lambda weights: weights,  # format 4 too
)
"""Step i turns weights of format i + 1 into those of format i + 2; as many as `config.migrate.STEPS`."""


def format_text() -> str:
    """The `format` that this version writes."""
    return f"{FORMAT_NAME}-{current_format()}"


def format_number(values: Any, *, source: str) -> int:
    """The format number of the values in a checkpoint.

    Raises:
        ValueError: they are not those of a checkpoint of this project, or a newer version wrote them.
    """
    text = values.get("format") if isinstance(values, dict) else None
    found = re.fullmatch(rf"{FORMAT_NAME}-([0-9]{{1,6}})", text) if isinstance(text, str) else None
    if found is None:
        raise ValueError(
            f"{source}: not a checkpoint of this project, expected format {format_text()!r}; train or export one"
        )
    require_known_format(int(found[1]), source=source)
    return int(found[1])


def migrated_weights(values: dict[str, Any], *, source: str) -> Weights:
    """The weights of a checkpoint under today's names.

    Args:
        values: the values in the file.
        source: the file to name in errors.

    Raises:
        ValueError: as `format_number`, or the weights are no tensors by name.
    """
    number = format_number(values, source=source)
    require_fields(values, {"weights": dict}, source=source)
    weights: Weights = values["weights"]
    wrong = [name for name, value in weights.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{source}: weight {str(wrong[0])[:80]!r} is no tensor; the file is damaged")
    for step in WEIGHT_STEPS[number - 1 :]:
        weights = step(weights)
    return weights


def migrated_model_section(values: dict[str, Any], *, source: str) -> Any:
    """The `model` section of the config in a checkpoint, with today's keys; it is not validated.

    Args:
        values: the values in the file.
        source: the file to name in errors.

    Raises:
        ValueError: as `format_number`, or the file holds no config.
    """
    number = format_number(values, source=source)
    require_fields(values, {"config": dict}, source=source)
    return migrate_config(values["config"], number)[0].get("model")


def require_finite(weights: Mapping[str, Tensor], *, source: str) -> None:
    """Checks that weights are dense tensors of numbers that are finite in float32.

    Raises:
        ValueError: one is not; the message names the first such parameter.
    """
    for name, value in weights.items():
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise ValueError(f"{source}: weight {name} is no dense tensor of real numbers; the file is damaged")
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise ValueError(
                f"{source}: weight {name} has {int((~value.float().isfinite()).sum())} values that are not finite; the "
                "training diverged, or the file is damaged: use an earlier checkpoint"
            )


def require_fields(values: Any, kinds: Mapping[str, type | tuple[type, ...]], *, source: str) -> None:
    """Checks that a file holds what it should.

    Args:
        values: what the file holds.
        kinds: key -> types that its value may have.
        source: the file to name in errors.

    Raises:
        ValueError: a key is missing, or its value has another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: holds a {type(values).__name__}, expected {', '.join(kinds)}; the file is damaged")
    for key, kind in kinds.items():
        # Python counts True as an int.
        if key not in values or not isinstance(values[key], kind) or isinstance(values[key], bool):
            found = f"{key!r} of type {type(values[key]).__name__}" if key in values else f"no {key!r}"
            raise ValueError(f"{source}: holds {found}, expected one that upsnet wrote; the file is damaged")
