"""The order in which training images come: a function of the seed, whatever the number of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler


class Key(NamedTuple):
    """What a training item is made from: an image, the epoch, and how often it came in that before."""

    epoch: int
    image: int
    repeat: int = 0


def image_seed(seed: int, epoch: int, index: int, repeat: int = 0) -> int:
    """The random stream of one image in one epoch, 63 bits; another one each time that it comes again."""
    entropy = [seed, epoch, index] + [repeat] * (repeat > 0)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def is_wide(size: tuple[int, int]) -> bool:
    """Whether an image of (H, W) is in the group of wide images; batches hold images of one group."""
    return size[1] > size[0]


def require_equal_shares(batch_size: int, world_size: int) -> None:
    """Checks that every process gets as many images of a batch.

    Raises:
        ValueError: it does not.
    """
    if batch_size % world_size:
        raise ValueError(f"train.batch_size {batch_size} over {world_size} processes, expected a multiple")


class BatchSampler(Sampler[list[Key]]):
    """Endless batches for training, grouped by aspect ratio, in an order set by the seed.

    Batches are made for all ranks together and dealt out, so their contents do not depend on how many ranks share
    them, and training can start at any iteration. What is left of an epoch's group waits for the next epoch.

    Args:
        sizes: (H, W) of every image.
        batch_size: images per step over all ranks.
        seed: of the order.
        start, stop: first and last (exclusive) iteration.
        rank, world_size: this process takes images rank, rank + world_size, ... of each batch.
        factors: float64 [n], how often each image comes per epoch on average; by default once.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        seed: int,
        *,
        start: int,
        stop: int,
        rank: int = 0,
        world_size: int = 1,
        factors: npt.NDArray[np.float64] | None = None,
    ) -> None:
        require_equal_shares(batch_size, world_size)
        self.is_wide = [is_wide(size) for size in sizes]
        self.batch_size, self.seed, self.factors = batch_size, seed, factors
        self.start, self.stop, self.rank, self.world_size = start, stop, rank, world_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        groups: dict[bool, list[Key]] = {False: [], True: []}
        iteration, epoch = 0, 0
        while iteration < self.stop:
            for key in self._epoch(epoch):
                group = groups[self.is_wide[key.image]]
                group.append(key)
                if len(group) == self.batch_size:
                    if self.start <= iteration < self.stop:
                        yield group[self.rank :: self.world_size]
                    group.clear()
                    iteration += 1
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[Key]:
        rng = np.random.default_rng([self.seed, epoch])
        if self.factors is None:
            yield from (Key(epoch, index) for index in rng.permutation(len(self.is_wide)).tolist())
            return
        indices = np.repeat(np.arange(len(self.is_wide)), draw_repeats(self.factors, rng))
        seen: Counter[int] = Counter()
        for index in rng.permutation(indices).tolist():
            yield Key(epoch, index, seen[index])
            seen[index] += 1


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
