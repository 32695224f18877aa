"""One line for what is wrong with a config: the key, the nearest names, the allowed values."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from upsnet.text import cut, shown

TAG_KEYS = ("format", "architecture")
"""Keys whose value chooses a member of a union of sections."""


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem, an unknown key before all others; `root` is the model that was validated."""
    problem = min(error.errors(), key=_rank)
    path, sections = _walk(problem["loc"], root, is_key=problem["type"] == "extra_forbidden")
    key = ".".join(path)
    more = "" if error.error_count() == 1 else f" (and {error.error_count() - 1} more)"
    if problem["type"] == "extra_forbidden":
        names = [field.alias or name for section in sections for name, field in section.model_fields.items()]
        near = difflib.get_close_matches(path[-1], names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(names)}"
        return f"unknown key {shown(key)}; {hint}{more}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing, expected a value{more}"
    message = cut(problem["msg"].removeprefix("Value error, "), 300)  # it may quote the value
    if not key:
        return f"{message}{more}"
    # Of a section, the message tells which of its keys contradict each other.
    given = "" if isinstance(problem["input"], dict) else f" is {shown(problem['input'])}"
    return f"key {key!r}{given}: {message}{more}"


def _rank(problem: Any) -> tuple[bool, int, bool]:
    """Unknown keys first; of the members of a union, the one that the value comes nearest to."""
    return problem["type"] != "extra_forbidden", -len(problem["loc"]), problem["type"] != "literal_error"


def _walk(
    location: tuple[int | str, ...], root: type[BaseModel], *, is_key: bool
) -> tuple[list[str], list[type[BaseModel]]]:
    """The keys as the user wrote them, without the tags of unions, and the sections that the last key stands in.

    `is_key`: the last part is a key, whatever it looks like; otherwise it may be the tag of a union's member.
    """
    path: list[str] = []
    inner = holders = [root]
    for index, part in enumerate(location):
        if "[" in str(part) and not (is_key and index == len(location) - 1):  # a member of a union
            continue
        tagged = [s for s in inner if len(inner) > 1 and part in _tags(s)]
        if tagged:
            inner = tagged
            continue
        path.append(str(part))
        holders = inner
        fields = [s.model_fields[str(part)] for s in inner if part in s.model_fields]
        inner = [s for field in fields for s in _sections(field.annotation)] or inner
    return path, holders


def _tags(section: type[BaseModel]) -> set[Any]:
    """The values of the keys that select a member of a union, and the attribute `tag` if the section has one."""
    fields = (section.model_fields.get(name) for name in TAG_KEYS)
    own = {section.tag} if hasattr(section, "tag") else set()
    return own | {tag for field in fields if field is not None for tag in get_args(field.annotation)}


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config sections in a type, also inside unions and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
