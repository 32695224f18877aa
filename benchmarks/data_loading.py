#!/usr/bin/env python
"""Reading training data: CPU seconds against a plain reader with a mask per instance, and the memory of the workers.

    python benchmarks/data_loading.py | tee -a benchmarks/results/data_loading.jsonl
    python benchmarks/data_loading.py --memory | tee -a benchmarks/results/data_loading.jsonl

One JSON line per case. Data are generated in COCO panoptic layout: photographs of smooth fields, texture and noise, 15
segments each (5 stuff regions, 10 blobs, 24-bit random ids), pictures as JPEG (quality 90, 4:2:0) or PNG; with
$UPSNET_DATASETS, the real COCO pictures of `coco_sample` are a case of their own. Both sides make the same scales,
crops and flips, and deliver a padded batch of uint8 images, with boxes, labels, masks and semantic maps; that labels
and semantic maps agree is checked. The plain reader decodes both files by Pillow, compares the id map with each id,
resizes picture (Pillow, bilinear) and masks (torch, nearest), crops, flips, and finds boxes in the masks
(torchvision): the way that DETR's authors describe, but for two things that UPSNet's losses need: boxes are tight after
the crop, and masks are painted into a semantic map. Pictures are not alike to the bit: Pillow averages where it
shrinks, we do so only through JPEG's own smaller sizes.

Figures are CPU milliseconds (user and system) of one thread per image, the best of `--rounds` passes, the sides taking
turns. `*_ms` are ours and `plain_*_ms` the plain reader's, in stages: `picture` and `ids` (decoded, the plain reader's
masks included), `geometry`, `colour` (brightness, contrast, saturation; torchvision's on the plain side) and `targets`
(with collation). `ratio` is the plain reader's time for everything but colour over ours, `ratio_with_colour` that for
everything. `ratio_without_targets` is that of `picture`, `ids` and `geometry`.

`--memory`: proportional and private memory (MB) of each forked worker after 1,000, 5,000 and 20,000 samples of as many
images, each with 15 segments.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch
from panoptic_photographs import write_data
from plain_reader import PlainReader

from upsnet.config import AugmentConfig, CocoConfig, DataConfig
from upsnet.data.coco import CocoPanoptic
from upsnet.data.loader import build_augmentation, collate, train_loader
from upsnet.data.sampler import image_seed
from upsnet.data.transforms import Geometry, Photometric
from upsnet.io.images import read_image

BATCH = 4
COLOUR = 0.4
READING = ("picture", "ids", "geometry")
CASES: dict[str, tuple[tuple[int, int], str, int, dict[str, Any]]] = {
    "coco 800/1333": ((480, 640), "jpg", 24, {"short_sides": [800], "max_side": 1333}),
    "coco crop 256": ((480, 640), "jpg", 24, {"crop_size": [256, 256]}),
    "cityscapes crop 512x1024": ((1024, 2048), "png", 8, {"crop_size": [512, 1024], "jitter_scale": [0.5, 2.0]}),
    "cityscapes 800-1024": ((1024, 2048), "png", 8, {"short_sides": [800, 896, 1024], "max_side": 2048}),
}
"""(H, W), kind of the pictures, how many, augmentation."""

Run = Callable[[], Any]


def each(function: Callable[..., Any], *columns: Sequence[Any]) -> Run:
    """Calls a function for every image; no result is kept."""

    def run() -> None:
        for arguments in zip(*columns, strict=True):
            function(*arguments)

    return run


def our_stages(dataset: CocoPanoptic, plans: Sequence[Geometry], config: DataConfig, batch: int) -> dict[str, Run]:
    """Each stage over all images; what goes before it is done already."""
    indices, photometric, num_stuff = range(len(plans)), Photometric(COLOUR, 0), dataset.categories.num_stuff
    samples = [dataset.read(i, plan.reduction) for i, plan in enumerate(plans)]
    augmented = [plan.apply(sample) for plan, sample in zip(plans, samples, strict=True)]

    def picture(index: int, plan: Geometry) -> None:
        read_image(dataset.image_dir / dataset.file_name(index), apply_exif=False, reduction=plan.reduction)

    def load(changes: dict[str, Any]) -> None:
        changed = config.model_copy(update={"augment": config.augment.model_copy(update=changes)})
        for _ in train_loader(dataset, changed, batch_size=batch, seed=0, start=0, stop=len(plans) // batch):
            pass

    groups = [[(sample, 0) for sample in augmented[at : at + batch]] for at in range(0, len(plans), batch)]
    return {
        "picture": each(picture, indices, plans),
        "ids": each(lambda i: dataset.truth.map_of(dataset.truth.annotations.at(i)), indices),
        "geometry": each(Geometry.apply, plans, samples),
        "colour": each(lambda sample: photometric(sample.image, np.random.default_rng(0)), augmented),
        "targets": each(lambda group: collate(group, num_stuff, 32), groups),
        "all": lambda: load({}),
        "all_with_colour": lambda: load({"photometric": COLOUR}),
    }


def plain_stages(plain: PlainReader, plans: Sequence[Geometry], batch: int) -> dict[str, Run]:
    """The same of the plain reader."""
    indices = range(len(plans))
    pictures, masks = [plain.picture(i) for i in indices], [plain.masks(i) for i in indices]
    augmented = [plain.geometry(p, image, m) for p, image, (m, _) in zip(plans, pictures, masks, strict=True)]
    groups = [range(at, at + batch) for at in range(0, len(plans), batch)]

    def targets(group: range) -> None:
        rows = [plain.target(augmented[i][1], masks[i][1]) for i in group]
        plain.batch([augmented[i][0] for i in group], rows)

    def load(group: range, colour: bool) -> None:
        images, rows = [], []
        for index in group:
            segments, classes = plain.masks(index)
            image, segments = plain.geometry(plans[index], plain.picture(index), segments)
            images.append(plain.colour(image, COLOUR, np.random.default_rng(0)) if colour else image)
            rows.append(plain.target(segments, classes))
        plain.batch(images, rows)

    return {
        "picture": each(plain.picture, indices),
        "ids": each(plain.masks, indices),
        "geometry": each(plain.geometry, plans, pictures, [m for m, _ in masks]),
        "colour": each(lambda row: plain.colour(row[0], COLOUR, np.random.default_rng(0)), augmented),
        "targets": each(targets, groups),
        "all": each(lambda group: load(group, False), groups),
        "all_with_colour": each(lambda group: load(group, True), groups),
    }


def check_alike(dataset: CocoPanoptic, plain: PlainReader, plan: Geometry, index: int) -> None:
    """Both sides give the same truth for an image."""
    ours = collate([(plan.apply(dataset.read(index, plan.reduction)), 0)], dataset.categories.num_stuff, 1).target
    masks, classes = plain.masks(index)
    theirs = plain.target(plain.geometry(plan, plain.picture(index), masks)[1], classes)
    labels = theirs["labels"] - dataset.categories.num_stuff + 1
    assert ours is not None
    assert torch.equal(ours.labels[ours.labels > 0], labels), "labels"
    assert (ours.semantic_map[0] != theirs["semantic"]).float().mean() < 0.01, "semantic maps"


def row_of(name: str, dataset: CocoPanoptic, augment: dict[str, Any], rounds: int) -> dict[str, Any]:
    """All figures of a case."""
    config = data_config(augment)
    augmentation = build_augmentation(config.augment)
    images = len(dataset)
    batch = min(BATCH, images)
    plans = [augmentation.plan(dataset.size(i), np.random.default_rng(image_seed(0, 0, i))) for i in range(images)]
    plain = PlainReader(dataset)
    for index, plan in enumerate(plans):
        check_alike(dataset, plain, plan, index)
    sides = {"": our_stages(dataset, plans, config, batch), "plain_": plain_stages(plain, plans, batch)}
    best: dict[str, float] = {}
    for _ in range(rounds):
        for stage in sides[""]:
            for prefix, stages in sides.items():
                start = time.process_time()
                stages[stage]()
                spent = (time.process_time() - start) * 1000 / images
                best[prefix + stage] = min(best.get(prefix + stage, float("inf")), spent)
    sizes = [(dataset.image_dir / dataset.file_name(i)).stat().st_size for i in range(images)]
    return {
        "case": name,
        "ratio": round(best["plain_all"] / best["all"], 2),
        "ratio_with_colour": round(best["plain_all_with_colour"] / best["all_with_colour"], 2),
        "ratio_without_targets": round(sum(best[f"plain_{s}"] for s in READING) / sum(best[s] for s in READING), 2),
        "images_per_cpu_s": round(1000 / best["all"], 1),
        "plain_images_per_cpu_s": round(1000 / best["plain_all"], 1),
        **{f"{key}_ms": round(value, 3) for key, value in best.items()},
        "images": images,
        "picture_kb": round(sum(sizes) / len(sizes) / 1000, 1),
    }


def data_config(augment: dict[str, Any], workers: int = 0) -> DataConfig:
    """Of a training set that is passed beside it."""
    source = CocoConfig(format="coco", image_dir="", annotation_file="")
    return DataConfig(train=source, val=source, augment=AugmentConfig.model_validate(augment), num_workers=workers)


def megabytes(process: int) -> dict[str, float]:
    """Proportional and private memory of a process."""
    rows = [line.split() for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {row[0].rstrip(":"): int(row[1]) / 1000 for row in rows if len(row) > 1}
    return {"pss": round(sizes["Pss"], 1), "private": round(sizes["Private_Clean"] + sizes["Private_Dirty"], 1)}


def memory_row(images: int, marks: Sequence[int], workers: int = 2) -> dict[str, Any]:
    """A worker's memory as samples go by."""
    with tempfile.TemporaryDirectory() as name:
        dataset = write_data(Path(name), (64, 96), "jpg", 10, images // 10)
        stop = max(marks) // BATCH
        config = data_config({"short_sides": [64], "max_side": 96}, workers)
        found = {}
        batches = train_loader(dataset, config, batch_size=BATCH, seed=0, start=0, stop=stop + 5 * workers)
        for number, _ in enumerate(batches, 1):
            if number * BATCH in marks:
                found[str(number * BATCH)] = [megabytes(process) for process in batches.being_read.by_process()]
    return {"case": f"memory of {workers} workers, {images} images", "worker_mb_after_samples": found}


def cases(folder: Path) -> Iterator[tuple[str, CocoPanoptic, dict[str, Any]]]:
    """Name, data and augmentation of each."""
    for number, (name, (size, kind, images, augment)) in enumerate(CASES.items()):
        (folder / str(number)).mkdir()
        yield name, write_data(folder / str(number), size, kind, images), augment
    real = Path(os.environ.get("UPSNET_DATASETS", ""), "coco_sample")
    if real.is_dir():
        dataset = CocoPanoptic(real / "val2017", next((real / "annotations").glob("panoptic_*.json")))
        yield "real coco 800/1333", dataset, {"short_sides": [800], "max_side": 1333}


def main() -> None:
    """Measures every case, or the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="passes per case, of which the best counts")
    parser.add_argument("--memory", action="store_true", help="measure the memory of workers instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    packages = ("numpy", "numba", "deflate", "torch", "torchvision", "opencv-python-headless", "pillow")
    versions = {name: version(name) for name in packages}
    common = {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()} CPU", "cores": os.cpu_count()}
    if args.memory:
        print(json.dumps({**memory_row(20_000, (1000, 5000, 20_000)), **common, "versions": versions}))
        return
    with tempfile.TemporaryDirectory() as name:
        for case, dataset, augment in cases(Path(name)):
            print(
                json.dumps({**row_of(case, dataset, augment, args.rounds), **common, "versions": versions}), flush=True
            )


if __name__ == "__main__":
    main()
