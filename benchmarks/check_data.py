#!/usr/bin/env python
"""Examining a data set: CPU seconds of `upsnet doctor`, all processes, against decoding the files with Pillow.

    python benchmarks/check_data.py | tee -a benchmarks/results/check_data.jsonl

One JSON line. Pairs are generated: windows of `--bases` larger scenes, each with its own place, noise and 24-bit ids;
no two files are the same. JPEG of quality 90, PNGs by Pillow's fastest compression, 5 stuff regions and some blobs, 133
classes.

- `doctor_s`: the whole command in a fresh interpreter with `configs/coco_r50.yaml`'s anchors and sizes (imports, JSON,
  files, ids, pieces, anchors, duplicates, the screen), user and system time of its processes.
- `pillow_s`: every picture and every PNG decoded by Pillow once, in this process.
- `memory_mb`: peak resident memory of the largest process of the command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from panoptic_pairs import CATEGORIES, REGIONS, STUFF, THINGS, smooth, truth_map
from PIL import Image

from upsnet.io.panoptic_png import id_to_rgb
from upsnet.ops.id_maps import segment_geometry

ROOT = Path(__file__).parents[1]


def scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture uint8 [H, W, 3], ids int32 [H, W] and classes of a scene."""
    count = int(rng.integers(14, 22))
    ids = truth_map(rng, size, count)
    classes = rng.integers(0, THINGS, count)
    classes[:REGIONS] = THINGS + rng.permutation(STUFF)[:REGIONS]
    colours = rng.uniform(40, 215, (count + 1, 3)).astype(np.float32)
    texture = sum(smooth(rng, size, cell) * strength for cell, strength in ((60, 20), (9, 14), (3, 10)))
    return np.clip(colours[ids] + texture[..., None], 0, 255).astype(np.uint8), ids, classes


def write_pairs(folder: Path, images: int, bases: int, size: tuple[int, int]) -> None:
    """`images/*.jpg`, `truth.json` and `truth/*.png`."""
    rng = np.random.default_rng(0)
    large = size[0] * 4 // 3, size[1] * 4 // 3
    document: dict[str, list] = {"images": [], "annotations": [], "categories": CATEGORIES}
    (folder / "images").mkdir()
    (folder / "truth").mkdir()
    for number in range(images):
        if number % (images // bases) == 0:
            picture, ids, classes = scene(rng, large)
        y, x = (int(rng.integers(0, b - s)) for b, s in zip(large, size, strict=True))
        window = slice(y, y + size[0]), slice(x, x + size[1])
        cut = np.ascontiguousarray(ids[window])
        noise = rng.integers(-12, 13, (*size, 1), dtype=np.int16)
        pixels = np.clip(picture[window] + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"images/{number:06d}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        names = np.concatenate([[0], rng.choice(2**24 - 1, len(classes), replace=False) + 1])
        Image.fromarray(id_to_rgb(names[cut])).save(folder / f"truth/{number:06d}.png", compress_level=1)
        areas, boxes = segment_geometry(cut, len(classes))
        rows = [
            {"id": int(names[i + 1]), "category_id": int(classes[i]) + 1, "iscrowd": 0, "area": int(areas[i]),
             "bbox": [int(boxes[i, 0]), int(boxes[i, 1]), *(boxes[i, 2:] - boxes[i, :2]).tolist()]}
            for i in np.flatnonzero(areas)
        ]  # fmt: skip
        image = {"id": number, "file_name": f"{number:06d}.jpg", "height": size[0], "width": size[1]}
        document["images"].append(image)
        annotation = {"image_id": number, "file_name": f"{number:06d}.png", "segments_info": rows}
        document["annotations"].append(annotation)
    (folder / "truth.json").write_text(json.dumps(document))


def decode(folder: Path) -> float:
    """CPU seconds of Pillow over all files."""
    since = time.process_time()
    for path in sorted([*folder.glob("images/*.jpg"), *folder.glob("truth/*.png")]):
        with Image.open(path) as image:
            image.load()
    return time.process_time() - since


def examine(folder: Path) -> tuple[float, float, dict]:
    """CPU seconds and peak memory in MB of the command, and what it wrote."""
    source = f"{{format: coco, image_dir: {folder / 'images'}, annotation_file: {folder / 'truth.json'}}}"
    command = [
        sys.executable, ROOT / "tools/check_data.py", "--config", ROOT / "configs/coco_r50.yaml", "--split", "train",
        "--json", folder / "report.json", f"data.train={source}",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode != 0:
        raise SystemExit(result.stdout + result.stderr)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds, after.ru_maxrss / 1024, json.loads((folder / "report.json").read_text())


def main() -> None:
    """Generates, measures, prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--bases", type=int, default=100)
    args = parser.parse_args()
    size = (480, 640)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder, args.images, args.bases, size)
        megabytes = sum(path.stat().st_size for path in folder.rglob("*.*")) / 2**20
        doctor, memory, report = examine(folder)
        pillow = decode(folder)
        split = report["splits"]["train"]
    print(
        json.dumps(
            {
                "images": args.images, "size": size, "segments_per_image": round(split["segments"] / args.images, 1),
                "doctor_over_pillow": round(doctor / pillow, 2), "doctor_s": round(doctor, 1),
                "pillow_s": round(pillow, 1), "memory_mb": round(memory), "data_mb": round(megabytes),
                "findings": {row["check"]: row["count"] for row in report["findings"]},
                "date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()} CPU", "cores": os.cpu_count(),
                "versions": {n: version(n) for n in ("numpy", "numba", "deflate", "torch", "pillow")},
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
