"""Oversampling of pictures with rare classes: repeat factors (Gupta et al. 2019, "LVIS", sec. B.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def repeat_factors(
    classes: Sequence[npt.NDArray[np.int64]], num_classes: int, threshold: float
) -> npt.NDArray[np.float64]:
    """How often each picture should come per epoch on average, at least once.

    A class c seen in the share f of the pictures has the factor max(1, sqrt(threshold / f)); a picture has the largest
    factor of its classes.

    Args:
        classes: per picture, the semantic channels of its segments (repeats do not matter).
        num_classes: S + T.
        threshold: share of pictures under which a class counts as rare; 0: every picture once.
    """
    seen = np.zeros((len(classes), num_classes), dtype=bool)
    for row, channels in zip(seen, classes, strict=True):
        row[channels] = True
    share = np.maximum(seen.mean(0), 1 / max(1, len(classes)))
    of_class = np.maximum(1.0, np.sqrt(threshold / share))
    return np.asarray(np.where(seen, of_class, 1.0).max(1))


def draw_repeats(factors: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Whole numbers of repeats for one epoch, whose means are the factors."""
    whole = np.floor(factors)
    return np.asarray(whole + (rng.random(len(factors)) < factors - whole), dtype=np.int64)
