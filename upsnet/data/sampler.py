"""The order in which training images come: a function of the seed, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


def image_seed(seed: int, epoch: int, index: int) -> int:
    """The random stream of one image in one epoch, 63 bits."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index) for training, grouped by aspect ratio, in an order set by the seed.

    Batches are made for all ranks together and dealt out, so their contents do not depend on how many ranks share
    them, and training can start at any iteration. What is left of an epoch's group waits for the next epoch.

    Args:
        sizes: (H, W) of every image.
        batch_size: images per step over all ranks.
        seed: of the order.
        start, stop: first and last (exclusive) iteration.
        rank, world_size: this process takes images rank, rank + world_size, ... of each batch.
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
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"train.batch_size {batch_size} over {world_size} processes, expected a multiple")
        self.is_wide = [width > height for height, width in sizes]
        self.batch_size, self.seed = batch_size, seed
        self.start, self.stop, self.rank, self.world_size = start, stop, rank, world_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        groups: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        iteration, epoch = 0, 0
        while iteration < self.stop:
            for index in np.random.default_rng([self.seed, epoch]).permutation(len(self.is_wide)).tolist():
                group = groups[self.is_wide[index]]
                group.append((epoch, index))
                if len(group) == self.batch_size:
                    if self.start <= iteration < self.stop:
                        yield group[self.rank :: self.world_size]
                    group.clear()
                    iteration += 1
            epoch += 1
