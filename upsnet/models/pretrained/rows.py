"""The meaning of the rows of layers that depend on the classes or on the anchors.

A row is index 0 of a weight or a bias. Rows of a file and of a model are matched by their labels, never by their
position alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from upsnet.categories import CategorySet

Names = Sequence[str | None]
Shapes = Sequence[Sequence[tuple[float, float]]]
"""(width, height) in pixels of the anchors of a cell, one row per pyramid level."""
Label = tuple[Hashable, int]
"""The class or the anchor of a row, and the number of the row among the rows of this class or anchor."""
Subject = Literal["classes", "things", "anchors"]

BACKGROUND = ""
"""The label of the background; no class has this name."""

_LAYERS: dict[str, tuple[Subject, int]] = {
    "semantic_head.score": ("classes", 1),
    "semantic_head.predictor": ("classes", 1),
    "instance_head.cls_score": ("things", 1),
    "instance_head.bbox_pred": ("things", 4),
    "instance_head.mask_score": ("things", 1),
    "rpn.cls_logits": ("anchors", 1),
    "rpn.bbox_pred": ("anchors", 4),
}
"""Layer -> what its rows stand for, and the number of rows of each."""

STEPS_PER_OCTAVE = 8
"""Aspect ratios are equal if their logarithms to base 2, rounded to this fraction, are equal. Other programs round the
sides of anchors to whole pixels."""


@dataclass(frozen=True)
class Rows:
    """What the rows stand for in a model or in a file. None: not known.

    Attributes:
        classes: name of each row of the semantic scores, None for a row without a class.
        things: name of each thing class in the box and mask branch, without the background.
        anchors: the anchors of the region proposals.
    """

    classes: Names | None = None
    things: Names | None = None
    anchors: Shapes | None = None

    def labels(self, name: str) -> list[Label] | None:
        """The label of each row of a parameter; None if its rows have none, or they are not known."""
        subject, count = _layer(name)
        known: Sequence[Hashable] | None = None
        if subject is not None:
            known = {"classes": self.classes, "things": self.things, "anchors": anchor_labels(self.anchors)}[subject]
        if known is None:
            return None
        labels: list[Label] = [(one, number) for one in known for number in range(count)]
        return [(BACKGROUND, 0), *labels] if name.startswith("instance_head.cls_score.") else labels


UNKNOWN_ROWS = Rows()


def subject_of(name: str) -> Subject | None:
    """What the rows of a parameter stand for; None if they are features."""
    return _layer(name)[0]


def _layer(name: str) -> tuple[Subject | None, int]:
    return next((found for layer, found in _LAYERS.items() if name.startswith(f"{layer}.")), (None, 1))


def class_names(categories: CategorySet, *, things: bool = False) -> list[str]:
    """The names of all classes, or of the things, in the order of the channels."""
    return [c.name for c in categories.categories if c.is_thing or not things]


def anchor_labels(shapes: Shapes | None) -> list[tuple[int, int]] | None:
    """The label of each anchor of a cell: its aspect ratio in steps, and the order of its size within this ratio.

    All levels share the layers of the region proposals, so ratio and size are averaged over the levels.
    """
    if shapes is None:
        return None
    ratios = [round(STEPS_PER_OCTAVE * ratio) for ratio in _log_ratios(shapes)]
    sizes = _logs(shapes).sum(-1).mean(0).tolist()
    orders, count = [0] * len(ratios), Counter[int]()
    for row in sorted(range(len(ratios)), key=lambda row: float(sizes[row])):
        orders[row] = count[ratios[row]]
        count[ratios[row]] += 1
    return list(zip(ratios, orders, strict=True))


def anchor_texts(shapes: Shapes) -> list[str]:
    """How to call each anchor of a cell in a report."""
    labels = anchor_labels(shapes) or []
    has_sizes = any(order for _, order in labels)
    return [
        f"ratio {2**ratio:.2g}" + (f" of size {order + 1}" if has_sizes else "")
        for ratio, (_, order) in zip(_log_ratios(shapes), labels, strict=True)
    ]


def level_sizes(shapes: Shapes, labels: Iterable[Hashable]) -> list[float]:
    """The mean size (square root of the area, pixels) of the anchors with these labels, on each level."""
    known, wanted = anchor_labels(shapes) or [], set(labels)
    rows = [row for row, label in enumerate(known) if label in wanted]
    return [float(size) for size in _logs(shapes)[:, rows].mean((1, 2)).exp2()]


def _log_ratios(shapes: Shapes) -> list[float]:
    """log2(height / width) of each anchor of a cell."""
    logs = _logs(shapes)
    return [float(ratio) for ratio in (logs[..., 1] - logs[..., 0]).mean(0)]


def _logs(shapes: Shapes) -> Tensor:
    """log2 of the sides, float64 [levels, anchors, 2]."""
    return torch.tensor(shapes, dtype=torch.float64).log2()


def near_names(names: Iterable[str], others: Iterable[str | None]) -> list[tuple[str, str]]:
    """Pairs of a name and another one that differs from it only in case, blanks, hyphens or underscores."""
    by_spelling = {_spelling(other): other for other in others if other is not None}
    pairs = ((name, by_spelling.get(_spelling(name))) for name in names)
    return [(name, other) for name, other in pairs if other is not None and other != name]


def _spelling(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
