"""A tiny Panoptic-DeepLab that runs in milliseconds."""

from tests.conftest import TINY
from upsnet.config import parse_config

MODEL = {
    "architecture": "panoptic_deeplab",
    "backbone": {"name": "resnet18", "width": 16},
    "aspp": {"rates": [1, 2], "channels": 16},
    "semantic": {"low_level_channels": [8, 8], "channels": 16, "head_channels": 16},
    "instance": {"low_level_channels": [8, 4], "channels": 16, "head_channels": 8, "max_detections": 20},
    "panoptic": {"stuff_area_limit": 0},
    "target": {"sigma": 4},
}


def make_config(*overrides):
    train = {**TINY["train"], "optimizer": "adamw", "lr": 0.005, "weight_decay": 0}
    return parse_config({**TINY, "model": MODEL, "train": train}, overrides, source="deeplab")
