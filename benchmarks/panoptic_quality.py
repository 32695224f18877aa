#!/usr/bin/env python
"""Evaluation of COCO-panoptic files: CPU seconds against cityscapesscripts and hotcoco, and against decoding alone.

    python benchmarks/panoptic_quality.py | tee -a benchmarks/results/panoptic_quality.jsonl

One JSON line per size. Pairs are generated: smooth stuff regions and 5 to 55 blobs, 24-bit random ids, 133 classes; the
prediction is the truth under a smooth deformation, with some segments of another class or gone; PNGs by Pillow's
default compression. Each figure is CPU time (user and system) of one thread in milliseconds per pair of images, the
best of some passes over all images in each of `--rounds` fresh processes; the peer and torchmetrics run once:

- `peer_ms`: `pq_compute_single_core` of cityscapesscripts on parsed annotations (PQ alone).
- `ours_ms`: `PairScorer` on parsed annotations, with what is kept for PQ, PQ-dagger, mIoU and confusion. `json_ms` is
  the parsing and checking of both JSON files, `final_ms` what comes once after the last image (all sums, 1,000
  bootstrap samples); both are divided by the number of pairs, too, and stand in neither ratio.
- `hotcoco_ms`: `hotcoco.panoptic.pq_compute` on the files, both JSON files parsed, one thread (skipped if it is not
  installed). `hotcoco_over_ours` compares it with the same work: `ours_ms` and `json_ms`.
- `decoding_ms`: both PNGs by our reader, to ids; `torchvision_ms`, `cv2_ms`, `pillow_ms`: by others, to RGB.
- `memory_ms`: maps that are already in memory, against `torchmetrics_ms` (skipped if it is not installed; other rules).
- `growth_mb`: peak resident memory of `evaluate_files` (both JSON files read, all scores, one process) over 2,000
  images less that over 200. The files of the 200 pairs serve ten times.

`peer_over_ours` above 1 means faster than the peer.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch
import torchvision
from panoptic_pairs import CATEGORIES, STUFF, THINGS, write_data
from PIL import Image

from upsnet.categories import CategorySet
from upsnet.io.panoptic_json import PanopticJson
from upsnet.io.panoptic_png import read_panoptic_png
from upsnet.metrics.image_pair import PairScorer
from upsnet.metrics.panoptic_quality import PanopticQuality, SegmentTable
from upsnet.metrics.score_files import FileScores, evaluate_files

SIZES = (((480, 640), 200), ((1024, 2048), 50))
TORCHMETRICS_IMAGES = 10
SLOW = ("peer", "torchmetrics")
"""Cases that are run once."""
OPTIONAL = ("hotcoco", "torchmetrics")
"""Cases that need the package of the same name."""
PASSES = 6


def open_pair(folder: Path) -> tuple[PanopticJson, PanopticJson]:
    """Truth and prediction."""
    truth = PanopticJson(folder / "gt.json")
    return truth, PanopticJson(folder / "pred.json", truth=truth)


def case_peer(folder: Path) -> Callable[[], Any]:
    """All images by cityscapesscripts."""
    from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import pq_compute_single_core

    truth, predicted = open_pair(folder)
    sides = [json.loads(side.path.read_text())["annotations"] for side in (truth, predicted)]
    pairs = list(zip(*sides, strict=True))
    rows = {row["id"]: row for row in CATEGORIES}

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
            pq_compute_single_core(0, pairs, str(truth.png_dir), str(predicted.png_dir), rows)

    return run


def case_hotcoco(folder: Path) -> Callable[[], Any]:
    """All images by hotcoco, from the files."""
    from hotcoco.panoptic import pq_compute

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            pq_compute(str(folder / "gt.json"), str(folder / "pred.json"))

    return run


def _add_all(scorer: PairScorer) -> FileScores:
    scores = FileScores(PanopticQuality(scorer.truth.categories), None)
    for image_id in scorer.truth.annotations:
        scores.add(scorer(image_id))
    assert not scores.problems
    return scores


def case_ours(folder: Path) -> Callable[[], Any]:
    """All images by us."""
    scorer = PairScorer(*open_pair(folder))
    return lambda: _add_all(scorer)


def case_final(folder: Path) -> Callable[[], Any]:
    """What comes after the last image."""
    return _add_all(PairScorer(*open_pair(folder))).metrics


def case_json(folder: Path) -> Callable[[], Any]:
    """Reading both JSON files."""
    return lambda: PairScorer(*open_pair(folder))


def _decoding(read: Callable[[Path], Any]) -> Callable[[Path], Callable[[], Any]]:
    def case(folder: Path) -> Callable[[], Any]:
        paths = sorted(folder.glob("*/*.png"))

        def run() -> None:
            for path in paths:
                read(path)

        return run

    return case


def case_memory(folder: Path) -> Callable[[], Any]:
    """Dense maps in memory by us."""
    maps = _maps(folder, TORCHMETRICS_IMAGES)
    categories = CategorySet.from_json(CATEGORIES, source="benchmark")

    def run() -> None:
        meter = PanopticQuality(categories)
        for number, ((truth, a), (predicted, b)) in enumerate(maps):
            meter.update(number, truth, a, predicted, b)

    return run


def _maps(folder: Path, images: int) -> list[Any]:
    pair = open_pair(folder)
    return [
        [(side.segment_map(i), SegmentTable.of(*side.segments(i))) for side in pair]
        for i in list(pair[0].annotations)[:images]
    ]


def case_torchmetrics(folder: Path) -> Callable[[], Any]:
    """The same maps by torchmetrics: [1, H, W, 2], class and instance."""
    from torchmetrics.detection import PanopticQuality as Peer

    pairs = []
    for sides in _maps(folder, TORCHMETRICS_IMAGES):
        tensors = []
        for ids, table in sides:
            kinds = np.concatenate([[THINGS + STUFF], table.classes])[ids]
            instances = np.where(kinds >= STUFF, ids, 0)
            tensors.append(torch.from_numpy(np.stack([kinds, instances], -1)[None]).int())
        pairs.append(tensors)
    things, stuffs = set(range(STUFF, STUFF + THINGS)), {*range(STUFF), THINGS + STUFF}

    def run() -> None:
        meter = Peer(things=things, stuffs=stuffs)
        for truth, predicted in pairs:
            meter.update(predicted, truth)
        meter.compute()

    return run


CASES: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "peer": case_peer,
    "ours": case_ours,
    "hotcoco": case_hotcoco,
    "final": case_final,
    "json": case_json,
    "decoding": _decoding(read_panoptic_png),
    "torchvision": _decoding(lambda p: torchvision.io.decode_image(str(p))),
    "cv2": _decoding(lambda p: cv2.imread(str(p), cv2.IMREAD_COLOR)),
    "pillow": _decoding(lambda p: np.asarray(Image.open(p))),
    "memory": case_memory,
    "torchmetrics": case_torchmetrics,
}


def cpu_seconds(name: str, folder: Path) -> float:
    """The best of a few passes."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    run = CASES[name](folder)
    times = []
    for _ in range(1 if name in SLOW else PASSES):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def peak_bytes(folder: Path, times: int) -> int:
    """Resident memory at the most, over the pairs of a folder taken several times."""
    paths = [folder / f"{side}_{times}.json" for side in ("gt", "pred")]
    evaluate_files(*paths, folder / "gt", folder / "pred", workers=1, progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_repeated(folder: Path, times: int) -> None:
    """JSON files that name each pair several times, as images of their own."""
    for side in ("gt", "pred"):
        document = json.loads((folder / f"{side}.json").read_text())
        for key, field in (("images", "id"), ("annotations", "image_id")):
            rows = document[key]
            document[key] = [{**row, field: row[field] + n * len(rows)} for n in range(times) for row in rows]
        (folder / f"{side}_{times}.json").write_text(json.dumps(document))


def child(*arguments: object) -> float:
    """A figure by this script in a fresh process."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def growth(folder: Path) -> float:
    """`growth_mb` of the 200 pairs."""
    for times in (1, 10):
        write_repeated(folder, times)
    few, many = (child("memory growth", folder, times) for times in (1, 10))
    return round((many - few) / 1e6, 1)


def row_of(size: tuple[int, int], images: int, rounds: int) -> dict[str, Any]:
    """All figures of a size."""
    names = [name for name in CASES if name not in OPTIONAL or importlib.util.find_spec(name)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, size, images)
        best = dict.fromkeys(names, float("inf"))
        for number in range(rounds):  # rounds go around the cases, so that a busy minute of the machine hits all alike
            for case in names:
                if number == 0 or case not in SLOW:
                    pairs = min(TORCHMETRICS_IMAGES, images) if case in ("memory", "torchmetrics") else images
                    best[case] = min(best[case], child(case, folder) * 1000 / pairs)
        png_kb = sum(path.stat().st_size for path in folder.glob("*/*.png")) / 2000 / images
        memory = {"growth_mb": growth(folder)} if images >= 200 else {}
    ratios = {
        "peer_over_ours": best["peer"] / best["ours"],
        "hotcoco_over_ours": best["hotcoco"] / (best["ours"] + best["json"]) if "hotcoco" in best else None,
        "ours_over_decoding": best["ours"] / best["decoding"],
        "torchvision_over_decoding": best["torchvision"] / best["decoding"],
        "torchmetrics_over_memory": best["torchmetrics"] / best["memory"] if "torchmetrics" in best else None,
    }
    rounded = {key: None if value is None else round(value, 2) for key, value in ratios.items()}
    figures = {f"{case}_ms": round(value, 3) for case, value in best.items()}
    return {"size": list(size), "images": images, **rounded, **figures, "png_kb": round(png_kb, 1), **memory}


def main() -> None:
    """Measures every size, or, in a child process, one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="processes per case, of which the best counts")
    parser.add_argument("--images", type=int, nargs=2, default=[images for _, images in SIZES], help="pairs per size")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, folder, *times = args.child
        figure = peak_bytes(Path(folder), int(times[0])) if times else cpu_seconds(name, Path(folder))
        print(figure, file=sys.__stdout__)
        return
    packages = ("numpy", "numba", "deflate", "torch", "torchvision", "opencv-python-headless", "pillow")
    versions = {name: version(name) for name in (*packages, *filter(importlib.util.find_spec, OPTIONAL))}
    common = {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()} CPU", "cores": os.cpu_count()}
    for (size, _), images in zip(SIZES, args.images, strict=True):
        print(json.dumps({**row_of(size, images, args.rounds), **common, "versions": versions}), flush=True)


if __name__ == "__main__":
    main()
