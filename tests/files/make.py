#!/usr/bin/env python
"""Writes files of the current format, as test data for later versions: run it before a change of the format.

python tests/files/make.py tests/files/format2
"""

import argparse
import json
import lzma
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.conftest import TINY
from upsnet import PanopticPredictor, export_graph
from upsnet.config import parse_config
from upsnet.data.shapes import Shapes
from upsnet.engine import train as training
from upsnet.models.build import build_model
from upsnet.models.checkpoint import load_checkpoint, save_checkpoint

STEPS, SAVED = 402, 400
MODELS = ("model.pt", "model.pt2", "model.onnx")
SIZE, IMAGE_SIZE = (64, 96), (50, 75)


def main() -> None:
    """Parses the command line and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder for the files")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--steps", type=int, default=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), args.folder, args.steps, args.overrides)


def write(work: Path, folder: Path, steps: int, overrides: list[str]) -> None:
    """Trains a small model in `work`, and fills `folder`."""
    saved = steps - 2
    config = parse_config(
        TINY,
        [
            f"train.iterations={steps}", f"train.checkpoint_every={saved}", f"train.evaluate_every={steps}",
            "train.log_every=50", "train.keep_checkpoints=2", "train.batch_size=8", "train.warmup_iterations=50",
            "data.train.num_images=200", *overrides,
        ],
        source="tests/files/make.py",
    )  # fmt: skip
    run = work / "run"
    training.build_model = build_with_zeros
    training.train(config, run)
    shrink(run / "model.pt", work / "model.pt")
    shrink(run / f"last-{saved:08d}.pt", work / "last.pt")
    for name in MODELS[1:]:
        export_graph(work / "model.pt", work / name, size=SIZE)
    image = Shapes(20, IMAGE_SIZE, 1)[18].image
    maps = [PanopticPredictor.from_checkpoint(work / name, "cpu")(image).segment_ids for name in MODELS]
    assert all((found == maps[0]).all() for found in maps)
    losses = losses_after(work / "last.pt", work / "resumed")
    np.savez_compressed(folder / "expected.npz", image=image, segment_ids=maps[0].astype(np.int16), losses=losses)
    for name in (*MODELS, "last.pt"):
        packed = lzma.compress((work / name).read_bytes(), preset=9 | lzma.PRESET_EXTREME)
        (folder / f"{name}.xz").write_bytes(packed)


def build_with_zeros(*args, **options):
    """The model with zeros in its two largest stages, which stay: they compress to nothing."""
    model = build_model(*args, **options)
    for stage in (model.backbone.layer3, model.backbone.layer4):
        for parameter in stage.parameters():
            if parameter.ndim > 1:
                torch.nn.init.zeros_(parameter)
                parameter.register_hook(torch.zeros_like)
    return model


def shrink(source: Path, target: Path) -> None:
    """Rounds all numbers of a checkpoint to 8 bits of mantissa."""
    found = load_checkpoint(source)
    state = found.training
    training_state = None if state is None else {**state, "optimizer": rounded(state["optimizer"])}
    save_checkpoint(target, replace(found, weights=rounded(found.weights), training=training_state))


def rounded(value):
    """The same structure with every float32 tensor rounded to bfloat16."""
    if isinstance(value, torch.Tensor):
        return value.bfloat16().float() if value.dtype == torch.float32 else value
    if isinstance(value, dict):
        return type(value)((key, rounded(item)) for key, item in value.items())
    return [rounded(item) for item in value] if isinstance(value, list) else value


def losses_after(last: Path, folder: Path) -> np.ndarray:
    """Losses [2, L] of the steps that follow a `last.pt`, in the order of their names."""
    folder.mkdir()
    shutil.copy(last, folder / "last.pt")
    config = load_checkpoint(last).config
    config = config.model_copy(update={"train": config.train.model_copy(update={"log_every": 1})})
    training.train(config, folder, resume=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([[row[name] for name in sorted(row) if name.startswith("loss_")] for row in rows if "lr" in row])


if __name__ == "__main__":
    main()
