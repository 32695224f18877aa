"""Compares exported files with their checkpoint on held-out images, pixel by pixel.

    python benchmarks/export_agreement.py --checkpoint runs/demo/model.pt

Exports the checkpoint to `.pt2` and `.onnx`, and predicts the first validation images of its config. For ONNX it also
runs `examples/onnx_infer.py`, which needs no torch. Prints one JSON line for each: the numbers of images, of pixels,
and of pixels whose segment differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from upsnet import PanopticPredictor, export_graph
from upsnet.data.loader import open_dataset
from upsnet.io.panoptic_png import read_panoptic_png
from upsnet.models.checkpoint import load_checkpoint

EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_infer.py"


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20)
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.checkpoint)
    dataset = open_dataset(checkpoint.config.data, "val", checkpoint.categories)
    images = [dataset[i].image for i in range(min(args.images, len(dataset)))]
    expected = [found.segment_ids for found in map(PanopticPredictor.from_checkpoint(args.checkpoint), images)]
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".pt2", ".onnx"):
            path = Path(folder) / f"model{suffix}"
            export_graph(args.checkpoint, path)
            found = [prediction.segment_ids for prediction in map(PanopticPredictor.from_checkpoint(path), images)]
            _print(args.checkpoint, suffix, expected, found)
        _print(args.checkpoint, EXAMPLE.name, expected, _of_example(path, images, Path(folder)))


def _of_example(model: Path, images: list[npt.NDArray[np.uint8]], folder: Path) -> list[npt.NDArray[np.int32]]:
    """The predictions of the example without torch."""
    found = []
    for image in images:
        Image.fromarray(image).save(folder / "image.png")
        words = ("--model", model, "--input", folder / "image.png", "--output", folder / "out")
        command = [sys.executable, str(EXAMPLE), *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found.append(read_panoptic_png(folder / "out" / "image.png"))
    return found


def _print(
    checkpoint: Path, name: str, expected: list[npt.NDArray[np.int32]], found: list[npt.NDArray[np.int32]]
) -> None:
    differing = sum(int((a != b).sum()) for a, b in zip(expected, found, strict=True))
    row = {
        "checkpoint": str(checkpoint),
        "file": name,
        "images": len(expected),
        "pixels": sum(ids.size for ids in expected),
        "differing": differing,
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
