"""What a run leaves to look at: a progress bar, `metrics.jsonl`, and TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from upsnet.files import atomic_path


class RunLog:
    """The log of one training run; a context manager. On ranks other than 0 it writes nothing.

    Args:
        folder: of the run.
        start, stop: iterations.
        enabled: False on the other ranks.
    """

    def __init__(self, folder: Path, *, start: int, stop: int, enabled: bool) -> None:
        self.enabled = enabled
        self.bar = tqdm(
            initial=start, total=stop, desc="train", disable=not enabled, mininterval=1.0, dynamic_ncols=True
        )
        self.lines = _reopen(folder / "metrics.jsonl", start) if enabled else None
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1) if enabled else None
        self.since = time.perf_counter()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.board is not None and self.lines is not None:
            self.board.close()
            self.lines.close()

    def scalars(self, iteration: int, values: dict[str, float], *, prefix: str) -> None:
        """Writes numbers of one iteration to `metrics.jsonl` and TensorBoard."""
        if self.board is None or self.lines is None:
            return
        self.lines.write(json.dumps({"iteration": iteration, **values}) + "\n")
        self.lines.flush()
        for name, value in values.items():
            self.board.add_scalar(f"{prefix}/{name}", value, iteration)

    def losses(self, iteration: int, losses: dict[str, float], rate: float, images: int) -> None:
        """Logs the mean losses since the last call, the learning rate, and images per second."""
        now = time.perf_counter()
        values = {**losses, "lr": rate, "images_per_s": images / (now - self.since)}
        self.since = now
        self.scalars(iteration, values, prefix="train")
        short = {k.removeprefix("loss_"): f"{v:.3f}" for k, v in losses.items()}
        self.bar.set_postfix({**short, "img/s": f"{values['images_per_s']:.1f}"}, refresh=False)

    def step(self) -> None:
        """Moves the bar."""
        self.bar.update()

    def evaluation(self, iteration: int, metrics: dict[str, Any], panel: npt.NDArray[np.uint8] | None) -> None:
        """Logs an evaluation and a picture of predictions beside truth, uint8 [H, W, 3]."""
        values = flatten(metrics)
        self.scalars(iteration, values, prefix="val")
        if self.board is not None and panel is not None:
            self.board.add_image("val/prediction_and_truth", panel, iteration, dataformats="HWC")
        self.bar.write(f"iteration {iteration}: " + ", ".join(f"{k} {v:.2f}" for k, v in values.items()))
        self.since = time.perf_counter()


def _reopen(path: Path, start: int) -> TextIO:
    """Opens a JSONL file to append to, without the rows after iteration `start` that a killed run left."""
    rows = path.read_text().splitlines(keepends=True) if path.exists() else []
    with atomic_path(path) as temporary:
        temporary.write_text(
            "".join(row for row in rows if row.endswith("}\n") and json.loads(row)["iteration"] <= start)
        )
    return path.open("a")


def flatten(metrics: dict[str, Any]) -> dict[str, float]:
    """The headline numbers of `metrics.json` under short names."""
    values: dict[str, float] = {}
    if metrics["panoptic"] is not None:
        for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
            values |= {f"{key}{suffix}": metrics["panoptic"][group][key] for key in ("pq", "sq", "rq")}
    if metrics["semantic"] is not None:
        values["miou"] = metrics["semantic"]["miou"]
    if metrics["instance"] is not None:
        values |= {key: metrics["instance"][key] or 0.0 for key in ("ap", "ap50")}
    return values
