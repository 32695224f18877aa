"""The official program's stored runs: its random weights, rebuilt by recipe, in our model through the importer."""

import json
import os
import re
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch

from upsnet.categories import known_categories
from upsnet.config import load_config
from upsnet.models.build import build_model
from upsnet.models.pretrained.weights import fill, read_weights

FOLDER = Path(os.environ.get("UPSNET_REFERENCE") or "/nonexistent") / "upsnet_official"
CONFIGS = {
    "upsnet_resnet50_coco_16gpu": "r50_coco",
    "upsnet_resnet50_cityscapes_16gpu": "r50_cityscapes",
    "upsnet_resnet101_dcn_coco_3x_16gpu": "r101_dcn_coco",
}


def files(prefix):
    return sorted(FOLDER.glob(f"{prefix}_*.npz"))


def config_name(path):
    return next(name for name in CONFIGS if name in path.name)


@cache
def recipe():
    return json.loads((FOLDER / "weights_recipe.json").read_text())


def official_state(name):
    """Every entry of an official checkpoint, filled by the recipe; each tensor's CRC is checked."""
    state = {}
    for entry in json.loads((FOLDER / f"state_dict_{name}.json").read_text()):
        key, shape = entry["name"], entry["shape"]
        rule = next(r for r in recipe()["rules"] if re.search(r["pattern"], key))
        if rule["kind"] == "zero":
            state[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        a, b = np.float32(rule["a"]), np.float32(rule["b"])
        random = np.random.RandomState(zlib.crc32(key.encode("ascii")) & 0xFFFFFFFF)
        z = random.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)
        if rule["kind"] == "fan":
            fan_in = shape[0] if "mask_deconv1" in key else np.prod(shape[1:])
            value = z * np.float32(rule["a"] / np.sqrt(fan_in))
        else:
            value = a + b * (np.abs(z) if rule["kind"] == "absaff" else z)
        value = np.ascontiguousarray(value, dtype=np.float32)
        assert zlib.crc32(value.tobytes()) == recipe()[f"crc32_{name}"][key], key
        state[key] = torch.from_numpy(value)
    overrides = FOLDER / f"overrides_{name}.npz"
    if not overrides.is_file():  # Those configurations whose runs are not stored have none.
        assert not [f for f in (*files("ref"), *files("train_ref")) if name in f.name]
        return state
    for key, value in np.load(overrides).items():
        key = key.removeprefix("override__")
        assert state[key].shape == value.shape
        state[key] = torch.from_numpy(value)
    return state


def official_model(name, folder):
    """Our model with these weights, read from a file as a user has it; its config; the importer's report."""
    path = folder / f"{name}.pth"
    torch.save({f"module.{k}": v for k, v in official_state(name).items()}, path)
    config = load_config(f"upsnet_official_{CONFIGS[name]}")
    categories = known_categories(config.data.categories)
    model = build_model(config, categories, pretrained=False)
    report = fill(model, read_weights(path), categories)
    path.unlink()
    return model.eval(), config, report


def exclusive(boxes):
    """Boxes [n, 4 or 5] (a batch column first) with the end in the last pixel -> [1, n, 4] with the end after it."""
    boxes = torch.as_tensor(boxes)[..., -4:]
    return torch.cat([boxes[..., :2], boxes[..., 2:] + 1], -1)[None].float()
