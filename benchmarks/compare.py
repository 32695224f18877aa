#!/usr/bin/env python
"""`upsnet compare` on ten thousand images: CPU seconds, peak memory, and sizes of the files.

    OMP_NUM_THREADS=1 python benchmarks/compare.py | tee -a benchmarks/results/compare.jsonl

Prints one JSON line. It compares two evaluations of `--images` generated images with 133 classes and about 11 true
segments each, in files of the current format. Everything runs in one process and one thread.

- `read_s`: reading both folders.
- `compare_s`: all differences with 1,000 resamples.
- `total_s`: all of `compare_evaluations`, which reads, compares, and writes `compare.json` and the page without images.
- `peak_mb`: the peak of the resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from panoptic_pairs import CATEGORIES

from upsnet.engine.compare import compare_evaluations
from upsnet.metrics.comparison import compare, read_sides

CAUSES = ("wrong class", "void", "missed")


def write_evaluation(folder: Path, images: int, quality: float, seed: int) -> None:
    """`per_image.json` of random segments; the ground truth does not depend on quality and seed."""
    truth, chance = np.random.default_rng(0), np.random.default_rng(seed)
    rows = []
    for number in range(images):
        count = 1 + int(truth.poisson(10))
        found: dict[str, list] = {"matched": [], "missed": [], "spurious": []}
        for _ in range(count):
            row = [int(truth.integers(1, 134)), int(truth.integers(10, 60_000))]
            if truth.normal() + chance.normal() < quality:
                found["matched"].append([*row, 0.5 + chance.random() / 2])
            else:
                found["missed"].append([*row, CAUSES[chance.integers(3)]])
        for _ in range(chance.poisson(2)):
            found["spurious"].append([int(chance.integers(1, 134)), int(chance.integers(10, 60_000)), "spurious"])
        facts = {"image_id": number, "file_name": f"{number:06d}.jpg", "height": 480, "width": 640}
        scores = {"pq": 50.0, "sq": 75.0, "rq": 66.0, "n": count, "tp": count, "fp": 0, "fn": 0}
        rows.append(json.dumps({**facts, **scores, **found}))
    folder.mkdir()
    document = f'{{"format": 2, "categories": {json.dumps(CATEGORIES)}, "images": [{",".join(rows)}]}}'
    (folder / "per_image.json").write_text(document)


def main() -> None:
    """Measures, and prints a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / side for side in "ab"]
        for seed, folder in enumerate(folders, 1):
            write_evaluation(folder, args.images, 0.3 + 0.02 * seed, seed)
        size = sum((folder / "per_image.json").stat().st_size for folder in folders)
        start = time.process_time()
        sides = read_sides([[folder] for folder in folders])
        read = time.process_time()
        compare(*sides)
        compared = time.process_time()
        compare_evaluations(*folders, output=Path(name) / "out")
        done = time.process_time()
        figures = {
            "images": args.images,
            "read_s": round(read - start, 2),
            "compare_s": round(compared - read, 2),
            "total_s": round(done - compared, 2),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "per_image_mb": round(size / 2e6, 1),
            "page_mb": round((Path(name) / "out" / "compare.html").stat().st_size / 1e6, 1),
            "compare_json_mb": round((Path(name) / "out" / "compare.json").stat().st_size / 1e6, 1),
        }
    machine = {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()} CPU", "cores": os.cpu_count()}
    print(json.dumps({**figures, **machine, "numpy": version("numpy")}), flush=True)


if __name__ == "__main__":
    main()
