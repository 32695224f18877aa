"""Verdicts on the figures of a data set: `fine`, or `act` and what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from upsnet.doctor.checks import Finding

SMALLEST = 8
"""Pixels a side at the network's size. A smaller object has at most 2 x 2 cells of the finest level (stride 4)."""
FEW_SMALL = 0.05
"""Share of the instances below `SMALLEST` that costs less than the other errors of a model."""
ANCHORS_MISS = 0.01
"""Share of the instances that no anchor overlaps by `negative_iou`. Almost all their anchors teach background."""
ONE_POSITIVE = 0.5
"""Share of the instances below `positive_iou`. Each has one positive anchor only, so that most objects teach little."""
RARE = 10
"""Objects of a class. A model from random weights does not learn a class from fewer, and its score is chance."""
VOID = 0.25
"""Share of void pixels. COCO and Cityscapes have about a tenth. More of it hides objects that nobody outlined."""
WORTH_ACTING = 0.01
"""Share of the images from which a warning is worth the work."""
SHOWN = 4
"""Names in a verdict."""


class Verdict(NamedTuple):
    """What is wrong with a figure, and what to do about it; both are empty if it is fine."""

    fact: str = ""
    action: str = ""

    def __str__(self) -> str:
        return f"act: {self.fact}; {self.action}" if self.fact else "fine"


FINE = Verdict()


def judge_sizes(share_small: float, *, is_own_size: bool = False) -> Verdict:
    """Of the share of the instances below `SMALLEST` pixels.

    Args:
        share_small: the share.
        is_own_size: at the size of the images, because there is no config yet; else at the network's size.
    """
    if share_small <= FEW_SMALL:
        return FINE
    fact = f"{percent(share_small, 1)} of the objects are smaller than {SMALLEST} pixels"
    if is_own_size:
        return Verdict(fact, "train on enlarged images: --write-config FILE chooses the size")
    return Verdict(fact, "raise data.test_short_side and the scale of data.augment, or cut the images into tiles")


def judge_anchors(coverage: dict[str, Any]) -> Verdict:
    """Of `statistics.anchor_coverage`."""
    if coverage["below_negative_iou"] > ANCHORS_MISS:
        fact = f"more than {percent(ANCHORS_MISS)} have no anchor near them"
    elif coverage["below_positive_iou"] > ONE_POSITIVE:
        fact = f"more than {percent(ONE_POSITIVE)} have one positive anchor only"
    else:
        return FINE
    return Verdict(fact, "larger images for small objects, other anchors for the rest; --write-config proposes both")


def judge_training_classes(objects: Mapping[str, int], stuff: Collection[str] = (), images: int = 0) -> Verdict:
    """Of the number of objects of each class in the training images.

    Args:
        objects: class -> objects; of stuff, the images that show it.
        stuff: the classes that are stuff. One that half of the images show is not rare, however few images there are.
        images: training images.
    """
    common = {name for name in stuff if objects[name] and 2 * objects[name] >= images}
    rare = [f"{printable(name)} {count}" for name, count in objects.items() if count < RARE and name not in common]
    if not rare:
        return FINE
    return Verdict(f"fewer than {RARE} training objects: {some(rare)}", "annotate more, or merge or drop these classes")


def judge_val_classes(objects: Mapping[str, int]) -> Verdict:
    """Of the number of objects of each class in the validation images."""
    unseen = [printable(name) for name, count in objects.items() if count == 0]
    if not unseen:
        return FINE
    return Verdict(f"not scored, because val has none: {some(unseen)}", "split again, or annotate more")


def judge_void(share: float, *, has_stuff: bool) -> Verdict:
    """Of the share of void pixels in a split."""
    if share <= VOID:
        return FINE
    fact = f"more than {percent(VOID)} of the pixels teach nothing"
    if has_stuff:
        return Verdict(fact, "look at --overlays, annotate what is missing, or call the rest background")
    return Verdict(fact, "call the rest background: upsnet convert --background NAME")


def judge_finding(finding: Finding) -> Verdict:
    """Of a finding: errors and frequent warnings are worth the work of their remedy."""
    is_rare = finding.of > 0 and finding.images / finding.of < WORTH_ACTING
    if finding.check.level == "info" or (finding.check.level == "warning" and is_rare):
        return FINE
    return Verdict(finding.check.text, finding.check.remedy)


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def percent(share: float, digits: int = 0) -> str:
    """A share as text, such as `97 %`."""
    return f"{100 * share:.{digits}f} %"


def printable(text: str) -> str:
    """A text in one line that a screen and a YAML comment can hold; other characters are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
