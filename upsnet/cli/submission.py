r"""Packs predictions of a test set for its benchmark server.

examples:
  upsnet evaluate --submission coco --images image_info_test-dev2017.json --predictions out \
      --algorithm upsnet50 --output submission
  upsnet evaluate --submission cityscapes --predictions out --output submission

--predictions is the folder that `upsnet predict` wrote for the test images. coco: writes
panoptic_test-dev2017_ALGORITHM_results.zip, a JSON and a folder of PNGs. cityscapes: writes
cityscapes_panoptic_test.zip (JSON and PNGs) and cityscapes_semantic_test.zip (label ids of every pixel).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Runs `upsnet evaluate --submission`; returns the exit code."""
    parser = argparse.ArgumentParser(
        "upsnet evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--submission", choices=["coco", "cityscapes"], required=True, help="the benchmark")
    parser.add_argument("--predictions", type=Path, required=True, help="folder that `upsnet predict` wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the zip files")
    parser.add_argument("--images", type=Path, help="coco: image_info_test-dev2017.json, the list of the images")
    parser.add_argument("--algorithm", help="coco: name of the algorithm in the file names: letters, digits, - and _")
    parser.add_argument(
        "--root", type=Path, help="cityscapes: folder of leftImg8bit (default: cityscapes in $UPSNET_DATASETS)"
    )
    args = parser.parse_args(argv)
    is_coco = args.submission == "coco"
    if is_coco and (args.images is None or args.algorithm is None or args.root is not None):
        parser.error("--submission coco needs --images and --algorithm, and takes no --root")
    if not is_coco and (args.images is not None or args.algorithm is not None):
        parser.error("--submission cityscapes takes no --images and no --algorithm")
    from upsnet.convert.submission import pack_cityscapes, pack_coco
    from upsnet.data.loader import data_root

    if is_coco:
        packed = pack_coco(args.images, args.predictions, args.algorithm, args.output)
    else:
        packed = pack_cityscapes(args.root or data_root() / "cityscapes", args.predictions, args.output, _warn)
    print(f"{' and '.join(map(str, packed.archives))}: {packed.images} images")
    return 0


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
