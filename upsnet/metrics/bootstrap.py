"""Intervals of PQ over the choice of images: the bootstrap's percentiles (Efron 1979)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEVEL = 95
RESAMPLES = 1000
SEED = 0
STEP = 50
FIXED_POINT = 2.0**30


def pq_samples(
    iou: npt.NDArray[np.float64], size: npt.NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = SEED
) -> npt.NDArray[np.float64]:
    """PQ of each class when the images are drawn anew, as many as there are, with replacement.

    Sums of IoU are taken in steps of 2^-30, which makes them exact in any order: the same bits on every machine.

    Args:
        iou: [n, C], sums of IoU of each image; size: [n, C], TP + FP / 2 + FN / 2.
        resamples: how many times to draw.
        seed: of the draws.

    Returns:
        [resamples, C], 0..1, nan where no drawn image has the class.
    """
    images, classes = iou.shape
    values = np.concatenate([np.rint(iou * FIXED_POINT) / FIXED_POINT, size], axis=1)
    rng = np.random.default_rng(seed)
    samples = np.empty((resamples, classes))
    for start in range(0, resamples, STEP):
        times = rng.multinomial(images, np.full(images, 1 / images), size=min(STEP, resamples - start))
        sums = times @ values
        with np.errstate(invalid="ignore"):
            samples[start : start + STEP] = sums[:, :classes] / sums[:, classes:]
    return samples


def interval(samples: npt.NDArray[np.float64]) -> list[float] | None:
    """The middle 95 % of the mean over classes, in percent; None where no class occurs.

    Args:
        samples: [resamples, classes], nan where a class does not occur.
    """
    seen = ~np.isnan(samples)
    number = seen.sum(1)
    if not number.any():
        return None
    means = 100 * np.where(seen, samples, 0).sum(1)[number > 0] / number[number > 0]
    tail = (100 - LEVEL) / 2
    return [float(value) for value in np.percentile(means, [tail, 100 - tail])]
