"""From the config to data sets, augmentation and batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from upsnet.categories import IGNORE_LABEL, CategorySet, known_categories
from upsnet.config import AugmentConfig, CityscapesConfig, DataConfig, ShapesConfig, Source
from upsnet.data import transforms as T
from upsnet.data.cityscapes import Cityscapes
from upsnet.data.coco import CocoPanoptic
from upsnet.data.reading import Batches, BeingRead, Item, TrainingItems, WholeItems
from upsnet.data.reading import PanopticDataset as PanopticDataset
from upsnet.data.sampler import BatchSampler, repeat_factors
from upsnet.data.shapes import Shapes
from upsnet.data.targets import make_target
from upsnet.io.parallel import quiet_worker
from upsnet.ops.sizes import MULTIPLES_OF_32, InputForm
from upsnet.structures import PanopticBatch, PanopticTarget, Sample

DATA_ROOT = "UPSNET_DATASETS"


def data_root() -> Path:
    """The folder that relative data set paths start from: $UPSNET_DATASETS, else `./datasets`."""
    return Path(os.environ.get(DATA_ROOT) or "datasets")


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


def build_augmentation(config: AugmentConfig) -> T.Augmentation:
    """The training augmentation."""
    steps: list[T.GeometryStep] = []
    if config.crop_size is not None:
        steps.append(T.JitterCrop(config.crop_size, config.jitter_scale))
    elif config.short_sides:
        steps.append(T.ResizeShortSide(config.short_sides, config.max_side))
    if config.flip != "none":
        steps.append(T.horizontal_flip if config.flip == "horizontal" else T.dihedral_flip)
    return T.Augmentation(steps, T.Photometric(config.photometric, config.hue) if config.photometric else None)


def collate(
    items: Sequence[tuple[Sample, int]], num_stuff: int, divisor: int, form: InputForm = MULTIPLES_OF_32
) -> PanopticBatch:
    """Makes a training batch of augmented samples and their seeds."""
    samples = [sample for sample, _ in items]
    images, sizes = T.pad_images([s.image for s in samples], divisor, form=form)
    shape = (len(items), *images.shape[-2:])
    instance_maps, semantic_maps = np.zeros(shape, np.int32), np.full(shape, IGNORE_LABEL, np.uint8)
    targets = [
        make_target(sample, num_stuff, seed, (instance_map[:height, :width], semantic_map[:height, :width]))
        for (sample, seed), instance_map, semantic_map, (height, width) in zip(
            items, instance_maps, semantic_maps, sizes, strict=True
        )
    ]
    slots = max(1, max(len(t.labels) for t in targets))

    def stack(name: str, *shape: int) -> Tensor:
        """The field of all targets, padded with zeros at the end."""
        values = [getattr(t, name) for t in targets]
        batch = values[0].new_zeros((len(values), *shape))
        for row, value in zip(batch, values, strict=True):
            row[: len(value)] = value
        return batch

    target = PanopticTarget(
        boxes=stack("boxes", slots, 4),
        labels=stack("labels", slots),
        is_crowd=stack("is_crowd", slots),
        instance_map=torch.from_numpy(instance_maps),
        semantic_map=torch.from_numpy(semantic_maps),
        seeds=torch.stack([t.seeds for t in targets]),
    )
    return PanopticBatch(
        images, torch.tensor(sizes), sizes, [s.size for s in samples], [s.file_name for s in samples], target
    )


def _collate_items(items: Sequence[Item], num_stuff: int, divisor: int, form: InputForm) -> PanopticBatch:
    batch = collate([(item.sample, item.seed) for item in items], num_stuff, divisor, form)
    return replace(batch, unreadable={index: text for item in items for index, text in item.unreadable.items()})


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
    form: InputForm = MULTIPLES_OF_32,
) -> Batches:
    """Batches for iterations `start` to `stop`, this rank's share of each; see `Batches` for what may go wrong."""
    num_stuff = dataset.categories.num_stuff
    sizes = [dataset.size(i) for i in range(len(dataset))]
    factors = _factors(dataset, config.repeat_threshold) if config.repeat_threshold else None
    sampler = BatchSampler(
        sizes, batch_size, seed, start=start, stop=stop, rank=rank, world_size=world_size, factors=factors
    )
    being_read = BeingRead(config.num_workers)
    items = TrainingItems(
        dataset,
        build_augmentation(config.augment),
        seed,
        sizes,
        config.max_unreadable,
        being_read,
        config.augment.copy_paste,
    )
    loader = DataLoader(
        items,
        batch_sampler=sampler,
        collate_fn=partial(_collate_items, num_stuff=num_stuff, divisor=config.size_divisor, form=form),
        num_workers=config.num_workers,
        worker_init_fn=quiet_worker,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if config.num_workers else None,
    )
    return Batches(loader, dataset, being_read, config.max_unreadable)


def _factors(dataset: PanopticDataset, threshold: float) -> np.ndarray:
    if not isinstance(dataset, CocoPanoptic):
        raise ValueError("data.repeat_threshold needs classes that a JSON lists, expected data.train.format=coco")
    return repeat_factors([dataset.classes(i) for i in range(len(dataset))], len(dataset.categories), threshold)


class InferenceInput:
    """Turns images into the network's input: resize to the configured sides, pad, batch.

    Args:
        config: `test_short_side`, `test_max_side` and `size_divisor` count.
        form: of the architecture.
        network_size: (H, W) that every batch is padded to; larger images are shrunk to it. None: as small as possible.
        min_side: pixels a side that a batch is padded to at least, otherwise.
    """

    def __init__(
        self,
        config: DataConfig,
        form: InputForm = MULTIPLES_OF_32,
        network_size: tuple[int, int] | None = None,
        min_side: int = 0,
    ) -> None:
        self.form, self.network_size, self.min_side, self.divisor = form, network_size, min_side, config.size_divisor
        self.short_side = None if form.resizes_images else config.test_short_side
        self.max_side, self.max_pixels = config.test_max_side, config.max_network_pixels

    def network_size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) at which the network works on an image of `size` = (H, W)."""
        found = size if self.short_side is None else T.fit_size(size, self.short_side, self.max_side)
        if self.network_size is not None:
            scale = min(limit / side for limit, side in zip(self.network_size, found, strict=True))
            if scale < 1:
                found = max(1, int(found[0] * scale)), max(1, int(found[1] * scale))
        return found

    def reduction(self, size: tuple[int, int]) -> int:
        """The factor by which an image of `size` = (H, W) may be read smaller (`io.images.read_image`)."""
        return T.reduction_for(size, self.network_size_of(size))

    def __call__(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None) -> PanopticBatch:
        """uint8 [H, W, 3] images of any sizes -> a batch without targets.

        Args:
            images: whole, or read smaller by `reduction`.
            sizes: (H, W) of each whole image, if some were read smaller.

        Raises:
            ValueError: the network input of an image would have more than `data.max_network_pixels` pixels.
        """
        original = list(sizes) if sizes is not None else [(int(i.shape[0]), int(i.shape[1])) for i in images]
        targets = [self.network_size_of(size) for size in original]
        for size, target in zip(original, targets, strict=True):
            if target[0] * target[1] > self.max_pixels:
                raise ValueError(
                    f"image of {size[1]} x {size[0]}: {target[1]} x {target[0]} pixels of network input, expected at "
                    f"most {self.max_pixels}; set data.test_short_side and data.test_max_side, or raise "
                    "data.max_network_pixels"
                )
        resized = [T.resample(*parts) for parts in zip(images, original, targets, strict=True)]
        batch, valid = T.pad_images(resized, self.divisor, self.network_size, self.min_side, self.form)
        return PanopticBatch(batch, torch.tensor(valid), valid, original)


def collate_whole(samples: Sequence[Sample], make: InferenceInput) -> PanopticBatch:
    """A batch of whole pictures; `truths` keeps the samples' maps, not their pixels."""
    truths = [replace(s, image=s.image[:0]) for s in samples]
    batch = make([s.image for s in samples], [s.size for s in samples])
    return replace(batch, file_names=[s.file_name for s in samples], truths=truths)


def test_loader(
    dataset: PanopticDataset,
    config: DataConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    form: InputForm = MULTIPLES_OF_32,
) -> Batches:
    """Every image once (this rank's share), images of like shape together; one that cannot be read is an error."""
    order = sorted(range(len(dataset)), key=dataset.size)[rank::world_size]
    make = InferenceInput(config, form)
    being_read = BeingRead(config.num_workers)
    loader = DataLoader(
        WholeItems(dataset, being_read, make.reduction),
        batch_sampler=[order[at : at + batch_size] for at in range(0, len(order), batch_size)],
        collate_fn=partial(collate_whole, make=make),
        num_workers=config.num_workers,
        worker_init_fn=quiet_worker,
        pin_memory=torch.cuda.is_available(),
    )
    return Batches(loader, dataset, being_read)
