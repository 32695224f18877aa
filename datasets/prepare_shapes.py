#!/usr/bin/env python
"""Writes the generated data set `shapes` to the disk in COCO panoptic layout.

python datasets/prepare_shapes.py --output datasets/shapes --split train --num-images 1500
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from upsnet.data.predictions import write_samples
from upsnet.data.shapes import Shapes
from upsnet.errors import run_tool


def main() -> None:
    """Parses the command line and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", default="train", help="name of the split")
    parser.add_argument("--num-images", type=int, default=1500)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("H", "W"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = Shapes(args.num_images, (args.size[0], args.size[1]), args.seed)
    samples = (data[i] for i in tqdm(range(len(data)), desc="shapes"))
    write_samples(samples, data.categories, args.output, args.split)


if __name__ == "__main__":
    run_tool(main)
