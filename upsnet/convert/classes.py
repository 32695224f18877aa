"""The classes of a conversion: from a file, or from the labels that were found.

A classes file is a YAML or JSON list, one class a row:

    - {name: date, isthing: 1}
    - {name: table, isthing: 0, id: 7, color: [90, 60, 30], value: 3}

`id` is the class's number in the data set (default: the smallest that is free, in order). `value` is its number, or its
colour [R, G, B], in maps of classes (default: its id).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from upsnet.categories import IGNORE_LABEL, CategorySet
from upsnet.categories.edits import BACKGROUND_COLOR
from upsnet.class_edits import NO_EDITS, ClassEdits
from upsnet.convert.layers import VOID
from upsnet.io.files import atomic_path
from upsnet.text import cut, parse_yaml, shown

BACKGROUND = "background"
"""Stuff class that fills unlabelled pixels where no class is stuff."""
GREY = list(BACKGROUND_COLOR)
"""Colour of the background, unless the classes file gives it one."""
KEYS = ("name", "id", "isthing", "color", "value")


@dataclass(frozen=True)
class Classes:
    """The classes, and how annotations name them.

    Attributes:
        categories: the classes of the data set.
        names: class -> semantic channel.
        values: pixel value in a map of classes -> semantic channel, `VOID` for dropped classes; of a colour,
            R + 256 G + 65536 B.
        in_colors: the values are colours.
        background: channel of the class that fills unlabelled pixels; None: they are void.
        source: where the classes come from, for errors.
    """

    categories: CategorySet
    names: dict[str, int]
    values: dict[int, int]
    in_colors: bool
    background: int | None
    source: str
    edits: ClassEdits = NO_EDITS

    def channel(self, label: str) -> int:
        """The semantic channel of a label; `IGNORE_LABEL` for a label whose pixels are void.

        Raises:
            ValueError: there is no such class.
        """
        new = self.edits.new_name(label)
        if new is None:
            return IGNORE_LABEL
        if new not in self.names:
            known = cut(", ".join(self.names), 200)
            raise ValueError(
                f"label {shown(label)} is no class of {self.source} ({known}); add it there, or use --drop or --merge"
            )
        return self.names[new]


@dataclass(frozen=True)
class ClassOptions:
    """What the user says about classes.

    Attributes:
        file: a classes file; None: the labels found are the classes, all of them things but for `stuff`.
        stuff: (pixel value or None, name) of the classes that are stuff.
        background: name of a stuff class that fills unlabelled pixels. None: `BACKGROUND` if no other class is stuff,
            else unlabelled pixels are void.
        keep_void: unlabelled pixels are void even if no class is stuff.
        edits: labels that are merged, renamed or dropped, before anything else looks at them.
    """

    file: Path | None = None
    stuff: tuple[tuple[int | None, str], ...] = ()
    background: str | None = None
    keep_void: bool = False
    edits: ClassEdits = NO_EDITS

    def resolve(self, found: Iterable[tuple[int | None, str]], source: str) -> Classes:
        """Settles the classes.

        Args:
            found: id (None: to be assigned) and name of the labels in the annotations, each once.
            source: of the labels, for errors.

        Raises:
            FileNotFoundError, ValueError: the classes file is missing or wrong, or the options contradict it or the
                labels.
        """
        if self.file is not None:
            if self.stuff:
                raise ValueError(
                    f"--stuff beside --classes {self.file}, expected one: set isthing and value in the file"
                )
            return _build(_read_rows(self.file), self, str(self.file), background_may_be_new=False)
        stuff = {name: value for value, name in self.stuff}
        if len(stuff) < len(self.stuff):
            raise ValueError("--stuff names a class twice, expected each once")
        labels = {name: number for number, name in found}
        known = {*labels, *(self.edits.new_name(label) for label in labels)}
        if unknown := [name for name, value in stuff.items() if value is None and name not in known]:
            listed = cut(", ".join(sorted(labels)), 200)
            raise ValueError(f"--stuff {unknown[0]}: no such label in {source} ({listed})")
        wanted = self.edits.keep or ()
        if wanted and labels and not known & set(wanted):
            listed = cut(", ".join(sorted(labels)), 200)
            raise ValueError(f"--classes {shown(','.join(wanted))}: none of them is a label of {source} ({listed})")
        of_stuff = {*stuff, self.background or BACKGROUND}
        rows = [
            {"name": name, "isthing": int(not {name, self.edits.new_name(name)} & of_stuff), "value": stuff.get(name)}
            | ({} if labels.get(name) is None else {"id": labels[name]})
            for name in dict.fromkeys([*labels, *stuff])
        ]
        return _build(rows, self, source, background_may_be_new=True)

    def notes(self, found: Iterable[str]) -> list[str]:
        """What the user should know about the labels that were found."""
        labels = sorted(set(found))
        notes = [f"no label {shown(name)}, which the options name" for name in self.edits.unknown_names(labels)]
        alike: dict[str, list[str]] = {}
        for label in labels:
            alike.setdefault(" ".join(label.split()).casefold(), []).append(label)
        notes += [
            f"labels {', '.join(map(repr, group))} differ only in case or blanks and are {len(group)} classes; "
            f"--merge {shlex.quote(group[0].strip() + '=' + ','.join(group))} makes them one"
            for group in alike.values()
            if len(group) > 1 and len({self.edits.new_name(label) for label in group}) > 1
        ]
        return notes


def parse_stuff(text: str) -> tuple[tuple[int | None, str], ...]:
    """`7=road,sky` -> ((7, "road"), (None, "sky")).

    Raises:
        ValueError: a part is neither a name nor value=name.
    """
    entries: list[tuple[int | None, str]] = []
    for part in text.split(","):
        value, equals, name = part.rpartition("=")
        if not name.strip() or (equals and not value.strip().isdecimal()):
            raise ValueError(f"--stuff {text}: {part!r}, expected NAME or VALUE=NAME, for example 7=road,8=sky")
        entries.append((int(value) if equals else None, name.strip()))
    return tuple(entries)


def write_classes(path: Path, classes: Classes) -> None:
    """Writes a classes file, atomically, unless it exists: then it may be the user's own."""
    if path.exists():
        return
    values = {channel: value for value, channel in classes.values.items()}
    rows = []
    for row in classes.categories.to_json():
        value = values.get(classes.names[row["name"]])
        rows.append({key: row[key] for key in ("name", "id", "isthing", "color")})
        if classes.in_colors and value is not None:
            rows[-1]["value"] = [value & 255, value >> 8 & 255, value >> 16]
        elif value not in (None, row["id"]):
            rows[-1]["value"] = value
    with atomic_path(path) as temporary:
        text = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, default_flow_style=None)
        temporary.write_text(text, encoding="utf-8")


def require_same_classes(path: Path, categories: CategorySet) -> None:
    """Checks that the classes file of a data set has these classes.

    Raises:
        ValueError: it has others.
    """
    try:
        own = ClassOptions(path, keep_void=not categories.num_stuff).resolve([], str(path)).categories
        own.require(categories, source="these annotations")
    except ValueError as error:
        raise ValueError(
            f"{path}: the data set has other classes already ({error}); add --classes {path}, or choose another "
            "--output"
        ) from None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = parse_yaml(path.read_text(encoding="utf-8-sig"), source=str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such classes file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid YAML or JSON ({error}), expected UTF-8") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of classes, one like {{name: cat, isthing: 1}} a row")
    for row in rows:
        if unknown := [key for key in row if key not in KEYS]:
            raise ValueError(
                f"{path}: class {shown(row.get('name'))} has {shown(unknown[0])}, expected {', '.join(KEYS)}"
            )
        if not isinstance(row.get("name"), str):
            raise ValueError(f"{path}: class name {shown(row.get('name'))}, expected text; put it into quotes")
        if not isinstance(row.get("id", 0), int):
            raise ValueError(f"{path}: class {shown(row['name'])} has id {shown(row['id'])}, expected a whole number")
        if not isinstance(row.get("color", []), list):
            raise ValueError(f"{path}: class {shown(row['name'])} has color {shown(row['color'])}, expected [R, G, B]")
    return rows


def _build(rows: list[dict[str, Any]], options: ClassOptions, source: str, *, background_may_be_new: bool) -> Classes:
    """The classes of rows of labels, after the edits."""
    given = [row["name"] for row in rows]
    if (twice := next((name for name in given if given.count(name) > 1), None)) is not None:
        raise ValueError(f"{source}: category name {shown(twice)} appears more than once, expected each once")
    edits = options.edits
    if (options.background or BACKGROUND) not in edits.drop:
        edits = replace(edits, background=options.background or BACKGROUND)
    labels, rows = rows, _edited(rows, edits)
    background = options.background
    if background is None and not options.keep_void and _all_are_things(rows):
        background, background_may_be_new = BACKGROUND, True
    if background is not None and background not in (row["name"] for row in rows):
        if not background_may_be_new:
            raise ValueError(f"--background {background}: not a class of {source}; add it there with isthing: 0")
        rows.append({"name": background, "isthing": 0, "value": None})
    for row in rows:
        if row["name"] == background:
            row.setdefault("color", GREY)
    taken = {row["id"] for row in rows if "id" in row}
    free = (number for number in range(1, len(rows) + len(taken) + 1) if number not in taken)
    for row in rows:
        row.setdefault("id", None)
        if row["id"] is None:
            row["id"] = next(free)
    categories = CategorySet.from_json(rows, source=source)
    names = {category.name: channel for channel, category in enumerate(categories.categories)}
    if background is not None and categories[names[background]].is_thing:
        raise ValueError(f"--background {background}: a thing in {source}, expected stuff (isthing: 0)")
    ids = {row["name"]: row["id"] for row in rows}
    values, in_colors = _values(labels, ids, names, edits, source)
    fills = None if background is None else names[background]
    return Classes(categories, names, values, in_colors, fills, source, edits)


def _edited(rows: Sequence[dict[str, Any]], edits: ClassEdits) -> list[dict[str, Any]]:
    """The rows of the classes: a merged class takes the row of its namesake, else of the first label."""
    classes: dict[str, dict[str, Any]] = {name: {"name": name, "isthing": 1} for name in edits.keep or ()}
    settled: set[str] = set()
    for row in rows:
        new = edits.new_name(row["name"])
        if new is None or (new in settled and row["name"] != new):
            continue
        classes[new] = {**row, "name": new}
        settled.add(new)
    return list(classes.values())


def _values(
    labels: Sequence[dict[str, Any]], ids: dict[str, int], names: dict[str, int], edits: ClassEdits, source: str
) -> tuple[dict[int, int], bool]:
    """The channel of each value in a map of classes, and whether values are colours."""
    in_colors = any(isinstance(row.get("value"), list) for row in labels)
    values: dict[int, int] = {}
    for row in labels:
        new = edits.new_name(row["name"])
        value = row.get("value", None if in_colors else row.get("id", ids.get(row["name"])))
        if value is None:
            continue
        if isinstance(value, list) != in_colors or not _is_value(value):
            raise ValueError(
                f"{source}: class {shown(row['name'])} has value {value!r}, expected numbers or [R, G, B] for all"
            )
        number = value[0] | value[1] << 8 | value[2] << 16 if in_colors else value
        if number in values:
            raise ValueError(f"{source}: value {value} stands for two classes, the second is {row['name']!r}")
        values[number] = VOID if new is None else names[new]
    return values, in_colors


def _all_are_things(rows: list[dict[str, Any]]) -> bool:
    """Whether no class is stuff, but for one of the name `BACKGROUND`."""
    return all(row.get("isthing") in (1, True) or row["name"] == BACKGROUND for row in rows)


def _is_value(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    top = 255 if isinstance(value, list) else 2**24 - 1
    length = 3 if isinstance(value, list) else 1
    return len(numbers) == length and all(type(number) is int and 0 <= number <= top for number in numbers)
