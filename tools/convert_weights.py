#!/usr/bin/env python
"""Turns weights from elsewhere into a checkpoint of this project, and says what fitted.

python tools/convert_weights.py --weights upsnet_resnet50_coco_16gpu.pth \
    --config configs/upsnet_official_r50_coco.yaml --output model.pt

Reads the official UPSNet's checkpoints, torchvision's Mask R-CNN and ResNet, detectron2's R-CNNs (.pkl, .pth), and
this project's. The config says the architecture and the classes; rows of classes are matched by name. Where a file
fills the model only in part, the rest is random: train it (`tools/train.py --init` reads the same files).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from upsnet.config import load_config
from upsnet.data.loader import configured_categories, open_train_dataset
from upsnet.engine.checkpoint import Checkpoint, save_checkpoint
from upsnet.errors import run_tool
from upsnet.models.build import build_model
from upsnet.models.weights import fill, read_weights


def main() -> None:
    """Parses the command line and converts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="file to read")
    parser.add_argument("--config", required=True, help="YAML of the architecture that the weights were made for")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    weights = read_weights(args.weights)
    categories = configured_categories(config.data) or open_train_dataset(config.data).categories
    torch.manual_seed(config.seed)
    model = build_model(config, categories, pretrained=False)
    report = fill(model, weights, categories)
    save_checkpoint(args.output, Checkpoint(config, categories, model.state_dict()))
    for line in report.lines():
        print(line)
    print(f"{args.output}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    run_tool(main)
