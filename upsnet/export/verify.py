"""An exported file beside the model it was made of."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from upsnet.data.loader import open_dataset
from upsnet.data.shapes import Shapes
from upsnet.export.exported_model import load_graph
from upsnet.models.base import PanopticModel
from upsnet.models.checkpoint import Checkpoint
from upsnet.structures import PanopticOutput

REAL_PICTURES = 2
"""Taken from the validation set, where it can be read."""


@dataclass(frozen=True)
class Agreement:
    """How a file and its model agree on some pictures.

    Attributes:
        pixels: compared; stuff, things, void: pixels of the model's stuff, things and void that differ.
        segments: of the model; instances: of them things.
        eager_ms, exported_ms: mean time per picture.
        drift: share of pixels that differ from the model in 32 bits, for a file of 16.
    """

    pixels: int
    stuff: int
    things: int
    void: int
    segments: int
    instances: int
    eager_ms: float
    exported_ms: float
    drift: float = 0.0

    @property
    def disagreement(self) -> float:
        """Share of pixels that differ."""
        return (self.stuff + self.things + self.void) / max(1, self.pixels)


def compare(model: PanopticModel, checkpoint: Checkpoint, path: Path, device: torch.device) -> Agreement:
    """Runs a model and its exported file on pictures of the validation set, on generated scenes, and on noise.

    Args:
        model: in the precision of the file; on `device`.
        checkpoint: what it was built from.
        path: the file.
        device: for both.
    """
    exported, _, make_input = load_graph(path, device, trust=True)
    totals = {"pixels": 0, "stuff": 0, "things": 0, "void": 0, "segments": 0, "instances": 0}
    seconds, count = [0.0, 0.0], -1
    for picture in _pictures(checkpoint):
        # A full batch of pictures that differ: the same, shifted around.
        shifted = [np.roll(picture, 11 * n, axis=1) for n in range(exported.batch_size)]
        batch = make_input(shifted).to(device)
        outputs = []
        for number, predict in enumerate((model.predict, exported.predict)):
            start = time.perf_counter()
            outputs.append(predict(batch))
            outputs[-1].segment_ids[0].cpu()  # waits for the device
            seconds[number] += time.perf_counter() - start if count >= 0 else 0
        count += 1
        if count:  # The first picture comes twice: to warm up, and to count.
            for row in range(len(batch)):
                found = _differences(outputs[0], outputs[1], row, checkpoint.categories.num_stuff)
                for name, value in found.items():
                    totals[name] += value
    times = [1000 * s / count / exported.batch_size for s in seconds]
    return Agreement(**totals, eager_ms=times[0], exported_ms=times[1])


def _pictures(checkpoint: Checkpoint) -> Iterable[npt.NDArray[np.uint8]]:
    sizes = ((128, 128), (128, 128), (150, 210), (240, 180), (97, 301))
    scenes = [Shapes(2, size, seed=5)[1].image for size in sizes]
    noise = np.random.default_rng(0).integers(0, 256, (140, 190, 3), dtype=np.uint8)
    return chain(scenes, [noise], _real_pictures(checkpoint))


def _real_pictures(checkpoint: Checkpoint) -> Iterable[npt.NDArray[np.uint8]]:
    try:
        data = open_dataset(checkpoint.config.data, "val", checkpoint.categories)
        for index in range(min(REAL_PICTURES, len(data))):
            yield data[index].image
    except (OSError, ValueError):  # the data need not be where the model is exported
        return


def _differences(ours: PanopticOutput, theirs: PanopticOutput, row: int, num_stuff: int) -> dict[str, int]:
    ids, other = ours.segment_ids[row].cpu(), theirs.segment_ids[row].cpu()
    void = torch.tensor([-1])
    classes, others = (torch.cat([void, o.segment_classes[row].cpu()]) for o in (ours, theirs))
    differs = (ids != other) | (classes[ids.long()] != others[other.long()])
    present = ids.unique()
    return {
        "pixels": ids.numel(),
        "stuff": int((differs & (ids > 0) & (ids <= num_stuff)).sum()),
        "things": int((differs & (ids > num_stuff)).sum()),
        "void": int((differs & (ids == 0)).sum()),
        "segments": int((present > 0).sum()),
        "instances": int((present > num_stuff).sum()),
    }
