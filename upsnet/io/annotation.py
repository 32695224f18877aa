"""What stands in a COCO-panoptic JSON about one image, as arrays: a tenth of the memory of the JSON's own rows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from upsnet.text import shown

ODD_AREA = -2


class ImageFile(NamedTuple):
    """A row of `images`: the picture's path below its folder, and its size."""

    file_name: str
    height: int
    width: int


class SegmentColumns(NamedTuple):
    """`segments_info` as its columns, which are packed unless they hold something odd.

    Attributes:
        ids, categories: None where the field is missing.
        crowds: 0 or 1; areas: -1 where the JSON says nothing; scores: NaN likewise.
    """

    ids: Sequence[Any]
    categories: Sequence[Any]
    crowds: Sequence[Any]
    areas: Sequence[Any]
    scores: Sequence[Any]

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> SegmentColumns:
        """Takes the columns out of the rows."""
        is_scored = any("score" in row for row in rows)
        scores = [_number(row.get("score")) for row in rows] if is_scored else []
        areas = [-1 if row.get("area") is None else _whole(row["area"], ODD_AREA) for row in rows]
        return cls(
            _packed("q", [row.get("id") for row in rows]),
            _packed("q", [_whole(row.get("category_id"), None) for row in rows]),
            array("b", [row.get("iscrowd") == 1 for row in rows]),
            array("q", areas),
            array("d", scores) if not all(map(math.isnan, scores)) else (),
        )

    def take(self, kept: list[int]) -> SegmentColumns:
        """Some of the rows."""
        return SegmentColumns(*([column[i] for i in kept] if len(column) else () for column in self))


def crowd_flag(value: Any) -> bool:
    """The meaning of `iscrowd`: null is no crowd; 0 and 1 may be written as text or as a fraction (`1.0`).

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return False
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if value in ("0", "1"):
        return bool(value == "1")
    raise ValueError(f"iscrowd {shown(value)}, expected 0 or 1")


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


def _whole(value: Any, otherwise: Any) -> Any:
    """A number without a fraction, of 64 bits, as an integer."""
    if type(value) is int and -(2**63) < value < 2**63:  # nearly every value, so it comes first
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and abs(value) < 2**63 else otherwise


def _number(value: Any) -> float:
    """NaN for what is none."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan


def _packed(kind: str, values: list[Any]) -> Sequence[Any]:
    try:
        return array(kind, values)
    except (TypeError, OverflowError):
        return values


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
