"""Applies changes to the classes of a data set: subset, merge, rename, drop, thing to stuff and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from upsnet.categories.category_set import IGNORE_LABEL, Category, CategorySet
from upsnet.class_edits import ClassEdits
from upsnet.text import cut, shown

BACKGROUND_COLOR = (70, 70, 70)


def edit_categories(own: CategorySet, edits: ClassEdits, *, source: str) -> CategorySet:
    """The classes after the changes.

    A merged class keeps id and colour of the class that had its name, else of the first one that it replaces.

    Args:
        own: the classes of the data set.
        edits: the changes.
        source: named in errors.

    Raises:
        ValueError: a change names no class, stuff and things are merged, or nothing is left.
    """
    if unknown := edits.unknown_names(category.name for category in own.categories):
        known = ", ".join(category.name for category in own.categories)
        raise ValueError(f"{source}: no class {shown(unknown[0])}, expected one of: {known}")
    groups: dict[str, list[Category]] = {}
    for category in own.categories:
        new = edits.new_name(category.name)
        if new is not None:
            groups.setdefault(new, []).append(category)
    found = []
    for name, members in groups.items():
        first = next((category for category in members if category.name == name), members[0])
        kinds = {category.is_thing for category in members}
        if name in edits.stuff or name == edits.background:
            kinds = {False}
        elif name in edits.things:
            kinds = {True}
        if len(kinds) > 1:
            names = ", ".join(category.name for category in members)
            raise ValueError(
                f"{source}: {shown(name)} merges stuff and things ({names}); set its kind with stuff or things"
            )
        found.append(replace(first, name=name, is_thing=kinds.pop()))
    if edits.background is not None and edits.background not in groups:
        number = max((category.id for category in own.categories), default=0) + 1
        found.append(Category(number, edits.background, is_thing=False, color=BACKGROUND_COLOR))
    return CategorySet.from_json(CategorySet(tuple(found)).to_json(), source=source)


def channel_table(own: CategorySet, target: CategorySet, edits: ClassEdits, *, source: str) -> npt.NDArray[np.int64]:
    """For each semantic channel of a data set the channel of the model, or `IGNORE_LABEL` for void. Names are matched.

    Args:
        own: the classes of the data set.
        target: the classes of the model.
        edits: the changes that lead from one to the other.
        source: named in errors.

    Raises:
        ValueError: a class of the data set is no class of the model.
    """
    channels = {category.name: channel for channel, category in enumerate(target.categories)}
    table = np.full(len(own), IGNORE_LABEL, dtype=np.int64)
    for channel, category in enumerate(own.categories):
        new = edits.new_name(category.name)
        if new is None:
            continue
        if new not in channels:
            raise ValueError(
                f"{source}: class {shown(category.name)} is none of the model ({cut(', '.join(channels), 200)}); "
                "drop or merge it with data.classes"
            )
        is_thing = target[channels[new]].is_thing
        if new not in (*edits.stuff, *edits.things, edits.background) and is_thing != category.is_thing:
            kinds = {False: "stuff", True: "thing"}
            raise ValueError(
                f"{source}: class {shown(category.name)} is {kinds[category.is_thing]}, expected {kinds[is_thing]} as "
                f"in the model; list {shown(new)} under data.classes.{'things' if is_thing else 'stuff'}"
            )
        table[channel] = channels[new]
    return table
