"""What a conversion found, for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from upsnet.categories import CategorySet
from upsnet.convert.layers import OnTop

SHOWN = 3


@dataclass
class Summary:
    """Counts over all pictures.

    Attributes:
        categories: the classes.
        on_top: the rule for overlapping instances.
        images: split -> pictures.
        segments: (split, category id) -> segments; crowds: the same for crowds, which are not among the segments.
        pixels, void, overlapped: pixels in all, unlabelled, and claimed by more than one instance.
        covered, empty: instances that others covered whole, and regions without a pixel.
        skipped: kind of annotation that has no area -> how many.
        left_out: pictures without annotation.
        turned: pictures that were written upright; undecided: whose EXIF orientation their size does not confirm.
    """

    categories: CategorySet
    on_top: OnTop
    images: Counter[str] = field(default_factory=Counter)
    segments: Counter[tuple[str, int]] = field(default_factory=Counter)
    crowds: Counter[tuple[str, int]] = field(default_factory=Counter)
    pixels: int = 0
    void: int = 0
    overlapped: int = 0
    covered: int = 0
    empty: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: list[Path] = field(default_factory=list)
    turned: list[Path] = field(default_factory=list)
    undecided: list[Path] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The table of classes, and what is worth a look."""
        splits = sorted(self.images)
        width = max(len("class"), *(len(category.name) for category in self.categories.categories))
        lines = [f"{'id':>5}  {'class':{width}}  kind  " + "".join(f"{split:>9}" for split in splits)]
        for category in sorted(self.categories.categories, key=lambda c: c.id):
            kind = "thing" if category.is_thing else "stuff"
            counts = "".join(f"{self.segments[split, category.id]:9d}" for split in splits)
            crowds = sum(self.crowds[split, category.id] for split in splits)
            lines.append(
                f"{category.id:5d}  {category.name:{width}}  {kind} {counts}" + f" + {crowds} crowds" * (crowds > 0)
            )
        lines.append(f"{'':5}  {'pictures':{width}}        " + "".join(f"{self.images[split]:9d}" for split in splits))
        lines.append(f"overlap: {self.overlapped} pixels in more than one instance; the {self.on_top} one has them")
        lines.append(
            f"dropped: {self.covered} instances wholly covered by others, {self.empty} regions without a pixel"
        )
        lines.append(f"void: {100 * self.void / max(1, self.pixels):.2f} % of the pixels have no class")
        return lines + self._notes()

    def _notes(self) -> list[str]:
        notes = [
            f"note: {count} shapes of type {kind} have no area and were skipped" for kind, count in self.skipped.items()
        ]
        if self.left_out:
            notes.append(
                f"note: {len(self.left_out)} pictures without annotation were left out: {_some(self.left_out)}"
            )
        if self.turned:
            notes.append(
                f"note: {len(self.turned)} pictures were annotated upright, as their EXIF orientation says, and are "
                f"written so: {_some(self.turned)}"
            )
        if self.undecided:
            notes.append(
                f"note: {len(self.undecided)} pictures have an EXIF orientation that sizes do not confirm; the "
                f"annotation was taken to lie on the stored pixels, look at them: {_some(self.undecided)}"
            )
        if not self.categories.num_stuff:
            notes.append(
                "note: no class is stuff; name one for the unlabelled pixels with --background, or train with "
                "model.heads=instance"
            )
        objects, crowds = ({category_id for _, category_id in counts} for counts in (self.segments, self.crowds))
        unseen = [c for c in self.categories.categories if c.is_thing and c.id not in objects]
        if missing := sorted(c.name for c in unseen if c.id not in crowds):
            notes.append(f"note: no instance of {', '.join(missing)}")
        if crowded := sorted(c.name for c in unseen if c.id in crowds):
            notes.append(
                f"note: nothing but crowds of {', '.join(crowded)}, which are not learned as objects; if they are "
                "objects, export them with iscrowd 0, or with a number each"
            )
        return notes


def _some(paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:SHOWN])
    return names + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
