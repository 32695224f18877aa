"""Data sets, batches and the order in which images come: everything random is a function of (seed, epoch, image)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from upsnet.config import AugmentConfig, CityscapesConfig, DataConfig, ShapesConfig, Source
from upsnet.data import transforms as T
from upsnet.data.categories import IGNORE_LABEL, CategorySet
from upsnet.data.cityscapes import Cityscapes
from upsnet.data.coco import CocoPanoptic
from upsnet.data.known_categories import known_categories
from upsnet.data.shapes import Shapes
from upsnet.data.targets import make_target
from upsnet.structures import PanopticBatch, PanopticTarget, Sample

DATA_ROOT = "UPSNET_DATASETS"


class PanopticDataset(Protocol):
    """What every reader offers."""

    categories: CategorySet

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) without reading the image."""
        ...

    def __getitem__(self, index: int) -> Sample: ...


def data_root() -> Path:
    """The folder that relative data set paths start from: $UPSNET_DATASETS, else `datasets/` of the repository."""
    return Path(os.environ.get(DATA_ROOT) or Path(__file__).parents[2] / "datasets")


def open_dataset(config: Source, categories: CategorySet | None = None) -> PanopticDataset:
    """Opens a data set.

    Args:
        config: `data.train` or `data.val`.
        categories: the classes it must have; by default its own.

    Raises:
        FileNotFoundError, ValueError: naming the file, or the category that differs.
    """
    if isinstance(config, ShapesConfig):
        dataset: PanopticDataset = Shapes(config.num_images, config.image_size, config.seed)
    elif isinstance(config, CityscapesConfig):
        dataset = Cityscapes(data_root() / config.root, config.split)
    else:
        root = data_root()
        panoptic_dir = root / config.panoptic_dir if config.panoptic_dir else None
        dataset = CocoPanoptic(root / config.image_dir, root / config.annotation_file, panoptic_dir, categories)
    if categories is not None:
        categories.require(dataset.categories, source=config.format)
        if categories.channels != dataset.categories.channels:
            raise ValueError(
                f"{config.format}: the model has these classes in another order, expected the data set's own"
            )
    return dataset


def open_train_dataset(config: DataConfig, categories: CategorySet | None = None) -> PanopticDataset:
    """Opens the training data; its classes must be `categories`, or those of `data.categories`, where given."""
    return open_dataset(config.train, categories or configured_categories(config))


def configured_categories(config: DataConfig) -> CategorySet | None:
    """The classes of `data.categories`."""
    if config.categories is None:
        return None
    if isinstance(config.categories, str):
        return known_categories(config.categories)
    return CategorySet.from_json([row.model_dump() for row in config.categories], source="data.categories")


def build_transform(config: AugmentConfig) -> list[T.Transform]:
    """The training augmentation in its order: geometry first, then colour."""
    steps: list[T.Transform] = []
    if config.crop_size is not None:
        steps.append(T.JitterCrop(config.crop_size, config.jitter_scale))
    elif config.short_sides:
        steps.append(T.ResizeShortSide(config.short_sides, config.max_side))
    if config.flip != "none":
        steps.append(T.horizontal_flip if config.flip == "horizontal" else T.dihedral_flip)
    if config.photometric:
        steps.append(T.Photometric(config.photometric, config.hue))
    return steps


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


class _Items(Dataset[Any]):
    """Reads and transforms samples inside the workers."""

    def __init__(self, dataset: PanopticDataset, steps: list[T.Transform], seed: int) -> None:
        self.dataset, self.steps, self.seed = dataset, steps, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, int]:
        epoch, index = key
        seed = image_seed(self.seed, epoch, index)
        sample = self.dataset[index]
        rng = np.random.default_rng(seed)
        for step in self.steps:
            sample = step(sample, rng)
        return sample, seed


def collate(items: Sequence[tuple[Sample, int]], num_stuff: int, divisor: int) -> PanopticBatch:
    """Makes a training batch of augmented samples and their seeds."""
    samples = [sample for sample, _ in items]
    images, sizes = T.pad_images([s.image for s in samples], divisor)
    targets = [make_target(sample, num_stuff, seed) for sample, seed in items]
    slots = max(1, max(len(t.labels) for t in targets))

    def stack(name: str, shape: Sequence[int], fill: int = 0) -> Tensor:
        """The field of all targets, padded at the end of each dimension."""
        values = [getattr(t, name) for t in targets]
        batch = values[0].new_full((len(values), *shape), fill)
        for row, value in zip(batch, values, strict=True):
            row[tuple(slice(n) for n in value.shape)] = value
        return batch

    target = PanopticTarget(
        boxes=stack("boxes", (slots, 4)),
        labels=stack("labels", (slots,)),
        is_crowd=stack("is_crowd", (slots,)),
        instance_map=stack("instance_map", images.shape[-2:]),
        semantic_map=stack("semantic_map", images.shape[-2:], IGNORE_LABEL),
        seeds=stack("seeds", ()),
    )
    return PanopticBatch(
        images, torch.tensor(sizes), sizes, [s.size for s in samples], [s.file_name for s in samples], target
    )


def _quiet_worker(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def train_loader(
    dataset: PanopticDataset,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[PanopticBatch]:
    """Batches for iterations `start` to `stop`, this rank's share of each."""
    sizes = [dataset.size(i) for i in range(len(dataset))]
    sampler = BatchSampler(sizes, batch_size, seed, start=start, stop=stop, rank=rank, world_size=world_size)
    return DataLoader(
        _Items(dataset, build_transform(config.augment), seed),
        batch_sampler=sampler,
        collate_fn=partial(collate, num_stuff=dataset.categories.num_stuff, divisor=config.size_divisor),
        num_workers=config.num_workers,
        worker_init_fn=_quiet_worker,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if config.num_workers else None,
    )


class InferenceInput:
    """Turns pictures into the network's input: resize to the configured sides, pad, batch.

    Args:
        config: `test_*` and `size_divisor` count.
        network_size: (H, W) that every batch is padded to, pictures being made to fit; by default as small as possible.
        min_side: pixels a side that a batch is padded to at least, otherwise.
    """

    def __init__(self, config: DataConfig, network_size: tuple[int, int] | None = None, min_side: int = 0) -> None:
        self.network_size, self.min_side = network_size, min_side
        self.short_side, self.max_side, self.divisor = config.test_short_side, config.test_max_side, config.size_divisor
        self.in_float = config.test_resize == "float"

    def resize(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] at the size the network works on; float32 if the config says so."""
        image = self._configured(image)
        if self.network_size is not None:
            scale = min(limit / size for limit, size in zip(self.network_size, image.shape, strict=False))
            if scale < 1:
                height, width = (max(1, int(size * scale)) for size in image.shape[:2])
                image = T.resize_image(image, (height, width))
        return image

    def _configured(self, image: np.ndarray) -> np.ndarray:
        if self.short_side is None:
            return image
        if self.in_float:
            return T.resize_exactly(image, self.short_side, self.max_side)
        return T.resize_image(image, T.fit_size(image.shape[:2], self.short_side, self.max_side))

    def __call__(self, images: Sequence[np.ndarray]) -> PanopticBatch:
        """uint8 [H, W, 3] pictures of any sizes -> a batch without targets."""
        batch, sizes = T.pad_images(
            [self.resize(image) for image in images], self.divisor, self.network_size, self.min_side
        )
        original = [(int(i.shape[0]), int(i.shape[1])) for i in images]
        scales: list[float | None] = []
        if self.in_float and self.short_side is not None:
            for size, network in zip(original, sizes, strict=True):
                scale = T.exact_scale(size, self.short_side, self.max_side)
                scales.append(scale if network == (round(size[0] * scale), round(size[1] * scale)) else None)
        return PanopticBatch(batch, torch.tensor(sizes), sizes, original, scales=scales)


def collate_whole(items: Sequence[tuple[Sample, int]], make: InferenceInput) -> PanopticBatch:
    """A batch of whole pictures; `truths` keeps the samples' maps, not their pixels."""
    samples = [sample for sample, _ in items]
    truths = [replace(s, image=s.image[:0]) for s in samples]
    return replace(make([s.image for s in samples]), file_names=[s.file_name for s in samples], truths=truths)


def test_loader(
    dataset: PanopticDataset, config: DataConfig, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> DataLoader[PanopticBatch]:
    """Every image once (this rank's share), images of like shape together."""
    order = sorted(range(len(dataset)), key=dataset.size)[rank::world_size]
    return DataLoader(
        _Items(dataset, [], seed=0),
        batch_sampler=[[(0, i) for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)],
        collate_fn=partial(collate_whole, make=InferenceInput(config)),
        num_workers=config.num_workers,
        worker_init_fn=_quiet_worker,
        pin_memory=torch.cuda.is_available(),
    )
