"""From the config to data sets, augmentation and batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from upsnet.categories import IGNORE_LABEL, CategorySet, known_categories
from upsnet.categories.edits import edit_categories
from upsnet.config import AugmentConfig, CityscapesConfig, CocoConfig, DataConfig, ShapesConfig, Source
from upsnet.data import transforms as T
from upsnet.data.cityscapes import Cityscapes
from upsnet.data.coco import CocoPanoptic
from upsnet.data.edited import EditedClasses
from upsnet.data.reading import Batches, BeingRead, Item, TrainingItems, WholeItems
from upsnet.data.reading import PanopticDataset as PanopticDataset
from upsnet.data.sampler import BatchSampler, repeat_factors
from upsnet.data.shapes import Shapes
from upsnet.data.targets import make_target
from upsnet.io.images import ValueRange
from upsnet.io.parallel import quiet_worker
from upsnet.ops.sizes import MULTIPLES_OF_32, InputForm
from upsnet.ops.views import ViewPlan
from upsnet.structures import PanopticBatch, PanopticTarget, Sample

DATA_ROOT = "UPSNET_DATASETS"


def data_root() -> Path:
    """The folder that relative data set paths start from: $UPSNET_DATASETS, else `./datasets`."""
    return Path(os.environ.get(DATA_ROOT) or "datasets")


def open_dataset(config: DataConfig, split: str, categories: CategorySet | None = None) -> PanopticDataset:
    """Opens a data set with the classes of the model. Classes are matched by name; ids and order may differ.

    Args:
        config: the `data` section.
        split: `train` or `val`.
        categories: the classes of the model; by default `model_categories`, else those of the data set.

    Raises:
        FileNotFoundError, ValueError: naming the file, or the class that differs.
    """
    source, edits = getattr(config, split), config.classes.edits()
    dataset = _open(source, config.value_range)
    name = _name_of(source)
    if categories is None:
        own = configured_categories(config)
        if own is not None:
            own.require_names(dataset.categories, source=name)
        categories = edit_categories(own or dataset.categories, edits, source=name)
    if edits.changes_anything:
        return EditedClasses(dataset, categories, edits, name=name)
    categories.require_names(dataset.categories, source=name)
    if categories == dataset.categories:
        return dataset
    return EditedClasses(dataset, categories, edits, name=name)


def _open(source: Source, value_range: ValueRange | None) -> PanopticDataset:
    """A data set with its own classes."""
    root = data_root()
    if isinstance(source, ShapesConfig):
        return Shapes(source.num_images, source.image_size, source.seed)
    if isinstance(source, CityscapesConfig):
        return Cityscapes(root / source.root, source.split, value_range)
    panoptic_dir = root / source.panoptic_dir if source.panoptic_dir else None
    return CocoPanoptic(root / source.image_dir, root / source.annotation_file, panoptic_dir, value_range)


def coco_of(dataset: PanopticDataset) -> CocoPanoptic | None:
    """The reader of the COCO layout, if a data set is read by it, whatever the changes to its classes."""
    source = dataset.source if isinstance(dataset, EditedClasses) else dataset
    return source if isinstance(source, CocoPanoptic) else None


def listed_classes(dataset: PanopticDataset, index: int) -> npt.NDArray[np.int64]:
    """Semantic channels of the segments of an image without reading it; empty if no JSON lists them."""
    if coco_of(dataset) is None:
        return np.zeros(0, dtype=np.int64)
    return dataset.classes(index)  # type: ignore[attr-defined]


def _name_of(source: Source) -> str:
    return str(data_root() / source.annotation_file) if isinstance(source, CocoConfig) else source.format


def configured_categories(config: DataConfig) -> CategorySet | None:
    """The classes of `data.categories`, before the changes of `data.classes`."""
    if config.categories is None:
        return None
    if isinstance(config.categories, str):
        return known_categories(config.categories)
    return CategorySet.from_json([row.model_dump() for row in config.categories], source="data.categories")


def model_categories(config: DataConfig) -> CategorySet:
    """The classes of a model for this data: `data.categories`, else those of the training data, with the changes.

    Raises:
        FileNotFoundError, ValueError: as `open_dataset`.
    """
    own = configured_categories(config)
    if own is None:
        return open_dataset(config, "train").categories
    return edit_categories(own, config.classes.edits(), source="data.categories")


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
    if coco_of(dataset) is None:
        raise ValueError("data.repeat_threshold needs classes that a JSON lists, expected data.train.format=coco")
    return repeat_factors([listed_classes(dataset, i) for i in range(len(dataset))], len(dataset.categories), threshold)


class InferenceInput:
    """Turns images into the network's input: resize to the configured sides, pad, batch.

    Args:
        config: `test_short_side`, `test_max_side`, `size_divisor` and `value_range` count.
        form: of the architecture.
        network_size: (H, W) that every batch is padded to; larger images are shrunk to it. None: as small as possible.
        min_side: pixels a side that a batch is padded to at least, otherwise.
        views: also resize the images to these scales (`PanopticBatch.views`).

    Raises:
        ValueError: `views` is given for an architecture that resizes the images itself.
    """

    def __init__(
        self,
        config: DataConfig,
        form: InputForm = MULTIPLES_OF_32,
        network_size: tuple[int, int] | None = None,
        min_side: int = 0,
        views: ViewPlan | None = None,
    ) -> None:
        if views is not None and form.resizes_images:
            raise ValueError(
                "no test-time augmentation with a model that resizes its images itself "
                "(model.panoptic.method=official); use another method, such as model.panoptic.method=unified"
            )
        self.views = views
        self.form, self.network_size, self.min_side, self.divisor = form, network_size, min_side, config.size_divisor
        self.short_side = None if form.resizes_images else config.test_short_side
        self.max_side, self.max_pixels = config.test_max_side, config.max_network_pixels
        self.value_range = config.value_range

    def network_size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) at which the network works on an image of `size` = (H, W)."""
        found = size if self.short_side is None else T.fit_size(size, self.short_side, self.max_side)
        if self.network_size is not None:
            scale = min(limit / side for limit, side in zip(self.network_size, found, strict=True))
            if scale < 1:
                found = max(1, int(found[0] * scale)), max(1, int(found[1] * scale))
        return found if self.views is None else self.views.base_size(found, self.form)

    def _sizes_of(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of the network input of an image of `size` = (H, W), then of each of its views."""
        base = self.network_size_of(size)
        return [base] if self.views is None else [base, *self.views.sizes(base, self.form)]

    def reduction(self, size: tuple[int, int]) -> int:
        """The factor by which an image of `size` = (H, W) may be read smaller (`io.images.read_image`)."""
        factors = {T.reduction_for(size, found) for found in self._sizes_of(size)}
        return factors.pop() if len(factors) == 1 else 1

    def __call__(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | None = None) -> PanopticBatch:
        """uint8 [H, W, 3] images of any sizes -> a batch without targets.

        Args:
            images: whole, or read smaller by `reduction`.
            sizes: (H, W) of each whole image, if some were read smaller.

        Raises:
            ValueError: the network input of an image would have more than `data.max_network_pixels` pixels.
        """
        original = list(sizes) if sizes is not None else [(int(i.shape[0]), int(i.shape[1])) for i in images]
        targets = [self._sizes_of(size) for size in original]
        for size, sizes_of_one in zip(original, targets, strict=True):
            target = max(sizes_of_one, key=lambda found: found[0] * found[1])
            if target[0] * target[1] > self.max_pixels:
                is_base = target == sizes_of_one[0]
                keys = "set data.test_short_side and data.test_max_side"
                remedy = keys if is_base else "choose smaller scales of the views"
                raise ValueError(
                    f"image of {size[1]} x {size[0]}: {target[1]} x {target[0]} pixels of network input, expected at "
                    f"most {self.max_pixels}; {remedy}, or raise data.max_network_pixels"
                )
        base_sizes, *sizes_of_views = zip(*targets, strict=True)
        base = self._resized(images, original, base_sizes)
        views = [base if sizes == base_sizes else self._resized(images, original, sizes) for sizes in sizes_of_views]
        return replace(base, views=views)

    def _resized(
        self, images: Sequence[np.ndarray], original: list[tuple[int, int]], targets: Sequence[tuple[int, int]]
    ) -> PanopticBatch:
        """Resizes each image to its target (H, W)."""
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
    views: ViewPlan | None = None,
) -> Batches:
    """Every image once (this rank's share), images of like shape together; one that cannot be read is an error."""
    order = sorted(range(len(dataset)), key=dataset.size)[rank::world_size]
    make = InferenceInput(config, form, views=views)
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
