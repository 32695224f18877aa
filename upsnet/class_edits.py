"""Changes to the classes of a data set, as configs and the converter's options name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from upsnet.text import shown


@dataclass(frozen=True)
class ClassEdits:
    """Changes to classes. Merging comes first; the other changes name the classes that result from it.

    Attributes:
        merge: new name -> names that it replaces. One name renames a class.
        keep: classes of the result; the pixels of others are void. None: all.
        drop: classes whose pixels are void.
        stuff, things: classes that become stuff or things. A segment of stuff becomes one object.
        background: stuff that fills the pixels without a segment. It may be a new class.

    Raises:
        ValueError: the changes contradict each other.
    """

    merge: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    stuff: tuple[str, ...] = ()
    things: tuple[str, ...] = ()
    background: str | None = None

    def __post_init__(self) -> None:
        old = [name for names in self.merge.values() for name in names]
        for what, names in (
            ("is merged into two classes", old),
            ("is kept twice", list(self.keep or ())),
            ("is kept and dropped", [*(self.keep or ()), *set(self.drop)]),
            ("is made stuff and a thing", [*set(self.stuff), *set(self.things)]),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"class {shown(twice)} {what}, expected one change")
        if self.keep is not None and not self.keep:
            raise ValueError("no class is kept, expected at least one")
        if self.background in self.things or self.background in self.drop:
            raise ValueError(f"background {shown(self.background)} is a thing or dropped, expected stuff")

    @property
    def changes_anything(self) -> bool:
        """Whether there is a change."""
        return self != NO_EDITS

    def new_name(self, name: str) -> str | None:
        """The class that a class becomes; None if its pixels are void."""
        new = next((new for new, old in self.merge.items() if name in old), name)
        is_kept = self.keep is None or new in self.keep or new == self.background
        return new if is_kept and new not in self.drop else None

    def unknown_names(self, names: Iterable[str]) -> list[str]:
        """Names in the changes that are no class of a data set with these class names."""
        known = set(names)
        after = known - {o for old in self.merge.values() for o in old} | set(self.merge)
        merged = [name for old in self.merge.values() for name in old if name not in known]
        others = [name for name in (*(self.keep or ()), *self.drop, *self.stuff, *self.things) if name not in after]
        return list(dict.fromkeys(merged + others))


NO_EDITS = ClassEdits()
