#!/usr/bin/env python
"""Compares the speed of this tree with an older commit: training step, panoptic head, data loading, prediction.

    python benchmarks/against_commit.py HEAD~1 | tee -a benchmarks/results/against_commit.jsonl

One JSON line per case. Both commits run the same code of this script on the same inputs, each in its own process, on
one thread. Their measurements alternate: five pairs per case, after a warm-up. `ratio` is the median of the five ratios
of CPU seconds, this tree over the commit; `ratios` are all five. The script uses only functions that have the same name
in both. glibc keeps the memory that is freed: otherwise `read` varies by a fifth from process to process, because the
allocator returns large blocks to the system in some processes and not in others (0 to 10,000 page faults a repeat).

Cases: `train_r50`, a step of `coco_r50` on 2 x 320x480; `train_r18`, a step of `shapes_r18` on 8 x 128x128; `head`, the
panoptic head at 800x1333 with 133 classes and 50 instances; `data`, 16 COCO-like pairs of 480x640 at 800/1333 in
batches of two; `read`, the same pairs without augmentation; `json`, a COCO-panoptic JSON of 4,000 images with 15
segments each, opened as a data set; `predict`, an image of 480x640 through `PanopticPredictor` with `coco_r50` at a
shorter side of 320.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
CASES = ("train_r50", "train_r18", "head", "data", "read", "json", "predict")
REPEATS = {"train_r50": 1, "train_r18": 4, "head": 4, "data": 4, "read": 4, "json": 1, "predict": 2}
"""Calls of the case in one measurement."""
PAIRS = 5
OVERRIDES = ("model.backbone.weights=null", "model.instance.mask_slots=32")


def main() -> None:
    """Parses the command line and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", help="revision to compare this working tree with")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--worker", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        run_worker(args.worker)
        return
    if args.commit is None:
        parser.error("expected a commit to compare with, for example HEAD~1")
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, before], check=True)
        subprocess.run(["git", "-C", before, "checkout", "--quiet", args.commit], check=True)
        write_pairs(Path(folder) / "data")
        for case in args.cases:
            row = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": _machine(), "commit": args.commit, "case": case}
            print(json.dumps(row | compare(case, before, Path(folder) / "data")), flush=True)


def compare(case: str, before: Path, data: Path) -> dict[str, Any]:
    """Median CPU seconds per call of both trees, and the ratio of this tree to the commit."""
    sides = [BenchmarkProcess(case, tree, data) for tree in (ROOT, before)]
    for side in sides:
        side.measure()
    pairs = []
    for number in range(PAIRS):
        order = sides if number % 2 else sides[::-1]
        seconds = {id(side): side.measure() for side in order}
        pairs.append([seconds[id(side)] for side in sides])
    for side in sides:
        side.close()
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (statistics.median(column) / REPEATS[case] for column in zip(*pairs, strict=True))
    return {
        "cpu_s": round(ours, 4),
        "cpu_s_before": round(theirs, 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


class BenchmarkProcess:
    """A process that runs a case of one tree whenever it is asked to."""

    def __init__(self, case: str, tree: Path, data: Path) -> None:
        environment = {
            **os.environ,
            **KEEP_MEMORY,
            "PYTHONPATH": str(tree),
            "UPSNET_DATASETS": str(data),
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", case],
            env={**environment, "UPSNET_TREE": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self) -> float:
        """CPU seconds of one measurement."""
        pipe_in, pipe_out = self._pipes()
        pipe_in.write("go\n")
        pipe_in.flush()
        return float(pipe_out.readline())

    def close(self) -> None:
        """Closes the pipe, and waits for the process to exit."""
        self._pipes()[0].close()
        self.process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout


def run_worker(case: str) -> None:
    """Measures a case for every line of the standard input."""
    import torch

    import upsnet

    assert str(upsnet.__file__).startswith(os.environ["UPSNET_TREE"]), upsnet.__file__
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = {"head": _head, "data": _data, "read": _read, "json": _json, "predict": _predict}.get(
        case, lambda: _train(case)
    )()
    for _ in sys.stdin:
        start = time.process_time()
        for _ in range(REPEATS[case]):
            run()
        print(time.process_time() - start, flush=True)


def _config(name: str, *overrides: str) -> Any:
    from upsnet.config import load_config

    return load_config(Path(os.environ["UPSNET_TREE"]) / "configs" / f"{name}.yaml", overrides)


def open_training_data(config: Any) -> Any:
    """The training data, opened by this version or an older one."""
    from upsnet.data import loader

    if hasattr(loader, "open_train_dataset"):  # before `data.classes`
        return loader.open_train_dataset(config.data)
    return loader.open_dataset(config.data, "train")


def _train(case: str) -> Callable[[], None]:
    import torch

    from upsnet.data.loader import collate
    from upsnet.data.shapes import Shapes
    from upsnet.engine.optim import add_gradients
    from upsnet.models.build import build_model
    from upsnet.ops.backend import training_format

    if case == "train_r50":
        config, size, count = _config("coco_r50", *OVERRIDES), (320, 480), 2
        categories, data = _coco_categories(config), Shapes(count, size)
    else:
        config, count = _config("shapes_r18"), 8
        dataset = open_training_data(config)
        categories, data = dataset.categories, dataset
    batch = collate([(data[index], index) for index in range(count)], data.categories.num_stuff, 32)
    model = build_model(config, categories, pretrained=False).train()
    model.to(memory_format=training_format(torch.device("cpu")))
    for module in model.backbone.modules():  # with random weights, features grow from block to block
        if hasattr(module, "conv2"):
            last = getattr(module, "conv3", module.conv2)
            torch.nn.init.zeros_(last.weight)
    weights = {name: 1e-3 * weight for name, weight in model.loss_weights.items()}

    def run() -> None:
        add_gradients(model, weights, "fp32", 1.0, batch)
        model.zero_grad()

    return run


def _coco_categories(config: Any) -> Any:
    from upsnet.data.loader import configured_categories

    return configured_categories(config.data.model_copy(update={"categories": "coco"}))


def _head() -> Callable[[], None]:
    import torch
    from torch.nn import functional as F

    from upsnet.models.build import build_model
    from upsnet.structures import Detections

    config = _config("coco_r50", *OVERRIDES)
    head = build_model(config, _coco_categories(config), pretrained=False).panoptic_head
    generator, (height, width), count = torch.Generator().manual_seed(0), (800, 1333), 50
    coarse = torch.randn(1, 133, 13, 21, generator=generator) * 4
    logits = F.interpolate(coarse, (200, 336), mode="bilinear") + torch.randn(1, 133, 200, 336, generator=generator) / 4
    corners = torch.rand(1, count, 2, generator=generator) * torch.tensor([width - 200.0, height - 200.0])
    boxes = torch.cat([corners, corners + 20 + 180 * torch.rand(1, count, 2, generator=generator)], -1)
    labels = torch.randint(1, 81, (1, count), generator=generator)
    masks = F.interpolate(torch.randn(1, count, 4, 4, generator=generator) * 4 + 1, (28, 28), mode="bilinear")
    found = Detections(
        boxes, torch.linspace(1, 0.6, count)[None], labels, torch.ones(1, count, dtype=torch.bool), masks
    )

    def run() -> None:
        with torch.no_grad():
            head(logits, found, [(height, width)], [(height, width)])

    return run


def _data() -> Callable[[], None]:
    from upsnet.data.loader import train_loader

    source = "{format: coco, image_dir: images, annotation_file: panoptic.json}"
    config = _config("coco_r50", *OVERRIDES, f"data.train={source}", "data.num_workers=0", "data.categories=null")
    dataset = open_training_data(config)

    def run() -> None:
        for _ in train_loader(dataset, config.data, batch_size=2, seed=0, start=0, stop=8):
            pass

    return run


def _open(name: str) -> Any:
    source = f"{{format: coco, image_dir: images, annotation_file: {name}.json}}"
    config = _config("coco_r50", *OVERRIDES, f"data.train={source}", "data.num_workers=0", "data.categories=null")
    return open_training_data(config)


def _read() -> Callable[[], None]:
    dataset = _open("panoptic")

    def run() -> None:
        for index in range(len(dataset)):
            _ = dataset[index]

    return run


def _json() -> Callable[[], None]:
    def run() -> None:
        _open("many")

    return run


def _predict() -> Callable[[], None]:
    import numpy as np
    import torch

    from upsnet import PanopticPredictor
    from upsnet.data.loader import InferenceInput
    from upsnet.models.build import build_model
    from upsnet.models.inference_form import fold_norms

    config = _config("coco_r50", *OVERRIDES, "data.test_short_side=320")
    categories = _coco_categories(config)
    model = fold_norms(build_model(config, categories, pretrained=False).eval())
    model.to(memory_format=torch.channels_last)
    predictor = PanopticPredictor(model, categories, InferenceInput(config.data))
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)

    def run() -> None:
        predictor(image)

    return run


def write_pairs(folder: Path, count: int = 16, segments: int = 15) -> None:
    """Writes COCO-like pairs of 480x640: smooth noise as JPEG, ellipses as panoptic PNG, and the JSON."""
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    (folder / "panoptic").mkdir()
    y, x = np.mgrid[:480, :640]
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng(index)
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / "images" / f"{index}.jpg", quality=90)
        ids = np.ones((480, 640), dtype=np.int64)
        for number in range(2, segments + 1):
            cy, cx, ry, rx = rng.uniform((0, 0, 20, 20), (480, 640, 90, 90))
            ids[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = number
        png = np.stack([ids & 255, ids >> 8, ids >> 16], -1).astype(np.uint8)
        Image.fromarray(png).save(folder / "panoptic" / f"{index}.png")
        rows = [
            {"id": i, "category_id": 2 if i == 1 else 1, "iscrowd": 0, "area": int((ids == i).sum()), "bbox": [0] * 4}
            for i in np.unique(ids).tolist()
        ]
        images.append({"id": index, "file_name": f"{index}.jpg", "height": 480, "width": 640})
        annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": rows})
    categories = [{"id": 1, "name": "thing", "isthing": 1}, {"id": 2, "name": "stuff", "isthing": 0}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(document))
    many = [(f"{number:012d}", number % count) for number in range(4000)]
    document["images"] = [{**images[index], "id": n, "file_name": f"{n}.jpg"} for n, index in many]
    document["annotations"] = [{**annotations[index], "image_id": n, "file_name": f"{n}.png"} for n, index in many]
    (folder / "many").mkdir()
    (folder / "many.json").write_text(json.dumps(document))


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{platform.machine()} CPU, {names[0] if names else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
