"""PQ of parts of a data set: by size of the objects, crowding, size of the image, and attributes from a CSV file.

| attribute | values |
| --- | --- |
| `object_size` | area of the true segment: `small` below 32^2 pixels, `medium` below 96^2, `large` |
| `crowding` | number of true things in the image |
| `image_size` | pixels of the image, in millions (MP) |
| others | columns of the file that the user gives (`read_attributes`) |

For matched and missed segments, `object_size` is the size of the true segment. For spurious predictions, it is the size
of the prediction.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upsnet.categories import CategorySet
from upsnet.categories.category_set import MAX_NAME, is_name
from upsnet.io.files import read_bytes
from upsnet.metrics.bootstrap import FIELDS, LEVEL, RESAMPLES, SEED
from upsnet.metrics.score_table import (
    SPURIOUS,
    Ints,
    Partition,
    ScoreTable,
    class_scores,
    drawn,
    group_scores,
    named_scores,
    partition_sums,
    percentiles,
)
from upsnet.text import shown

OBJECT_SIZE = ("object_size", ("small", "medium", "large"), (32**2, 96**2))
CROWDING = ("crowding", ("0 things", "1 to 4", "5 to 9", "10 to 19", "20 and more"), (1, 5, 10, 20))
IMAGE_SIZE = (
    "image_size",
    ("below 0.25 MP", "0.25 to 1 MP", "1 to 4 MP", "4 MP and more"),
    (250_000, 1_000_000, 4_000_000),
)
"""Name of an attribute, its values, and the lowest number of each value except the first."""

BUILT_IN = tuple(name for name, _, _ in (OBJECT_SIZE, CROWDING, IMAGE_SIZE))
MAX_VALUES = 100
"""Maximum number of values of an attribute."""


@dataclass(frozen=True)
class ImageFacts:
    """Name and size of an image, from which its slices are found.

    Attributes:
        image_id: as in the data set.
        file_name: empty if the image has none.
        size: (H, W).
    """

    image_id: int | str
    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Attributes:
    """Attributes of images from a CSV file.

    Attributes:
        path: the file.
        images: the rows: file name or id -> number of the row.
        values: attribute -> image (file name or id) -> value; empty cells are left out.
    """

    path: Path
    images: dict[str, int]
    values: dict[str, dict[str, str]]

    def partitions(self, images: Sequence[ImageFacts]) -> list[Partition]:
        """Groups the images by each attribute that has a value for one of them.

        Raises:
            ValueError: the file names none of the images.
        """
        if images and not any({fact.file_name, str(fact.image_id)} & self.images.keys() for fact in images):
            own = next(iter(self.images))
            raise ValueError(
                f"{self.path}: names none of the {len(images)} images: the first image is {shown(own)} "
                f"here and {shown(images[0].file_name or images[0].image_id)} in the evaluation, expected file names "
                "or image ids in the column `image`"
            )
        found = []
        for name, values in self.values.items():
            of_image = [values.get(fact.file_name) or values.get(str(fact.image_id)) for fact in images]
            labels = tuple(sorted({value for value in of_image if value}))
            code = {label: number for number, label in enumerate(labels)}
            groups = np.array([code[value] if value else -1 for value in of_image], dtype=np.int64)
            if labels:
                found.append(Partition(name, labels, False, _always(groups)))
        return found


def read_attributes(path: Path) -> Attributes:
    """Reads a CSV file with a column `image` (file name or image id) and one column for each attribute.

    Raises:
        FileNotFoundError, ValueError: no such file, or a column or a row cannot be used; the message names it.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    head = [name.strip() for name in rows[0]] if rows else []
    names = [name for name in head if name != "image"]
    if head.count("image") != 1 or not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{path}: columns {shown(head)}, expected `image` and at least one attribute, all different")
    if taken := [name for name in names if name in BUILT_IN]:
        raise ValueError(f"{path}: column {taken[0]} has the name of a built-in attribute, expected another name")
    at = head.index("image")
    values: dict[str, dict[str, str]] = {name: {} for name in names}
    images: dict[str, int] = {}
    for number, row in enumerate(rows[1:], 2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != len(head):
            raise ValueError(f"{path}: row {number} has {len(cells)} cells {shown(cells)}, expected {len(head)}")
        if not cells[at]:
            raise ValueError(f"{path}: row {number}: the column `image` is empty, expected a file name or an image id")
        if cells[at] in images:
            raise ValueError(f"{path}: row {number}: image {shown(cells[at])} appears twice, expected once")
        images[cells[at]] = number
        for name, cell in zip(head, cells, strict=True):
            if name != "image" and cell:
                values[name][cells[at]] = " ".join(cell.split())
    for name, own in values.items():
        if len(found := set(own.values())) > MAX_VALUES:
            raise ValueError(f"{path}: column {name} has {len(found)} values, expected at most {MAX_VALUES}")
        if odd := [text for text in (name, *sorted(found)) if not is_name(text)]:
            raise ValueError(
                f"{path}: column {shown(name)} has {shown(odd[0])}, expected names and values of 1 to {MAX_NAME} "
                "printable characters"
            )
    if not images:
        raise ValueError(f"{path}: no row below the header, expected one for each image")
    return Attributes(path, images, values)


def partitions_of(
    table: ScoreTable, images: Sequence[ImageFacts], categories: CategorySet, attributes: Attributes | None = None
) -> list[Partition]:
    """The built-in partitions and those of a CSV file.

    Args:
        table: the segments; true things are counted for `crowding`.
        images: the images of the table, in its order.
        categories: the classes.
        attributes: attributes of the images.

    Raises:
        ValueError: the file names none of the images.
    """
    things = table.true_things(categories)
    pixels = np.array([height * width for height, width in (fact.size for fact in images)], dtype=np.int64)
    found = [_by_number(OBJECT_SIZE, None), _by_number(CROWDING, things), _by_number(IMAGE_SIZE, pixels)]
    return found + (attributes.partitions(images) if attributes is not None else [])


def _by_number(attribute: tuple[str, tuple[str, ...], tuple[int, ...]], values: Ints | None) -> Partition:
    """Groups images by a number, or segments by their area."""
    name, labels, firsts = attribute
    if values is None:
        return Partition(name, labels, True, lambda table: np.searchsorted(firsts, table.area, side="right"))
    return Partition(name, labels, False, _always(np.searchsorted(firsts, values, side="right")))


def _always(groups: Ints) -> Callable[[ScoreTable], Ints]:
    """Returns a function for `Partition.groups` that gives these groups for every table."""
    return lambda _: groups


def slice_scores(
    table: ScoreTable, partitions: Sequence[Partition], categories: CategorySet, *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The section `slices` of `metrics.json`: attribute -> value -> scores. Values without an image are left out.

    Args:
        table: the segments.
        partitions: the attributes.
        categories: the classes.
        resamples: number of bootstrap resamples. They draw the same images as those for the interval of PQ.
    """
    members = [count_members(table, partition) for partition in partitions]
    kept = [np.flatnonzero(images) for images, _ in members]
    drawings: list[list[list[dict[str, Any]]]] = [[[] for _ in groups] for groups in kept]
    if table.num_images > 1:
        for times in drawn(table.num_images, resamples, SEED):
            for partition, groups, blocks in zip(partitions, kept, drawings, strict=True):
                sums = partition_sums(table, partition, len(categories), times)
                for group, own in zip(groups, blocks, strict=True):
                    own.append(group_scores(sums[group], categories))
    result: dict[str, Any] = {}
    for partition, (images, segments), groups, blocks in zip(partitions, members, kept, drawings, strict=True):
        sums = partition_sums(table, partition, len(categories))
        result[partition.name] = {
            partition.labels[group]: {
                "images": images[group],
                "segments": segments[group],
                **_scores(sums[group], own, categories),
            }
            for group, own in zip(groups.tolist(), blocks, strict=True)
        }
    return result


def count_members(table: ScoreTable, partition: Partition) -> tuple[list[int], list[int]]:
    """Counts the images and the true segments in each group.

    If segments are grouped, an image counts in each group that has one of its segments.
    """
    group, count = partition.of(table), len(partition.labels)
    true = group[(table.outcome != SPURIOUS) & (group >= 0)]
    pairs = partition.groups(table)
    if partition.of_segments:
        pairs = np.unique(np.stack([group, table.image]), axis=1)[0]
    images = np.bincount(pairs[pairs >= 0], minlength=count)
    return images.tolist(), np.bincount(true, minlength=count).tolist()


def _scores(sums: np.ndarray, drawings: list[dict[str, Any]], categories: CategorySet) -> dict[str, Any]:
    _, occurs = class_scores(sums)
    result: dict[str, Any] = {}
    interval: dict[str, Any] = {}
    for name, values in group_scores(sums, categories).items():
        members = [occurs[i, 0] for i, c in enumerate(categories.categories) if _belongs(c.is_thing, name)]
        result[name] = {**named_scores(values[:, 0]), "n": int(sum(members))}
        if drawings:
            ends = [percentiles(row, LEVEL) for row in np.concatenate([part[name] for part in drawings], axis=1)]
            interval[name] = None if ends[0] is None else dict(zip(FIELDS, ends, strict=True))
    return {**result, "interval": interval or None}


def _belongs(is_thing: bool, group: str) -> bool:
    return group == "All" or is_thing == (group == "Things")
