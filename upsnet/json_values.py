"""Values of JSON files as programs write them.

Programs write one value in several ways: 20, 20.0 and "20"; 1, 1.0, "1" and true. These functions take every form whose
meaning is certain. What they return for anything else makes the caller name the file and the row.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from upsnet.text import shown

ImageId = int | str
WHOLE = re.compile(r"-?[0-9]{1,40}(\.0{1,40})?")
PADDED = re.compile(r"-?0[0-9]")
DECIMAL = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?")


def whole_number(value: Any) -> int | None:
    """Reads a whole number of 64 bits: 20, 20.0, "20" or "20.0".

    Returns:
        The number; None for a fraction, a boolean, NaN, any other text, another type, or a number beyond 64 bits.
    """
    if type(value) is int:
        found = value
    elif isinstance(value, float) and value.is_integer():
        found = int(value)
    elif isinstance(value, str) and WHOLE.fullmatch(value):
        found = int(value.partition(".")[0])
    else:
        return None
    return found if -(2**63) <= found < 2**63 else None


def number(value: Any) -> float | None:
    """Reads a finite number: 0.5, 1, "0.5" or "5e-1".

    Returns:
        The number; None for NaN, infinity, a boolean, any other text, another type, or a number beyond float64.
    """
    is_number = type(value) is int or isinstance(value, float) or (isinstance(value, str) and DECIMAL.fullmatch(value))
    if not is_number:
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def flag(value: Any) -> bool | None:
    """Reads a flag: true or false, or the whole number 0 or 1; None for anything else."""
    found = value if isinstance(value, bool) else whole_number(value)
    return bool(found) if found in (0, 1) else None


def crowd_flag(value: Any) -> bool:
    """Reads `iscrowd`: a flag, where null means that the object is no crowd.

    Raises:
        ValueError: it is something else.
    """
    found = False if value is None else flag(value)
    if found is None:
        raise ValueError(f"iscrowd {shown(value)}, expected 0 or 1")
    return found


def image_id(value: Any) -> ImageId | None:
    """Reads the id of an image: a text, or a whole number, which may be written as 7.0; None for anything else."""
    return value if isinstance(value, str) else whole_number(value)


def match_image_ids(given: Iterable[ImageId], known: Collection[ImageId]) -> dict[ImageId, ImageId]:
    """Finds the known image that each id means.

    An id means the known id that equals it. Any other id that is a whole number (7, "7", "7.0") means the known id with
    this number, unless several known ids have it. A text with leading zeros ("000007") does so only if no other given
    id has the number, because programs also use "07" and "7" as different names.

    Args:
        given: ids from `image_id`, in any number.
        known: ids from `image_id`, each once.

    Returns:
        The known id for each given id; ids that mean no known image are left out.
    """
    ids = set(given)
    matched = {key: key for key in ids if key in known}
    if len(matched) == len(ids):
        return matched
    of_number = _by_number(known)
    for value, keys in _by_number(ids).items():
        if len(of_number.get(value, ())) == 1:
            for key in keys:
                if len(keys) == 1 or not (isinstance(key, str) and PADDED.match(key)):
                    matched.setdefault(key, of_number[value][0])
    return matched


def _by_number(ids: Iterable[ImageId]) -> dict[int, list[ImageId]]:
    found = defaultdict(list)
    for key in ids:
        if (value := whole_number(key)) is not None:
            found[value].append(key)
    return found
