"""The classes of a data set, and the only place where their numberings meet.

Three numberings exist: the data set's own category ids (any integers, seen by readers and writers alone),
semantic channels (stuff 0..S-1, then things S..S+T-1) and instance labels (things 1..T, 0 = background).
"""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from upsnet.json_values import flag, whole_number
from upsnet.text import cut, shown

if TYPE_CHECKING:
    from torch import Tensor

Index = TypeVar("Index", int, "Tensor", npt.NDArray[np.int64])


MAX_NAME = 200
"""Characters of the name of a class at most."""

IGNORE_LABEL = 255
"""Semantic target of a pixel whose class is unknown (void truth, padding)."""


@dataclass(frozen=True)
class Category:
    """One class: the data set's id, its name, thing or stuff, and a colour for pictures."""

    id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int]


@dataclass(frozen=True)
class CategorySet:
    """All classes in the order of the semantic channels: stuff first, then things, each as in the data set."""

    categories: tuple[Category, ...]

    @classmethod
    def from_json(cls, rows: Sequence[dict[str, Any]], *, source: str) -> CategorySet:
        """Builds the set from COCO-panoptic `categories` rows: `id`, `name`, `isthing`, optional `color`.

        Args:
            rows: the rows, in the data set's order.
            source: named in errors.

        Raises:
            ValueError: a field is missing, an id or a name stands twice, or there is no category.
        """
        if not isinstance(rows, list | tuple):
            raise ValueError(f"{source}: categories are {shown(rows)}, expected a list of objects")
        categories = [_category(row, number, source) for number, row in enumerate(rows)]
        for key in ("id", "name"):
            values = [getattr(c, key) for c in categories]
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(
                    f"{source}: category {key} {shown(twice[0])} appears more than once, expected each once"
                )
        if not 0 < len(categories) < IGNORE_LABEL:
            raise ValueError(f"{source}: {len(categories)} categories, expected 1 to {IGNORE_LABEL - 1}")
        return cls(tuple(sorted(categories, key=lambda c: c.is_thing)))

    def to_json(self) -> list[dict[str, Any]]:
        """COCO-panoptic `categories` rows, in channel order."""
        rows = [asdict(category) for category in self.categories]
        return [{"isthing": int(row.pop("is_thing")), **row, "color": list(row["color"])} for row in rows]

    @cached_property
    def num_stuff(self) -> int:
        """S, the number of stuff classes."""
        return sum(not c.is_thing for c in self.categories)

    @cached_property
    def num_things(self) -> int:
        """T, the number of thing classes."""
        return len(self.categories) - self.num_stuff

    @cached_property
    def channels(self) -> dict[int, int]:
        """Data set category id -> semantic channel."""
        return {category.id: channel for channel, category in enumerate(self.categories)}

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, channel: int) -> Category:
        return self.categories[channel]

    def require_names(self, other: CategorySet, *, source: str) -> None:
        """Checks that `other` has the same names of the same kinds. Ids and order may differ.

        Raises:
            ValueError: naming the first category that differs.
        """
        kinds = {False: "stuff", True: "thing"}
        ours = {c.name: kinds[c.is_thing] for c in self.categories}
        for category in other.categories:
            found = ours.pop(category.name, None)
            if found is None:
                raise ValueError(
                    f"{source}: class {shown(category.name)} is none of the model "
                    f"({cut(', '.join(c.name for c in self.categories), 200)}); use data.classes to merge or drop it"
                )
            if found != kinds[category.is_thing]:
                raise ValueError(
                    f"{source}: class {shown(category.name)} is {kinds[category.is_thing]}, expected {found} as in the "
                    f"model; list it under data.classes.{'things' if found == 'thing' else 'stuff'}"
                )
        if ours:
            raise ValueError(f"{source}: no class {shown(next(iter(ours)))}, which the model has")

    def require(self, other: CategorySet, *, source: str) -> None:
        """Checks that `other` has the same classes under the same ids, in any order.

        Raises:
            ValueError: naming the first category that differs.
        """
        ours = {c.id: (c.name, c.is_thing) for c in self.categories}
        for category in other.categories:
            found = ours.pop(category.id, None)
            if found != (category.name, category.is_thing):
                expected = "no such id" if found is None else f"{found[0]!r} (isthing {int(found[1])})"
                raise ValueError(
                    f"{source}: category id {category.id} is {category.name!r} (isthing {int(category.is_thing)}), "
                    f"expected {expected}: the categories must be those of the model"
                )
        if ours:
            raise ValueError(f"{source}: category {next(iter(ours.values()))[0]!r} of the model is missing")


def _category(row: Any, number: int, source: str) -> Category:
    """The class of a row, see `CategorySet.from_json`."""
    if not isinstance(row, dict):
        raise ValueError(f"{source}: category {number} is {shown(row)}, expected an object with id, name, isthing")
    missing = [key for key in ("id", "name", "isthing") if key not in row]
    if missing:
        raise ValueError(f"{source}: category {shown(row.get('name', number))} lacks {', '.join(missing)}")
    name, color = row["name"], row.get("color") or _default_color(number)
    category_id, is_thing = whole_number(row["id"]), flag(row["isthing"])
    where = f"{source}: category {shown(name)}"
    if not isinstance(name, str | int) or not is_name(str(name)):
        raise ValueError(f"{where}: expected a name of 1 to {MAX_NAME} printable characters")
    if category_id is None or abs(category_id) >= 2**31:
        raise ValueError(f"{where} has id {shown(row['id'])}, expected a whole number of 32 bits")
    if is_thing is None:
        raise ValueError(f"{where} has isthing={shown(row['isthing'])}, expected 0 or 1")
    shades = [whole_number(value) for value in color] if isinstance(color, list | tuple) else []
    usable = [shade for shade in shades if shade is not None and 0 <= shade <= 255]
    if not len(usable) == len(shades) == 3:
        raise ValueError(f"{where} has color {shown(color)}, expected three of 0..255")
    return Category(category_id, str(name), is_thing, (usable[0], usable[1], usable[2]))


def is_name(text: str) -> bool:
    """Whether a text can be the name of a class: it can be drawn and written (OpenCV crashes on surrogates)."""
    kinds = {unicodedata.category(character) for character in text[: MAX_NAME + 1]}
    return 0 < len(text) <= MAX_NAME and not kinds & {"Cc", "Cs"}


def semantic_from_label(label: Index, num_stuff: int) -> Index:
    """Instance label 1..T -> semantic channel S..S+T-1."""
    return num_stuff + label - 1


def label_from_semantic(channel: Index, num_stuff: int) -> Index:
    """Semantic channel of a thing, S..S+T-1 -> instance label 1..T."""
    return channel - num_stuff + 1


def _default_color(index: int) -> tuple[int, int, int]:
    """Distinct colours for any number of classes: golden-ratio steps around the hue circle."""
    red, green, blue = colorsys.hsv_to_rgb((index * 0.618034) % 1.0, 0.55 + 0.4 * (index % 2), 0.95 - 0.2 * (index % 3))
    return round(255 * red), round(255 * green), round(255 * blue)
