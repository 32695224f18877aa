"""Updates configs of older formats to the current format.

A checkpoint or an exported file stores the format number of its config, so only the later steps apply. A config YAML
has no number, so all steps apply. Therefore a step must not change a config that already has the newer format.

To change the schema: add a step to `STEPS` and one to `models.file_format.WEIGHT_STEPS`, and store a file of the old
format in `tests/files/`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Values = dict[str, Any]

Step = Callable[[Values], list[str]]
"""Edits a config in place, and returns one line for each change it made."""


def rename_key(old: str, new: str) -> Step:
    """A step that moves the value of one key (`train.lr`) to another.

    Raises:
        ValueError: the step found both keys.
    """

    def step(values: Values) -> list[str]:
        holder, key = _section(values, old)
        if holder is None or key not in holder:
            return []
        target, name = _section(values, new, create=True)
        if target is None:
            return []  # a section is no dictionary: validation reports that
        if name in target:
            raise ValueError(f"key {old!r} is the old name of {new!r}, and both are given; remove {old!r}")
        target[name] = holder.pop(key)
        return [f"key {old!r} is now {new!r}"]

    return step


def remove_key(key: str, reason: str) -> Step:
    """A step that removes a key (`data.test_resize`), and says why."""

    def step(values: Values) -> list[str]:
        holder, name = _section(values, key)
        if holder is None or name not in holder:
            return []
        del holder[name]
        return [f"key {key!r} is gone: {reason}"]

    return step


class UnknownFormatError(ValueError):
    """This version cannot read the format of a file."""


STEPS: tuple[Step, ...] = (
    rename_key("loss", "model.loss"),  # each architecture has its own losses
    remove_key("data.test_resize", "model.panoptic.method=official resizes as the official program does"),
    remove_key("train.compile", "train.cuda_graph=true is what shortens a step on a GPU"),
)
"""Step i turns a config of format i + 1 into one of format i + 2."""


def current_format() -> int:
    """The format number of the files that this version writes."""
    return 1 + len(STEPS)


def require_known_format(number: Any, *, source: str) -> None:
    """Checks that this version can read a format.

    Raises:
        UnknownFormatError: a newer version wrote the file, or the number is none.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UnknownFormatError(
            f"{source}: has format {str(number)[:40]!r}, expected a whole number; the file is damaged, or "
            "upsnet did not write it: export it again"
        )
    if number > current_format():
        raise UnknownFormatError(
            f"{source}: has format {number}, expected 1 to {current_format()}; a newer upsnet wrote it: "
            "pip install --upgrade upsnet"
        )


def migrate_config(values: Values, file_format: int) -> tuple[Values, list[str]]:
    """Applies the steps from an older format to the current one.

    Args:
        values: the config; it is not changed.
        file_format: its format number, 1 to `current_format()`.

    Returns:
        The config of the current format, and one line for each change.
    """
    values, changes = copy.deepcopy(values), []
    for step in STEPS[file_format - 1 :]:
        changes += step(values)
    return values, changes


def _section(values: Values, path: str, *, create: bool = False) -> tuple[Values | None, str]:
    """The dictionary that holds a dotted key, and the key's last part; None if there is no such dictionary."""
    *parents, key = path.split(".")
    holder: Any = values
    for name in parents:
        if create and isinstance(holder, dict):
            holder.setdefault(name, {})
        holder = holder.get(name) if isinstance(holder, dict) else None
    return (holder if isinstance(holder, dict) else None), key
