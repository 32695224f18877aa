"""The original program's stored runs: its random weights, rebuilt by recipe, in our model through the importer."""

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

FOLDER = Path(os.environ.get("UPSNET_REFERENCE") or "/nonexistent") / "panoptic_deeplab"
OVERRIDES = {
    "R50_os32_cityscapes": [],
    "R50_os16_base": [
        "model.backbone.output_stride=16", "model.aspp.rates=[6, 12, 18]",
        "model.semantic.low_level_channels=[64, 32]", "model.instance.low_level_channels=[32, 16]",
        "model.instance.head_channels=128",
    ],
}  # fmt: skip
"""Configuration of the program -> changes to `cityscapes_deeplab_r50_official`."""


def files(prefix):
    return sorted(FOLDER.glob(f"{prefix}_*.npz"))


def config_name(path):
    return next(name for name in OVERRIDES if name in path.name)


@cache
def recipe():
    return json.loads((FOLDER / "weights_recipe.json").read_text())


@cache
def _recipe_state(name):
    """Every entry of a checkpoint of the program, filled by the recipe; each tensor's CRC is checked."""
    state = {}
    for entry in json.loads((FOLDER / f"state_dict_{name}.json").read_text()):
        key, shape = entry["name"], entry["shape"]
        rule = next(r for r in recipe()["rules"] if re.search(r["pattern"], key))
        if rule["kind"] == "zero":
            state[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        random = np.random.RandomState(zlib.crc32(key.encode("ascii")) & 0xFFFFFFFF)
        z = random.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)
        if rule["kind"] == "fan":
            value = z * np.float32(rule["a"] / np.sqrt(np.prod(shape[1:])))
        else:
            a, b = np.float32(rule["a"]), np.float32(rule["b"])
            value = a + b * (np.abs(z) if rule["kind"] == "absaff" else z)
        value = np.ascontiguousarray(value, dtype=np.float32)
        assert zlib.crc32(value.tobytes()) == recipe()[f"crc32_{name}"][key], key
        state[key] = torch.from_numpy(value)
    return state


def original_state(name, *, with_overrides=True):
    """A checkpoint of the program."""
    state = dict(_recipe_state(name))
    if with_overrides:
        for key, value in np.load(FOLDER / f"overrides_{name}.npz").items():
            assert state[key].shape == value.shape
            state[key] = torch.from_numpy(value)
    return state


def original_model(name, folder):
    """Our model with these weights, read from a file as a user has it; and the importer's report."""
    path = folder / f"{name}.pth"
    torch.save({"state_dict": original_state(name)}, path)
    config = load_config("cityscapes_deeplab_r50_official", OVERRIDES[name])
    categories = known_categories(config.data.categories)
    model = build_model(config, categories, pretrained=False)
    report = fill(model, read_weights(path), categories)
    path.unlink()
    return model.eval(), report


def statistics(x):
    """What the files store of a tensor: mean, deviation, sum of absolute values, extremes, and probes."""
    flat = x.detach().double().flatten().numpy()
    count = min(256, flat.size)
    probes = flat[np.linspace(0, flat.size - 1, count).astype(np.int64)]
    return np.array([flat.mean(), flat.std(), np.abs(flat).sum(), flat.min(), flat.max(), *probes])


def check_statistics(found, ref, name, tolerance):
    """Mean, extremes and probes of a tensor within an absolute tolerance."""
    if f"shape__{name}" in ref:
        assert list(found.shape) == ref[f"shape__{name}"].tolist()
    own, expected = statistics(found), ref[f"stats__{name}"].copy()
    for values in (own, expected):
        values[2] /= found.numel()
    np.testing.assert_allclose(own, expected, rtol=0, atol=tolerance, err_msg=name)
