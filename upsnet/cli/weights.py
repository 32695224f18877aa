"""Converts weights of other programs into a checkpoint, and reports what was used.

example:
  upsnet weights --weights upsnet_resnet50_coco_16gpu.pth --config upsnet_official_r50_coco --output model.pt

Reads the checkpoints of the official UPSNet and of the original Panoptic-DeepLab, torchvision's Mask R-CNN and ResNet,
detectron2's R-CNNs and Panoptic-DeepLab (.pkl, .pth), and checkpoints of this project. The config gives the
architecture and the classes; rows of classes are matched by name. Parameters that the file does not contain keep random
values: train the model before you use it (`upsnet train --init` reads the same files).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        "upsnet weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="file to read")
    parser.add_argument(
        "--config", required=True, help="config of the architecture that the weights were made for: a path, or a name"
    )
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    from upsnet.config import load_config
    from upsnet.engine.convert_weights import convert_weights

    for line in convert_weights(args.weights, load_config(args.config, args.overrides), args.output):
        print(line)
    return 0
