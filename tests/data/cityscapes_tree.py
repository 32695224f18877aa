"""A small Cityscapes in the official layout: several cities, and every kind of region that its files hold."""

from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {"train": {"aachen": 2, "bochum": 1}, "val": {"frankfurt": 2, "lindau": 1}, "test": {"berlin": 1, "mainz": 1}}
SIZE = (64, 128)


def instance_ids(rng, size=SIZE):
    """uint16 [H, W]: streets with instances, groups, ignored classes, the ego vehicle and the border of the picture."""
    height, width = size
    ids = np.empty(size, dtype=np.uint16)
    ids[: height // 3] = rng.choice([23, 11, 21])
    ids[height // 3 : height // 2] = rng.choice([11, 12, 13, 16, 18])
    ids[height // 2 :] = rng.choice([7, 8, 22])
    ids[height // 2 :, : width // 8] = rng.choice([8, 9, 10])
    for number, label in enumerate(rng.permutation([24, 24, 25, 26, 26, 27, 28, 29, 30, 31, 32, 33, 17, 19, 20])):
        top, left = (int(rng.integers(0, side - 12)) for side in size)
        bottom, right = top + int(rng.integers(6, height // 3)), left + int(rng.integers(6, width // 4))
        has_number = label >= 24 and rng.random() < 0.8
        ids[top:bottom, left:right] = 1000 * label + number if has_number else label
    ids[:2], ids[-3:, 8:-8], ids[:, :2] = 3, 1, 2
    ids[5, 5], ids[6, 6] = 4, 0
    return ids


def write_tree(root, splits=SPLITS, size=SIZE):
    """Writes pictures and instanceIds; those of `test` are void, as in the archive."""
    rng = np.random.default_rng(0)
    for split, cities in splits.items():
        for city, count in cities.items():
            for number in range(count):
                ids = instance_ids(rng, size)
                picture = np.stack([ids * 7 % 256, ids * 31 % 256, ids * 101 % 256], axis=-1).astype(np.uint8)
                name = f"{city}_{number:06d}_{19 + number:06d}"
                save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", picture)
                truth = np.minimum(ids, 3) if split == "test" else ids
                save(root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", truth)
    return root


def save(path: Path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
