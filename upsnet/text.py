"""Reading of YAML that users write, and formatting of values for error messages."""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Maximum number of values in a file. The values of an alias count wherever it is used, because aliases of aliases grow
without end."""
LENGTH = 60
"""Characters of a value that an error shows."""


def shown(value: Any) -> str:
    """The `repr` of a value in one line, cut in the middle if it is long."""
    if isinstance(value, str | bytes) and len(value) > 4 * LENGTH:
        value = value[: 4 * LENGTH]
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**100:
        return "a number of more than 100 digits"  # `repr` of a huge number takes long, or fails
    elif isinstance(value, list | dict | tuple | set) and len(value) > LENGTH:
        return f"a {type(value).__name__} of {len(value)} values"
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"
    return cut(text.encode("utf-8", "backslashreplace").decode(), LENGTH)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut if it is long; the name of its type if it has no message."""
    lines = str(error).strip().splitlines()
    return cut(lines[0], 300) if lines else type(error).__name__


def cut(text: str, length: int) -> str:
    """The text, without its middle if it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length - 20]} ... {text[-15:]}"


def parse_yaml(text: str, *, source: str) -> Any:
    """Parses YAML of plain values.

    Args:
        text: the document.
        source: the file or the override, for errors.

    Raises:
        ValueError: no valid YAML, nested too deeply, or too many values.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError(f"{source}: not valid YAML (nested too deeply)") from None
    except Exception as error:  # the constructors of tags raise errors of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{source}: not valid YAML ({reason})") from None
    _require_few_values(value, source)
    return value


def _require_few_values(value: Any, source: str) -> None:
    count, left = 0, [value]
    while left:
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"{source}: more than {MAX_VALUES} values, expected a config; look for aliases (*name)")
        found = left.pop()
        if isinstance(found, dict):
            left.extend(found.values())
        elif isinstance(found, list | tuple | set):
            left.extend(found)
