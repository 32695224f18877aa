"""What a file of weights filled in a model, and the lines that tell a user."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

from upsnet.models.pretrained.rows import (
    BACKGROUND,
    Label,
    Rows,
    Subject,
    anchor_labels,
    anchor_texts,
    level_sizes,
    near_names,
    subject_of,
)
from upsnet.text import cut, shown

Shape = tuple[int, ...]
MAX_NAMES = 5
"""Names that a line lists at most."""
PIXEL_STATISTICS = ("pixel_mean", "pixel_std")
"""Buffers that belong to the first convolution: its weights expect pixels that were normalised by them."""
SIZE_TOLERANCE = 1.05
"""Anchor sizes are equal if none is larger than the other by this factor."""


class Outcome(Enum):
    """What happened to a tensor of the model."""

    LOADED = "all of it comes from the file"
    MATCHED = "rows of classes or anchors that both have come from the file"
    NO_ROWS = "fresh: the file has no row of its classes or anchors"
    UNNAMED = "fresh: the file does not name the classes of its rows"
    OTHER_SHAPE = "fresh: it, or another tensor of its layer, has another shape in the file"
    ABSENT = "fresh: not in the file"


@dataclass(frozen=True)
class Report:
    """What happened to the parameters and buffers of a model.

    Attributes:
        kind: what the file was.
        source: the file, for errors.
        outcomes: of each tensor of the model.
        shapes: shape in the file and in the model of the tensors whose shapes differ.
        rows: labels of the rows in the model of the tensors that were compared row by row, and those that were filled.
        unused: names in the file that the model has no place for.
        model_rows, file_rows: what the rows stand for.
        warnings: what will make the training much worse than expected.
    """

    kind: str
    source: str
    outcomes: dict[str, Outcome]
    shapes: dict[str, tuple[Shape, Shape]]
    rows: dict[str, tuple[list[Label], list[Label]]]
    unused: list[str]
    model_rows: Rows
    file_rows: Rows
    warnings: Sequence[str] = ()

    def names(self, *outcomes: Outcome) -> list[str]:
        """The tensors with one of these outcomes, in the order of the model."""
        return [name for name, outcome in self.outcomes.items() if outcome in outcomes]

    @property
    def loaded(self) -> list[str]:
        """Tensors filled whole."""
        return self.names(Outcome.LOADED)

    @property
    def matched(self) -> list[str]:
        """Tensors filled for some classes or anchors."""
        return self.names(Outcome.MATCHED)

    @property
    def fresh(self) -> list[str]:
        """Tensors left as they were."""
        return self.names(Outcome.NO_ROWS, Outcome.UNNAMED, Outcome.OTHER_SHAPE, Outcome.ABSENT)

    @property
    def kept(self) -> list[str]:
        """Names of the classes of which the file filled rows, in the order of the channels."""
        taken = self._first_labels(1, "classes", "things")
        return [str(name) for name in self.model_rows.classes or () if name in taken]

    @property
    def missing(self) -> list[str]:
        """Names of the classes whose rows were compared, and are all fresh."""
        compared, kept = self._first_labels(0, "classes", "things"), self.kept
        return [str(name) for name in self.model_rows.classes or () if name in compared and name not in kept]

    def _first_labels(self, which: int, *subjects: Subject) -> set[object]:
        """Classes or anchors with a row in the model that was compared (0) or filled (1)."""
        found = (labels[which] for name, labels in self.rows.items() if subject_of(name) in subjects)
        return {label for labels in found for label, _ in labels} - {BACKGROUND}

    def require_same_architecture(self) -> None:
        """Checks that no tensor has another shape in the file.

        Raises:
            ValueError: one has; the weights were made with another config.
        """
        if wrong := self.names(Outcome.OTHER_SHAPE):
            raise ValueError(
                f"{self.source}: {self.kind} of another architecture: {len(wrong)} tensors have other shapes, "
                f"{self.example(wrong)}; use the config that the weights were made with"
            )

    def lines(self) -> list[str]:
        """For people: what was taken, and what stays fresh, by part of the model."""
        found = [f"{self.kind}: {len(self.loaded)} of {len(self.outcomes)} tensors loaded"]
        found += self._class_lines() + self._anchor_lines()
        for part, names in _by_part(self.names(Outcome.OTHER_SHAPE)).items():
            found.append(f"fresh, other shape: {part}: {_count(names)} ({self.example(names)})")
        in_file = [*self.unused, *(name for name, outcome in self.outcomes.items() if outcome is not Outcome.ABSENT)]
        for reason, names, whole in (
            ("fresh, classes of the rows not named in the file", self.names(Outcome.UNNAMED), list(self.outcomes)),
            ("fresh, not in the file", self.names(Outcome.ABSENT), list(self.outcomes)),
            ("in the file, not used", self.unused, in_file),
        ):
            if names:
                found.append(f"{reason}: {_count(names)}: {_parts(names, whole)}")
        return found

    def _class_lines(self) -> list[str]:
        names = self._by_row("classes", "things")
        kept, missing, ours, theirs = self.kept, self.missing, self.model_rows, self.file_rows
        lines = []
        if names:
            taken = f"{len(kept)} of {len(kept) + len(missing)} classes taken"
            taken += f" ({some(kept)})" if kept else ""
            lines.append(f"{_count(names)} by class name: {taken}" + (f", fresh: {some(missing)}" if missing else ""))
        if pairs := near_names(missing, [*(theirs.classes or ()), *(theirs.things or ())]):
            texts = [f"{shown(other)} in the file, {shown(name)} in the model" for name, other in pairs]
            lines.append(f"names that differ only in spelling are different classes: {some(texts, 2)}")
        if self._first_labels(0, "things") and theirs.classes is not None and theirs.things is not None:
            new = [str(name) for name in ours.things or () if name in theirs.classes and name not in theirs.things]
            old = [
                str(name) for name in ours.classes or () if name in theirs.things and name not in (ours.things or ())
            ]
            texts = [f"stuff in the file, things in the model: {some(new)} (box and mask rows fresh)"] if new else []
            texts += [f"things in the file, stuff in the model: {some(old)} (box and mask rows unused)"] if old else []
            lines += ["; ".join(texts)] if texts else []
        return lines

    def _anchor_lines(self) -> list[str]:
        ours, theirs, lines = self.model_rows.anchors, self.file_rows.anchors, []
        if ours is None or theirs is None:
            return []
        taken = self._first_labels(1, "anchors")
        if names := self._by_row("anchors"):
            texts = zip(anchor_labels(ours) or (), anchor_texts(ours), strict=True)
            missing = [text for label, text in texts if label not in taken]
            line = f"{_count(names)} by anchor: {len(taken)} of {len(ours[0])} anchors of a cell taken"
            lines.append(line + (f", fresh: {some(missing)}" if missing else ""))
        if taken:
            old, new = level_sizes(theirs, taken), level_sizes(ours, taken)
            is_near = [max(a, b) <= SIZE_TOLERANCE * min(a, b) for a, b in zip(old, new, strict=False)]
            if len(old) != len(new) or not all(is_near):
                lines.append(
                    f"anchor sizes differ: {_pixels(old)} pixels by level in the file, {_pixels(new)} in the model; "
                    "boxes are predicted relative to their anchor, so the weights stay useful"
                )
        return lines

    def _by_row(self, *subjects: Subject) -> list[str]:
        return [n for n in self.names(Outcome.MATCHED, Outcome.NO_ROWS) if subject_of(n) in subjects]

    def example(self, names: Iterable[str]) -> str:
        """The first tensor of a list whose shape differs, with both shapes."""
        name = next(name for name in names if name in self.shapes)
        old, new = (" x ".join(map(str, shape)) or "a number" for shape in self.shapes[name])
        return f"{name} is {old} in the file, {new} in the model"


def some(names: Sequence[str], count: int = MAX_NAMES) -> str:
    """The first names of a list, and the number of the others."""
    text = ", ".join(cut(name, 100) for name in names[:count])
    return text + (f" and {len(names) - count} more" if len(names) > count else "")


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def _pixels(sizes: Sequence[float]) -> str:
    return ", ".join(f"{size:.3g}" for size in sizes)


def _parts(names: Sequence[str], whole: Sequence[str]) -> str:
    """`fpn.gap (2), backbone (40, such as bn1.running_mean)`: with an example where it is not all of a part.

    Args:
        names: tensors.
        whole: all tensors, of which these are some.
    """
    texts = []
    for part, own in _by_part(names).items():
        is_all = len(own) == sum(name.startswith(f"{part}.") for name in whole)
        is_all |= part != _common_module(own)  # the box or the mask branch: the name of the part says enough
        texts.append(f"{part} ({len(own)})" if is_all else f"{part} ({len(own)}, such as {own[0][len(part) + 1 :]})")
    return some(texts)


def _by_part(names: Iterable[str]) -> dict[str, list[str]]:
    """Tensors by part of the model. The name of a part is as long as all its tensors allow."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_part(name), []).append(name)
    return {max(part, _common_module(own), key=len): own for part, own in groups.items()}


def _common_module(names: Sequence[str]) -> str:
    """The innermost module that holds all these tensors."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _part(name: str) -> str:
    """`backbone` (with the pixel statistics), `fpn`, `rpn`, `semantic_head`, `instance_head.box` or `.mask`."""
    first, *rest = name.split(".")
    if first != "instance_head" or not rest:
        return "backbone" if first in PIXEL_STATISTICS else first
    return f"{first}.mask" if rest[0].startswith("mask_") else f"{first}.box"
