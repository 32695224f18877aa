"""What a conversion found, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from upsnet.categories import CategorySet
from upsnet.convert.layers import OnTop

SHOWN = 3


@dataclass
class Summary:
    """Counts over all images.

    Attributes:
        categories: the classes.
        on_top: the rule for overlapping instances.
        background: channel of the class that fills unlabelled pixels; None: they are void.
        images: split -> images; empty: split -> images whose annotation shows no object.
        segments: (split, category id) -> segments; crowds: the same for crowds, which are not among the segments.
        crowd_regions: category id -> annotations that became crowds.
        pixels, void, overlapped: pixels in all, unlabelled, and claimed by more than one instance.
        covered, empty_regions: instances that others covered completely, and regions without a pixel.
        skipped: kind of annotation that has no area -> how many.
        left_out: images without annotation.
        rotated: images that were written upright; undecided: whose EXIF orientation their size does not confirm.
        mistakes: objects and images that were left out, a line each; bad_images: how many images are among them.
        notes: of the source.
        mistakes_file: where the mistakes are listed.
    """

    categories: CategorySet
    on_top: OnTop
    background: int | None = None
    images: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    segments: Counter[tuple[str, int]] = field(default_factory=Counter)
    crowds: Counter[tuple[str, int]] = field(default_factory=Counter)
    crowd_regions: Counter[int] = field(default_factory=Counter)
    pixels: int = 0
    void: int = 0
    overlapped: int = 0
    covered: int = 0
    empty_regions: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: list[Path] = field(default_factory=list)
    rotated: list[Path] = field(default_factory=list)
    undecided: list[Path] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    bad_images: int = 0
    notes: list[str] = field(default_factory=list)
    mistakes_file: Path | None = None

    def lines(self) -> list[str]:
        """The table of classes, and what is worth a look."""
        splits = sorted(self.images)
        width = max(len("class"), *(len(category.name) for category in self.categories.categories))
        lines = [f"{'id':>5}  {'class':{width}}  kind  " + "".join(f"{split:>9}" for split in splits)]
        for category in sorted(self.categories.categories, key=lambda c: c.id):
            kind = "thing" if category.is_thing else "stuff"
            counts = "".join(f"{self.segments[split, category.id]:9d}" for split in splits)
            lines.append(f"{category.id:5d}  {category.name:{width}}  {kind} {counts}{self._crowds(category.id)}")
        lines.append(f"{'':5}  {'images':{width}}        " + "".join(f"{self.images[split]:9d}" for split in splits))
        lines.append(f"overlap: {self.overlapped} pixels in more than one instance; the {self.on_top} one has them")
        lines.append(
            f"dropped: {self.covered} instances completely covered by others, {self.empty_regions} regions without a "
            "pixel"
        )
        lines.append(self._unlabelled())
        return lines + [f"note: {note}" for note in self._notes()]

    def _crowds(self, category_id: int) -> str:
        crowds = sum(count for (_, found), count in self.crowds.items() if found == category_id)
        return f" + {crowds} crowds (of {self.crowd_regions[category_id]} annotations)" if crowds else ""

    def _unlabelled(self) -> str:
        void = f"void: {100 * self.void / max(1, self.pixels):.2f} % of the pixels have no class"
        if self.background is None:
            return void
        return f"{void}; unlabelled pixels are {self.categories[self.background].name!r}"

    def _notes(self) -> list[str]:
        notes = list(self.notes)
        if self.mistakes:
            notes.append(
                f"{len(self.mistakes)} mistakes were left out ({self.bad_images} of them whole images), listed in "
                f"{self.mistakes_file}, the first: {self.mistakes[0]}"
            )
        for kind, count in self.skipped.items():
            notes.append(f"{count} shapes of type {kind} have no area and were skipped")
        if empty := sum(self.empty.values()):
            notes.append(f"{empty} images show no object; --drop-unannotated leaves them out")
        if self.left_out:
            notes.append(f"{len(self.left_out)} images without annotation were left out: {_some(self.left_out)}")
        if self.rotated:
            notes.append(
                f"{len(self.rotated)} images were annotated upright, as their EXIF orientation says, and are written "
                f"so: {_some(self.rotated)}"
            )
        if self.undecided:
            notes.append(
                f"{len(self.undecided)} images have an EXIF orientation that sizes do not confirm; the annotation was "
                f"taken to lie on the stored pixels, look at them: {_some(self.undecided)}"
            )
        if not self.categories.num_stuff:
            notes.append("no class is stuff: train with model.heads=instance, or convert without --no-background")
        return notes + self._notes_of_classes()

    def _notes_of_classes(self) -> list[str]:
        objects, crowds = ({category_id for _, category_id in counts} for counts in (self.segments, self.crowds))
        unseen = [c for c in self.categories.categories if c.is_thing and c.id not in objects]
        notes = []
        if missing := sorted(c.name for c in unseen if c.id not in crowds):
            notes.append(f"no instance of {', '.join(missing)}")
        if crowded := sorted(c.name for c in unseen if c.id in crowds):
            notes.append(
                f"nothing but crowds of {', '.join(crowded)}, which are not learned as objects; if they are objects, "
                "use --crowds objects, or export them with iscrowd 0"
            )
        return notes


def _some(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:SHOWN])
    return names + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
