"""The log of a run: a bar or lines, `metrics.jsonl`, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from upsnet.io.files import atomic_path
from upsnet.metrics.document import headlines
from upsnet.text import first_line

ETA_INTERVALS = 15
"""The time left follows from the median step time of this many log intervals: a short slow phase does not change it."""


def start_wandb(project: str, folder: Path, config: dict[str, Any], *, resumed: bool) -> Any:
    """Starts a run of Weights & Biases; its id is in `wandb_id`, so that a resumed training continues it.

    Raises:
        ValueError: the package is not installed, or cannot start a run.
    """
    try:
        import wandb
    except ImportError:
        raise ValueError("train.wandb_project needs the package wandb: pip install wandb, or remove the key") from None
    path = folder / "wandb_id"
    identity = path.read_text().strip() if resumed and path.is_file() else uuid.uuid4().hex
    try:
        run = wandb.init(
            project=project, name=folder.name, id=identity, resume="allow", dir=str(folder), config=config, reinit=True
        )
    except Exception as error:  # the package has its own error classes: no key, no network, a deleted run
        raise ValueError(
            f"train.wandb_project={project}: Weights & Biases cannot start ({first_line(error)}); "
            "run `wandb login`, set WANDB_MODE=offline, or remove the key"
        ) from None
    with atomic_path(path) as target:
        target.write_text(identity)
    # W&B's own step cannot go back, and a resumed run may repeat an evaluation.
    run.define_metric("*", step_metric="iteration")
    return run


class RunLog:
    """The log of one training run; a context manager. On ranks other than 0 it writes nothing.

    A terminal gets a bar; a file gets a line per interval.

    Args:
        folder: of the run.
        start, stop: iterations.
        evaluation_due: the evaluation of `start` will be made, so what there is of it leaves `metrics.jsonl`.
        device: whose memory is reported.
        enabled: False on the other ranks.
        wandb_project: also log to this project of Weights & Biases, under the names of TensorBoard.
        config: of the run, for Weights & Biases.

    Raises:
        ValueError: a project is given, and the package wandb is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start: int,
        stop: int,
        evaluation_due: bool,
        device: torch.device,
        enabled: bool,
        wandb_project: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.enabled, self.device, self.stop = enabled, device, stop
        self.wandb = None
        if enabled and wandb_project:
            self.wandb = start_wandb(wandb_project, folder, config or {}, resumed=start > 0)
        self.bar = tqdm(
            initial=start,
            total=stop,
            desc="train",
            disable=None if enabled else True,  # None: unless standard error is a terminal
            mininterval=1.0,
            dynamic_ncols=True,
        )
        self.lines = _reopen(folder / "metrics.jsonl", start, evaluation_due) if enabled else None
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1) if enabled else None
        self._since, self._waited = time.perf_counter(), 0.0
        self._step_seconds: deque[float] = deque(maxlen=ETA_INTERVALS)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.board is not None and self.lines is not None:
            self.board.close()
            self.lines.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if kind is None else 1)

    def say(self, text: str) -> None:
        """Shows a line, above the bar if there is one."""
        if self.enabled:
            self.bar.write(text)

    def row(
        self, iteration: int, values: Mapping[str, float | None], speed: dict[str, float] | None, *, prefix: str
    ) -> None:
        """Writes numbers of one iteration to `metrics.jsonl`, TensorBoard and Weights & Biases.

        Args:
            iteration: of the row.
            values: the same in every run of this config; None is null in `metrics.jsonl`, and left out elsewhere.
            speed: what depends on the machine and the hour, or None.
            prefix: of the names in TensorBoard.
        """
        if self.board is None or self.lines is None:
            return
        row = {"iteration": iteration, **values, **({"speed": speed} if speed else {})}
        self.lines.write(json.dumps(row) + "\n")
        self.lines.flush()
        named = {f"{prefix}/{name}": value for name, value in values.items() if value is not None}
        named |= {f"speed/{name}": value for name, value in (speed or {}).items()}
        for name, value in named.items():
            self.board.add_scalar(name, value, iteration)
        if self.wandb is not None:
            self.wandb.log({**named, "iteration": iteration})

    def interval(self, iteration: int, values: dict[str, float], *, steps: int, images: int, waited: float) -> None:
        """Logs the means of an interval, and how fast it was.

        Args:
            iteration: at its end.
            values: `Interval.read` and the learning rate.
            steps, images: made and seen since the last call.
            waited: seconds that the run has waited for data so far.
        """
        now = time.perf_counter()
        seconds = now - self._since
        speed = {
            "images_per_s": images / seconds,
            "data_wait": (waited - self._waited) / seconds,
            "memory_gb": peak_memory(self.device) / 1e9,
        }
        self._since, self._waited = now, waited
        self.row(iteration, values, speed, prefix="train")
        losses = " ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in values.items() if k.startswith("loss_"))
        text = (
            f"{losses}, gradient {values['gradient_norm']:.2f}, lr {values['lr']:.2g}, "
            f"{speed['images_per_s']:.1f} img/s, data {speed['data_wait']:.0%}, {speed['memory_gb']:.1f} GB"
        )
        if self.bar.disable:
            self._step_seconds.append(seconds / steps)
            left = timedelta(seconds=round((self.stop - iteration) * statistics.median(self._step_seconds)))
            self.say(f"iteration {iteration}/{self.stop}: {text}, {left} left")
        else:
            self.bar.set_postfix_str(text, refresh=False)

    def step(self) -> None:
        """Moves the bar."""
        self.bar.update()

    def histograms(self, iteration: int, model: nn.Module) -> None:
        """Writes the distribution of every parameter that learns to TensorBoard."""
        if self.board is not None:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    self.board.add_histogram(name, parameter.detach(), iteration)

    def evaluation(self, iteration: int, metrics: dict[str, Any], panel: npt.NDArray[np.uint8] | None) -> None:
        """Logs an evaluation and a picture of predictions beside truth, uint8 [H, W, 3]."""
        values = headlines(metrics)
        self.row(iteration, values, None, prefix="val")
        if self.board is not None and panel is not None:
            self.board.add_image("val/prediction_and_truth", panel, iteration, dataformats="HWC")
        self.say(f"iteration {iteration}: " + ", ".join(f"{k} {score_text(v, '.2f')}" for k, v in values.items()))
        self._since = time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Bytes that the process has held at most: of the GPU's memory, or, on the CPU, of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _reopen(path: Path, start: int, evaluation_due: bool) -> TextIO:
    """Opens a JSONL file to append to, without the rows that a killed run left and this one will write again."""

    def stays(text: str) -> bool:
        if not text.endswith("}\n"):
            return False
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}: not a row of JSON: {text[:80]!r} ({error.msg}); remove it, or move the file away"
            ) from None
        is_evaluation = "lr" not in row
        return row["iteration"] < start or (row["iteration"] == start and not (is_evaluation and evaluation_due))

    rows = path.read_text().splitlines(keepends=True) if path.exists() else []
    with atomic_path(path) as temporary:
        temporary.write_text("".join(row for row in rows if stays(row)))
    return path.open("a")


def score_text(value: float | None, form: str) -> str:
    """A score as the screen shows it: formatted, or `-` where there is nothing to score."""
    return "-" if value is None else format(value, form)
