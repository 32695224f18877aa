"""What stands in a COCO-panoptic JSON about one image, as arrays: a tenth of the memory of the JSON's own rows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from upsnet.io.panoptic_png import MAX_ID
from upsnet.json_values import crowd_flag, number, whole_number
from upsnet.text import shown

ODD_AREA = -2


@dataclass(frozen=True, slots=True, repr=False)
class Unreadable:
    """What the file has in the place of a value that could not be read; errors show it as it is."""

    value: Any

    def __repr__(self) -> str:
        return shown(self.value)


class ImageFile(NamedTuple):
    """A row of `images`: the picture's path below its folder, and its size."""

    file_name: str
    height: int
    width: int


class SegmentColumns(NamedTuple):
    """`segments_info` as its columns.

    A column is an `array` if all of its values could be read. Otherwise it is a list, in which the other values are
    `Unreadable`; `segment_faults` finds them.

    Attributes:
        ids, categories: whole numbers.
        crowds: 0 or 1; areas: -1 where the JSON says nothing, `ODD_AREA` where it is no whole number.
        scores: NaN where the JSON says nothing; empty if it gives none at all.
    """

    ids: Sequence[Any]
    categories: Sequence[Any]
    crowds: Sequence[Any]
    areas: Sequence[Any]
    scores: Sequence[Any]

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> SegmentColumns:
        """Takes the columns out of the rows."""
        return cls(
            _column("q", [row.get("id") for row in rows], whole_number),
            _column("q", [row.get("category_id") for row in rows], whole_number),
            _column("b", [row.get("iscrowd", 0) for row in rows], _crowd, {0, 1}),
            _column("q", [row.get("area", -1) for row in rows], _area),
            _scores([row.get("score") for row in rows]),
        )

    def take(self, kept: Iterable[int]) -> SegmentColumns:
        """Some of the rows, whose ids can be read; another `Unreadable` becomes None, 0 or NaN."""
        kept = list(kept)
        ids, categories, crowds, areas, scores = ([column[i] for i in kept] if len(column) else () for column in self)
        return SegmentColumns(
            ids,
            [None if isinstance(value, Unreadable) else value for value in categories],
            [0 if isinstance(value, Unreadable) else value for value in crowds],
            areas,
            [math.nan if isinstance(value, Unreadable) else value for value in scores],
        )


class SegmentFault(NamedTuple):
    """What is wrong with a value of a segment.

    Attributes:
        at: number of the row.
        key: `id`, `category_id`, `iscrowd` or `score`.
        text: the value and what was expected, without the names of the file and the image.
    """

    at: int
    key: str
    text: str


def segment_faults(columns: SegmentColumns, channels: Mapping[int, int]) -> list[SegmentFault]:
    """Finds what is wrong with the segments of an image; nothing for almost every image.

    Args:
        columns: the segments.
        channels: category id -> channel.
    """
    if _are_sound(columns, channels):
        return []
    faults = []
    seen: set[int] = set()
    for at, (own, category, crowd) in enumerate(zip(columns.ids, columns.categories, columns.crowds, strict=True)):
        if isinstance(own, Unreadable) or not 0 < own <= MAX_ID:
            text = f"segment id {shown(own)}, expected a whole number from 1 to {MAX_ID}"
            faults.append(SegmentFault(at, "id", text))
        elif own in seen:
            faults.append(SegmentFault(at, "id", f"segment id {own} appears twice, expected once"))
        else:
            seen.add(own)
        segment = f"of segment {shown(own)}"
        if isinstance(category, Unreadable) or category not in channels:
            text = f"category_id {shown(category)} {segment}, expected one of the {len(channels)} categories"
            faults.append(SegmentFault(at, "category_id", text))
        if isinstance(crowd, Unreadable):
            faults.append(SegmentFault(at, "iscrowd", f"iscrowd {shown(crowd)} {segment}, expected 0 or 1"))
    for at, score in enumerate(columns.scores):
        if isinstance(score, Unreadable):
            text = f"score {shown(score)} of segment {shown(columns.ids[at])}, expected a number"
            faults.append(SegmentFault(at, "score", text))
    return faults


def _are_sound(columns: SegmentColumns, channels: Mapping[int, int]) -> bool:
    """Whether `segment_faults` would find nothing; a few times faster."""
    if list in map(type, columns):
        return False
    own = {*columns.ids}
    in_range = not own or (min(own) > 0 and max(own) <= MAX_ID)
    return in_range and len(own) == len(columns.ids) and channels.keys() >= {*columns.categories}


def require_panoptic(path: Path, rows: Any) -> None:
    """Tells a COCO instance JSON from a panoptic one, by the first of its `annotations`.

    Raises:
        ValueError: it is one of instances.
    """
    first = rows[0] if isinstance(rows, list) and rows else None
    if isinstance(first, dict) and "segmentation" in first and "segments_info" not in first:
        raise ValueError(f"{path}: a COCO instance JSON, expected a panoptic one; `upsnet convert coco` converts it")


def pack_segments(row: dict[str, Any]) -> dict[str, Any]:
    """An `object_hook` for JSON: replaces `segments_info` by its columns, image by image, while the file is read."""
    if "segments_info" in row:
        try:
            row["segments_info"] = SegmentColumns.of(row["segments_info"])
        except (TypeError, AttributeError):
            del row["segments_info"]  # no list of objects: as if it were not there
    return row


def _column(
    kind: str, values: list[Any], read: Callable[[Any], int | None], allowed: set[int] | None = None
) -> Sequence[Any]:
    """The values as an array; as a list if one of them cannot be read.

    Args:
        kind: type code of `array.array`.
        values: as in the file.
        read: reads a value; None for one that cannot be read.
        allowed: what the numbers may be; by default anything that fits into the array.
    """
    if {*map(type, values)} <= {int} and (allowed is None or allowed.issuperset(values)):
        try:
            return array(kind, values)
        except OverflowError:
            pass
    found = [read(value) for value in values]
    if None in found:
        return [Unreadable(value) if one is None else one for one, value in zip(found, values, strict=True)]
    return array(kind, found)


def _crowd(value: Any) -> int | None:
    try:
        return int(crowd_flag(value))
    except ValueError:
        return None


def _area(value: Any) -> int:
    if value is None:
        return -1
    found = whole_number(value)
    return ODD_AREA if found is None else found


def _scores(values: list[Any]) -> Sequence[Any]:
    """The scores as a column; a score that is null or NaN is none."""
    if values.count(None) == len(values):
        return ()
    if {*map(type, values)} <= {int, float}:
        try:
            if all(map(math.isfinite, values)):
                return array("d", values)
        except OverflowError:
            pass
    found: list[Any] = [math.nan if value is None or value != value else number(value) for value in values]
    if None in found:
        return [Unreadable(value) if one is None else one for one, value in zip(found, values, strict=True)]
    return () if all(map(math.isnan, found)) else array("d", found)


@dataclass(frozen=True, slots=True)
class Annotation:
    """The segments of an image, in the order of the file.

    Attributes:
        file_name: of the PNG.
        known: int32 [n + 1], 0 and the ids of the segments whose category is known.
        classes: int64 [n], their semantic channels; is_crowd: bool [n].
        areas: int64 [n], as the JSON says, -1 where it says nothing, `ODD_AREA` where it says nonsense.
        scores: float64 [n], NaN where the JSON gives none; None if it gives none at all.
        unknown: ids of the other segments.
    """

    file_name: str
    known: npt.NDArray[np.int32]
    classes: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64] | None
    unknown: tuple[int, ...]

    @classmethod
    def of(cls, file_name: str, columns: SegmentColumns, channels: Iterable[int | None]) -> Annotation:
        """Builds it from columns with good ids and the channel of each row, None for an unknown category."""
        classes, unknown = list(channels), ()
        if None in classes:
            unknown = tuple(columns.ids[i] for i, channel in enumerate(classes) if channel is None)
            columns = columns.take([i for i, channel in enumerate(classes) if channel is not None])
            classes = [channel for channel in classes if channel is not None]
        return cls(
            file_name,
            np.array([0, *columns.ids], dtype=np.int32),
            np.array(classes, dtype=np.int64),
            np.array(columns.crowds, dtype=bool),
            np.array(columns.areas, dtype=np.int64),
            np.array(columns.scores, dtype=np.float64) if len(columns.scores) else None,
            unknown,
        )

    def without_segments(self) -> Annotation:
        """The same image as if nothing were found in it."""
        return Annotation.of(self.file_name, SegmentColumns((), (), (), (), ()), ())
