"""`upsnet train --dry-run`: a few steps of the largest batch, and what the whole run will take."""

from __future__ import annotations

import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from upsnet.config import Config, DataConfig
from upsnet.data.loader import PanopticDataset, build_augmentation, collate, listed_classes, train_loader
from upsnet.data.sampler import is_wide
from upsnet.engine import distributed
from upsnet.engine.logging import peak_memory
from upsnet.engine.memory import remedies_for_memory
from upsnet.engine.resume import checkpoint_bytes
from upsnet.engine.train import Trainer
from upsnet.ops.sizes import InputForm
from upsnet.structures import PanopticBatch

WARM_UPS, TIMED = 2, 3
"""Number of warm-up steps, and of timed steps. With `train.cuda_graph` the second warm-up step records the graph."""
ROUNDS = 3
"""Batches of each worker that the data loader is timed on, after those that the workers have ready. Workers deliver in
bursts, so only whole rounds tell the rate."""


def dry_run(config: Config, output: Path | str, *, init: Path | str | None = None) -> list[str]:
    """Runs the largest batch of a run, and writes nothing into its folder.

    Args:
        config: the run.
        output: folder of the run; only its free space is looked at.
        init: file of weights to begin with.

    Returns:
        Lines with memory, time per step, hours and disk, in the first process; of several processes the exchange of
        gradients is not measured.

    Raises:
        OSError, ValueError, MemoryError: as `train`; the error names the keys that help.
    """
    with distributed.process_group() as device, tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder), device, init=None if init is None else Path(init))
        trainer.model.train()
        batch = largest_batch(trainer.train_set, config, trainer.model.input_form).to(device)
        group = [batch] * config.train.accumulate
        seconds = []
        for number in range(WARM_UPS + TIMED):
            start = time.perf_counter()
            with remedies_for_memory(trainer.model, number, group):
                trainer._step(trainer.model, group)
                _wait(device)
            seconds.append(time.perf_counter() - start)
        step = float(np.median(seconds[WARM_UPS:]))
        loading = _loading_seconds(trainer, config) * config.train.accumulate
        if not trainer.is_main:
            return []
        return [*trainer.introduction(), *_report(trainer, config, Path(output), batch, step, loading)]


def _report(
    trainer: Trainer, config: Config, output: Path, batch: PanopticBatch, step: float, loading: float
) -> list[str]:
    height, width = batch.images.shape[-2:]
    target = batch.target
    instances = 0 if target is None else int(target.is_instance.sum(1).max())
    images = config.train.batch_size * config.train.accumulate
    left = timedelta(seconds=round(max(step, loading) * config.train.iterations))
    weights, training = checkpoint_bytes(trainer.model, trainer.optimizer)
    disk = (config.train.keep_checkpoints + 1) * (weights + training) + 2 * weights
    lines = [
        f"largest batch: {len(batch)} images of {height}x{width} in this process, up to {instances} instances an image",
        f"memory: {peak_memory(trainer.device) / 1e9:.2f} GB",
        f"step: {step:.2f} s, {images / step:.1f} images/s over all processes (smaller batches are faster)",
        f"data: {loading:.2f} s for the images of a step with data.num_workers={config.data.num_workers}",
        f"{config.train.iterations} iterations: at most {left}, without evaluations",
        f"disk: {disk / 1e9:.2f} GB for checkpoints in {output}",
    ]
    if loading > step:
        lines.append("warning: the data is slower than the step; raise data.num_workers")
    return lines


def largest_batch(dataset: PanopticDataset, config: Config, form: InputForm) -> PanopticBatch:
    """This process's share of the batch that takes most memory: the largest images, with the most segments of these.

    Args:
        dataset: for training.
        config: of the run.
        form: of the architecture.
    """
    data = config.data
    count = config.train.batch_size // distributed.world_size()
    augmentation = build_augmentation(_largest_augmentation(data).augment)
    rng = np.random.default_rng(config.seed)
    plans = [augmentation.plan(dataset.size(index), rng) for index in range(len(dataset))]
    areas = [plan.window[0] * plan.window[1] for plan in plans]
    segments = [len(listed_classes(dataset, i)) for i in range(len(dataset))]
    order = sorted(range(len(dataset)), key=lambda i: (areas[i], segments[i]), reverse=True)
    groups = ([i for i in order if is_wide(dataset.size(i)) == wide] for wide in (False, True))
    candidates = [(group * count)[:count] for group in groups if group]  # as `BatchSampler` makes batches

    def padded_area(group: list[int]) -> int:
        return max(plans[i].window[0] for i in group) * max(plans[i].window[1] for i in group)

    chosen = max(candidates, key=padded_area)
    samples = [augmentation.apply(plans[index], dataset[index], rng) for index in chosen]
    pairs = [(sample, number) for number, sample in enumerate(samples)]
    return collate(pairs, dataset.categories.num_stuff, data.size_divisor, form)


def _largest_augmentation(data: DataConfig) -> DataConfig:
    """The augmentation with the largest short side and without colours; a crop is still drawn at random."""
    augment = data.augment
    sides = (max(augment.short_sides),) if augment.short_sides else ()
    changes = {"short_sides": sides, "flip": "none", "photometric": 0.0, "copy_paste": 0.0}
    return data.model_copy(update={"augment": augment.model_copy(update=changes)})


def _loading_seconds(trainer: Trainer, config: Config) -> float:
    """Seconds for this process's share of a batch, by its workers."""
    ahead = 4 * config.data.num_workers
    timed = ROUNDS * max(1, config.data.num_workers)
    loader = train_loader(
        trainer.train_set,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start=0,
        stop=ahead + timed + 1,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        form=trainer.model.input_form,
    )
    start = 0.0
    for number, _ in enumerate(loader):
        if number == ahead:
            start = time.perf_counter()
    return (time.perf_counter() - start) / timed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
