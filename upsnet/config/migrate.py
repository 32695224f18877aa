"""Turns configs of older formats into today's.

A checkpoint or an exported file holds its config and a format number, so exactly the steps since that format apply. A
config YAML has no number, so all steps apply to it. A step therefore must do nothing to a config that is newer than it.

To change the schema: add a step to `STEPS` and one to `models.checkpoint.WEIGHT_STEPS`, and store a file of the old
format in `tests/files/`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

Values = dict[str, Any]

Step = Callable[[Values], list[str]]
"""Edits a config in place, and returns one line for each change it made."""


def renamed(old: str, new: str) -> Step:
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


class UnknownFormatError(ValueError):
    """A newer version of this package wrote a file."""


STEPS: tuple[Step, ...] = ()
"""Step i turns a config of format i + 1 into one of format i + 2."""


def current_format() -> int:
    """The format number of the files that this version writes."""
    return 1 + len(STEPS)


def require_known_format(number: Any, *, source: str) -> None:
    """Checks that this version can read a format.

    Raises:
        UnknownFormatError: a newer version wrote the file.
    """
    if not isinstance(number, int) or not 1 <= number <= current_format():
        raise UnknownFormatError(
            f"{source}: has format {number}, expected 1 to {current_format()}; a newer upsnet wrote it: "
            "pip install --upgrade upsnet"
        )


def migrate_config(values: Values, file_format: int) -> tuple[Values, list[str]]:
    """Applies the steps from a format to today's.

    Args:
        values: the config; it is not changed.
        file_format: its format number, 1 to `current_format()`.

    Returns:
        The config of today's format, and one line for each change.
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
