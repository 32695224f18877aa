"""Generates photographs with 15 segments each in COCO panoptic layout, for `data_loading.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from panoptic_pairs import CATEGORIES, STUFF, THINGS, smooth, truth_map
from PIL import Image

from upsnet.data.coco import CocoPanoptic
from upsnet.io.files import write_json
from upsnet.io.panoptic_png import id_to_rgb

SEGMENTS, REGIONS = 15, 5


def photograph(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: each segment of its own colour, under fields of five sizes and a little noise."""
    size = ids.shape
    image = rng.uniform(-60, 60, (ids.max() + 1, 3)).astype(np.float32)[ids]
    for cell, strength in ((size[0] // 3, 60), (size[0] // 12, 30), (24, 16), (6, 10), (2, 7)):
        image += strength * np.stack([smooth(rng, size, cell) for _ in range(3)], axis=-1)
    return (image + 120 + 3 * rng.standard_normal((*size, 1))).clip(0, 255).astype(np.uint8)


def write_data(folder: Path, size: tuple[int, int], kind: str, images: int, copies: int = 1) -> CocoPanoptic:
    """A data set in COCO panoptic layout; each image stands in it several times, under several names of its files."""
    rng = np.random.default_rng(0)
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for name in ("pictures", "truth"):
        (folder / name).mkdir()
    for number in range(images):
        ids = truth_map(rng, size, SEGMENTS)
        names = np.concatenate([[0], rng.choice(2**24 - 1, SEGMENTS, replace=False) + 1])
        classes = [*(THINGS + rng.permutation(STUFF)[:REGIONS]), *rng.integers(0, THINGS, SEGMENTS - REGIONS)]
        rows = [
            {"id": int(names[i]), "category_id": int(classes[i - 1]) + 1, "iscrowd": 0} for i in np.unique(ids) if i
        ]
        first = folder / "pictures" / f"{number}_0.{kind}", folder / "truth" / f"{number}_0.png"
        options = {"quality": 90, "subsampling": "4:2:0"} if kind == "jpg" else {}
        Image.fromarray(photograph(rng, ids)).save(first[0], **options)
        Image.fromarray(id_to_rgb(names[ids])).save(first[1])
        for copy in range(copies):
            name, index = f"{number}_{copy}", number * copies + copy
            if copy:
                for path in first:
                    path.with_name(name + path.suffix).hardlink_to(path)
            picture = {"id": index, "file_name": f"{name}.{kind}", "height": size[0], "width": size[1]}
            document["images"].append(picture)
            document["annotations"].append({"image_id": index, "file_name": f"{name}.png", "segments_info": rows})
    write_json(folder / "truth.json", document)
    return CocoPanoptic(folder / "pictures", folder / "truth.json")
