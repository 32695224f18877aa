"""A whole evaluation of a checkpoint: images per second, and where the time goes.

    python benchmarks/evaluation.py --checkpoint runs/demo/model.pt

One row for each batch size, as a JSON line. `share` is the part of the time in which the first process was in the
prediction (images to the device, network, fusion), in each metric (`panoptic` with the transfer of the maps, `instance`
with the masks of AP), and in waiting for data and the rest. On CUDA the timers wait for the device, which an evaluation
does only where it copies results. `with_ap_over_without` is the time of the whole with AP, divided by that without.
The rows of one run take turns over `--repeats`; the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from training import machine

from upsnet.config import Config
from upsnet.data.loader import PanopticDataset, open_dataset
from upsnet.engine import evaluate as evaluation
from upsnet.metrics.panoptic_quality import PanopticQuality
from upsnet.metrics.semantic_iou import SemanticIoU
from upsnet.models.base import PanopticModel
from upsnet.models.checkpoint import load_checkpoint


@contextmanager
def timed(device: torch.device) -> Iterator[dict[str, float]]:
    """Inside, the seconds of each stage are added up in the dictionary."""
    seconds = dict.fromkeys(("prediction", "panoptic", "semantic", "instance"), 0.0)
    stages: tuple[tuple[str, Any, str], ...] = (
        ("prediction", PanopticModel, "predict"),
        ("panoptic", PanopticQuality, "update"),
        ("semantic", SemanticIoU, "update"),
        ("instance", evaluation, "_add_instances"),
    )

    def timing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name] += time.perf_counter() - start
            return result

        return run

    with ExitStack() as stack:
        for name, owner, attribute in stages:
            stack.enter_context(mock.patch.object(owner, attribute, timing(name, getattr(owner, attribute))))
        yield seconds


def run(
    model: PanopticModel, dataset: PanopticDataset, config: Config, device: torch.device, *, with_ap: bool
) -> tuple[float, dict[str, float]]:
    """Seconds of a whole evaluation, and of its stages."""
    with timed(device) as seconds:
        start = time.perf_counter()
        evaluation.evaluate(model, dataset, config, device, with_ap=with_ap, progress=False)
        return time.perf_counter() - start, seconds


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="its config names the data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    device = torch.device(args.device)
    checkpoint = load_checkpoint(args.checkpoint, args.overrides)
    config = checkpoint.config
    model = checkpoint.build().to(device, memory_format=torch.channels_last)
    dataset = open_dataset(config.data, "val", checkpoint.categories)
    found: dict[tuple[int, bool], list[tuple[float, dict[str, float]]]] = {}
    for _ in range(args.repeats + 1):  # the first is a warm-up
        for batch in args.batches:
            changed = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"batch_size": batch})})
            for with_ap in (True, False):
                found.setdefault((batch, with_ap), []).append(run(model, dataset, changed, device, with_ap=with_ap))
    for batch in args.batches:
        with_ap, without = (statistics.median(seconds for seconds, _ in found[batch, ap][1:]) for ap in (True, False))
        stages = [{name: part / whole for name, part in parts.items()} for whole, parts in found[batch, True][1:]]
        share = {name: round(statistics.median(row[name] for row in stages), 3) for name in stages[0]}
        row = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(device.type),
            "torch": torch.__version__,
            "checkpoint": args.checkpoint.name,
            "images": len(dataset),
            "batch": batch,
            "precision": config.evaluate.precision,
            "images_per_s": round(len(dataset) / with_ap, 2),
            "share": {**share, "rest": round(1 - sum(share.values()), 3)},
            "with_ap_over_without": round(with_ap / without, 3),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
