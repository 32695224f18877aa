"""Images whose names tell that they come from one original: crops, copies, and frames of one recording."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

PARTS = ("scaled", "crop", "tile", "patch", "slice", "frame", "aug", "copy", "view")
"""Words that programs write before the number of a part, a copy or a frame."""
PATTERNS = (*(rf"^(.+?)[_.-]{part}[_-]?\d+" for part in PARTS), r"^(.+?)\.rf\.", r"^(.+)[_-]\d+")
"""Then Roboflow's copies of an image, and any number."""
LARGEST_GROUP = 10
"""Mean images of an original. Larger groups share a word, such as `IMG`, and no original."""
FEWEST_GROUPS = 3
"""Originals. Fewer are one word before a number, such as `IMG_0001` and `DSC_0001`."""


class Related(NamedTuple):
    """Images of val that share an original with images of train.

    Attributes:
        pattern: regular expression; its first group is the name of the original.
        shared: images of val that do; total: images of val.
        example: one of val and one of train.
    """

    pattern: str
    shared: int
    total: int
    example: tuple[str, str]


def find_related(train: Sequence[str], val: Sequence[str], class_names: Collection[str] = ()) -> Related | None:
    """Looks for images of val with the name of an original of train.

    Args:
        train, val: file names.
        class_names: words that are no names of originals, as in `cat_01.jpg`.

    Returns:
        The images by the pattern that is most certain; None if no pattern finds any.
    """
    for pattern in PATTERNS:
        first: dict[str, str] = {}
        originals = [_original(name, pattern, class_names) for name in (*train, *val)]
        groups = Counter(original for original in originals if original is not None)
        if len(groups) < FEWEST_GROUPS or groups.total() > LARGEST_GROUP * len(groups):
            continue
        for name, original in zip(train, originals, strict=False):
            if original is not None:
                first.setdefault(original, name)
        shared = [(name, o) for name, o in zip(val, originals[len(train) :], strict=True) if o in first]
        if shared:
            return Related(pattern, len(shared), len(val), (shared[0][0], first[str(shared[0][1])]))
    return None


def _original(name: str, pattern: str, class_names: Collection[str]) -> str | None:
    found = re.search(pattern, name)  # as `upsnet convert --group-by` does
    return None if found is None or found[1].lower() in class_names else found[1]
