"""Generates truths and predictions in COCO panoptic layout for `panoptic_quality.py`."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from upsnet.io.panoptic_png import id_to_rgb

THINGS, STUFF = 80, 53
CATEGORIES = [
    {"id": i + 1, "name": f"class{i}", "isthing": int(i < THINGS), "color": [i, i, i]} for i in range(THINGS + STUFF)
]
REGIONS = 5


def smooth(rng: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray:
    """A random field float32 [H, W] that changes over `cell` pixels."""
    grid = rng.standard_normal((size[0] // cell + 2, size[1] // cell + 2)).astype(np.float32)
    return cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC)


def truth_map(rng: np.random.Generator, size: tuple[int, int], segments: int) -> np.ndarray:
    """int32 [H, W]: 0 void, then stuff regions, then blobs."""
    fields = np.stack([smooth(rng, size, size[0] // 6) + 0.05 * smooth(rng, size, 6) for _ in range(REGIONS + 1)])
    ids = fields.argmax(0).astype(np.int32)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for number in range(REGIONS + 1, segments + 1):
        radius = rng.uniform(0.01, 0.18) * size[0] * (1 + 0.25 * np.cumsum(rng.standard_normal(40)) / 6)
        x = rng.uniform(0, size[1]) + radius * np.cos(angles) * rng.uniform(0.5, 1.5)
        y = rng.uniform(0, size[0]) + radius * np.sin(angles)
        cv2.fillPoly(ids, [np.stack([x, y], 1).round().astype(np.int32)], number)
    return ids


def deformed(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """The map under a displacement of a few pixels."""
    y, x = np.indices(ids.shape).astype(np.float32)
    x, y = (axis + 4 * smooth(rng, ids.shape, 50) for axis in (x, y))
    return cv2.remap(ids.astype(np.float32), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE).astype(np.int32)


def write_data(folder: Path, size: tuple[int, int], images: int) -> None:
    """`gt.json`, `pred.json` and their PNGs."""
    rng = np.random.default_rng(0)
    documents = {name: {"images": [], "annotations": [], "categories": CATEGORIES} for name in ("gt", "pred")}
    for number in range(images):
        count = int(rng.integers(10, 61))
        truth = truth_map(rng, size, count)
        classes = rng.integers(0, THINGS, count)
        classes[:REGIONS] = THINGS + rng.permutation(STUFF)[:REGIONS]
        changed = np.where(rng.random(count) < 0.1, rng.integers(0, THINGS, count), classes)
        predicted = deformed(rng, truth)
        predicted[np.isin(predicted, np.flatnonzero(rng.random(count + 1) < 0.05))] = 0
        for name, ids, kinds in (("gt", truth, classes), ("pred", predicted, changed)):
            png = f"{number:06d}.png"
            names = np.concatenate([[0], rng.choice(2**24 - 1, count, replace=False) + 1])
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(id_to_rgb(names[ids])).save(folder / name / png)
            areas = np.bincount(ids.ravel(), minlength=count + 1)
            rows = [
                {"id": int(names[i]), "category_id": int(kinds[i - 1]) + 1, "area": int(areas[i]), "iscrowd": 0,
                 "bbox": [0, 0, size[1], size[0]]}
                for i in range(1, count + 1) if areas[i]
            ]  # fmt: skip
            documents[name]["annotations"].append({"image_id": number, "file_name": png, "segments_info": rows})
            image = {"id": number, "file_name": png, "height": size[0], "width": size[1]}
            documents[name]["images"].append(image)
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
