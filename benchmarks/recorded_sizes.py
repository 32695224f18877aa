"""How many training steps replay a CUDA graph where the sizes of images vary as in COCO; needs no GPU.

    python benchmarks/recorded_sizes.py [--json annotations/panoptic_train2017.json]

`train.cuda_graph` records the step of a batch's sizes when they come for the second time, and keeps at most
`models.recording.MAX_GRAPHS` graphs. Here the sizes of the batches are those of the sampler, the augmentation and the
padding of a config, and the recording is simulated. Sizes and counts of instances come from the JSON, or are drawn:
`COMMON` holds the most frequent sizes of COCO with approximate shares, the other images have sides of 300 to 640, and
the counts are geometric with a mean of 7. One row for each config and divisor, as a JSON line: `replayed`, the share of
the steps; `shapes`, how many different ones there were; `graphs`; `pixels_over_images`, the padded pixels over those of
the images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from upsnet.config import load_config
from upsnet.data.loader import build_augmentation
from upsnet.data.sampler import BatchSampler, image_seed
from upsnet.models.recording import MAX_GRAPHS, MIN_SLOTS
from upsnet.ops.sizes import MULTIPLES_OF_32

COMMON = {
    (480, 640): 0.24, (427, 640): 0.16, (640, 480): 0.08, (426, 640): 0.08, (640, 427): 0.05, (375, 500): 0.05,
    (428, 640): 0.03, (425, 640): 0.03, (640, 426): 0.02, (640, 640): 0.02, (612, 612): 0.02, (500, 375): 0.02,
    (360, 640): 0.02, (424, 640): 0.02, (333, 500): 0.02,
}  # fmt: skip
"""(H, W): share."""
IMAGES = 20_000


def draw_images(rng: np.random.Generator) -> tuple[list[tuple[int, int]], list[int]]:
    """Sizes and counts of instances of `IMAGES` images."""
    common, shares = list(COMMON), list(COMMON.values())
    chosen = rng.choice(len(common) + 1, IMAGES, p=[*shares, 1 - sum(shares)])
    others = [(int(rng.integers(300, 641)), 640) for _ in range(IMAGES)]
    others = [size if rng.random() < 0.75 else size[::-1] for size in others]
    sizes = [common[c] if c < len(common) else other for c, other in zip(chosen, others, strict=True)]
    return sizes, (rng.geometric(1 / 8, IMAGES) - 1).tolist()


def read_images(path: Path) -> tuple[list[tuple[int, int]], list[int]]:
    """Sizes and counts of segments of the images of a COCO panoptic JSON."""
    content = json.loads(path.read_text())
    counts = {row["image_id"]: len(row["segments_info"]) for row in content["annotations"]}
    return [(row["height"], row["width"]) for row in content["images"]], [counts[i["id"]] for i in content["images"]]


def simulate(
    name: str, divisor: int, images: tuple[list[tuple[int, int]], list[int]], batch: int, steps: int
) -> dict[str, Any]:
    """One row, for one process of `batch` images a step."""
    sizes, counts = images
    config = load_config(name, [f"data.size_divisor={divisor}"])
    augmentation = build_augmentation(config.data.augment)
    seen: Counter[tuple[int, ...]] = Counter()
    recorded: set[tuple[int, ...]] = set()
    replayed = padded = inside = 0
    for keys in BatchSampler(sizes, batch, config.seed, start=0, stop=steps):
        windows = []
        for key in keys:
            rng = np.random.default_rng(image_seed(config.seed, key.epoch, key.image, key.repeat))
            windows.append(augmentation.plan(sizes[key.image], rng).window)
        size = max(h for h, _ in windows), max(w for _, w in windows)
        height, width = MULTIPLES_OF_32.padded_size(size, config.data.size_divisor)
        most = max(1, *(counts[key.image] for key in keys))
        shape = (height, width, max(MIN_SLOTS, 1 << (most - 1).bit_length()))
        padded += batch * height * width
        inside += sum(h * w for h, w in windows)
        if shape not in recorded and seen[shape] and len(recorded) < MAX_GRAPHS:
            recorded.add(shape)
        replayed += shape in recorded
        seen[shape] += 1
    return {
        "config": name,
        "size_divisor": divisor,
        "batch": batch,
        "steps": steps,
        "replayed": round(replayed / steps, 3),
        "shapes": len(seen),
        "graphs": len(recorded),
        "pixels_over_images": round(padded / inside, 3),
    }


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="COCO panoptic JSON, for its sizes (default: drawn)")
    parser.add_argument("--configs", nargs="+", default=["coco_r50", "coco_r50_3x", "coco_r50_lsj"])
    parser.add_argument("--size-divisors", type=int, nargs="+", default=[32, 64, 128], help="data.size_divisor")
    parser.add_argument("--batch", type=int, default=2, help="images of a process")
    parser.add_argument("--steps", type=int, default=20_000)
    args = parser.parse_args()
    images = draw_images(np.random.default_rng(0)) if args.json is None else read_images(args.json)
    source = "drawn" if args.json is None else args.json.name
    for name in args.configs:
        for divisor in args.size_divisors:
            row = simulate(name, divisor, images, args.batch, args.steps)
            print(json.dumps({"date": time.strftime("%Y-%m-%d"), "images": source, **row}), flush=True)


if __name__ == "__main__":
    main()
