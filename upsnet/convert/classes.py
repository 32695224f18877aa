"""The classes of a conversion: from a file, or from the labels that were found.

A classes file is a YAML or JSON list, one class a row:

    - {name: date, isthing: 1}
    - {name: table, isthing: 0, id: 7, color: [90, 60, 30], value: 3}

`id` is the class's number in the data set (default: the smallest that is free, in order). `value` is its number, or its
colour [R, G, B], in maps of classes (default: its id).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from upsnet.categories import CategorySet
from upsnet.io.files import atomic_path
from upsnet.text import parse_yaml, shown

GREY = [70, 70, 70]
"""Of the background, unless the classes file gives it a colour."""
KEYS = ("name", "id", "isthing", "color", "value")


@dataclass(frozen=True)
class Classes:
    """The classes, and how annotations name them.

    Attributes:
        categories: the classes of the data set.
        names: name -> semantic channel.
        values: pixel value in a map of classes -> semantic channel; of a colour, R + 256 G + 65536 B.
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

    def channel(self, name: str, where: str) -> int:
        """The semantic channel of a label; `where` names it in the error.

        Raises:
            ValueError: there is no such class.
        """
        if name not in self.names:
            known = ", ".join(self.names)
            raise ValueError(
                f"{where}: label {name!r} is not a class of {self.source} ({known}); add it there, or mend the label"
            )
        return self.names[name]


@dataclass(frozen=True)
class ClassOptions:
    """What the user says about classes.

    Attributes:
        file: a classes file; None: the labels found are the classes, all of them things but for `stuff`.
        stuff: (pixel value or None, name) of the classes that are stuff.
        background: name of a stuff class that fills unlabelled pixels.
    """

    file: Path | None = None
    stuff: tuple[tuple[int | None, str], ...] = ()
    background: str | None = None

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
            return _build(_read_rows(self.file), self.background, str(self.file), background_may_be_new=False)
        stuff = {name: value for value, name in self.stuff}
        if len(stuff) < len(self.stuff):
            raise ValueError("--stuff names a class twice, expected each once")
        rows: list[dict[str, Any]] = []
        for number, name in found:
            is_thing = int(name not in stuff and name != self.background)
            rows.append({"name": name, "isthing": is_thing, "value": stuff.get(name)})
            rows[-1] |= {} if number is None else {"id": number}
        known = {row["name"] for row in rows}
        if unknown := [name for name, value in stuff.items() if value is None and name not in known]:
            raise ValueError(f"--stuff {unknown[0]}: no such label in {source} ({', '.join(sorted(known))})")
        rows += [{"name": n, "isthing": 0, "value": value} for n, value in stuff.items() if n not in known]
        return _build(rows, self.background, source, background_may_be_new=True)


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


def write_classes(path: Path, categories: CategorySet) -> None:
    """Writes a classes file, atomically."""
    rows = [{key: row[key] for key in ("name", "id", "isthing", "color")} for row in categories.to_json()]
    with atomic_path(path) as temporary:
        text = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, default_flow_style=None)
        temporary.write_text(text, encoding="utf-8")


def require_same_classes(path: Path, categories: CategorySet) -> None:
    """Checks that the classes file of a data set has these classes.

    Raises:
        ValueError: it has others.
    """
    try:
        CategorySet.from_json(_read_rows(path), source=str(path)).require(categories, source="these annotations")
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


def _build(rows: list[dict[str, Any]], background: str | None, source: str, *, background_may_be_new: bool) -> Classes:
    rows = [dict(row) for row in rows]
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
    in_colors = any(isinstance(row.get("value"), list) for row in rows)
    values: dict[int, int] = {}
    for row in rows:
        value = row.get("value", None if in_colors else row["id"])
        if value is None:
            continue
        if isinstance(value, list) != in_colors or not _is_value(value):
            raise ValueError(
                f"{source}: class {shown(row['name'])} has value {value!r}, expected numbers or [R, G, B] for all"
            )
        number = value[0] | value[1] << 8 | value[2] << 16 if in_colors else value
        if number in values:
            raise ValueError(f"{source}: value {value} stands for two classes, the second is {row['name']!r}")
        values[number] = names[row["name"]]
    return Classes(categories, names, values, in_colors, None if background is None else names[background], source)


def _is_value(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    top = 255 if isinstance(value, list) else 2**24 - 1
    length = 3 if isinstance(value, list) else 1
    return len(numbers) == length and all(type(number) is int and 0 <= number <= top for number in numbers)
