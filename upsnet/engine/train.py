"""The training loop.

python tools/train.py --config configs/shapes_r18.yaml --output runs/demo
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from upsnet.config import Config
from upsnet.data.categories import CategorySet
from upsnet.data.loader import InferenceInput, PanopticDataset, open_dataset, open_train_dataset, train_loader
from upsnet.engine import distributed
from upsnet.engine.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from upsnet.engine.evaluate import evaluate, headline
from upsnet.engine.logging import RunLog
from upsnet.engine.optim import autocast_dtype, build_optimizer, learning_rate
from upsnet.files import atomic_path, write_json
from upsnet.inference.predictor import PanopticPredictor
from upsnet.inference.visualize import comparison, grid
from upsnet.losses import weighted_total
from upsnet.models.build import build_model
from upsnet.models.upsnet import UPSNet
from upsnet.models.weights import fill, read_weights
from upsnet.structures import PanopticBatch


class _Interval:
    """Losses of the steps since the last look, kept on the device so that a step never waits for the host."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, list[str], dict[str, Tensor]]] = []

    def add(self, iteration: int, batch: PanopticBatch, losses: dict[str, Tensor]) -> None:
        self.steps.append((iteration, batch.file_names, {k: v.detach() for k, v in losses.items()}))

    def read(self) -> dict[str, float]:
        """Means over the interval and all processes.

        Raises:
            FloatingPointError: a loss was not finite; names the iteration, the images and the terms.
        """
        names = list(self.steps[0][2])
        table = torch.stack([torch.stack([losses[n].float() for n in names]) for _, _, losses in self.steps]).cpu()
        for (iteration, files, _), row in zip(self.steps, table, strict=True):
            if not row.isfinite().all():
                terms = ", ".join(
                    f"{n}={v:g}" for n, v in zip(names, row.tolist(), strict=True) if not math.isfinite(v)
                )
                raise FloatingPointError(
                    f"iteration {iteration}: {terms}; images {', '.join(files)}. "
                    "Lower train.lr, set train.clip_gradient, or look at these images"
                )
        self.steps.clear()
        means = np.mean(distributed.gather(table.mean(0).numpy()), axis=0)
        return dict(zip(names, means.tolist(), strict=True))


class Trainer:
    """One run: builds everything, trains, evaluates, and leaves the run folder of ARCHITECTURE.md.

    Args:
        config: the run.
        output: its folder.
        device: of this process.
        resume: go on from `last.pt` in the folder.
        init: file of weights to start from, of any kind that `models.weights.read_weights` knows.

    Attributes:
        report: what of `init` was used.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is asked for is not there, or does not fit.
    """

    def __init__(
        self, config: Config, output: Path, device: torch.device, *, resume: bool = False, init: Path | None = None
    ) -> None:
        self.config, self.output, self.device = config, output, device
        self.is_main = distributed.rank() == 0
        checkpoint = load_checkpoint(output / "last.pt") if resume else None
        # A resumed model's classes keep their order, whatever the order in the data set's JSON is by now.
        self.train_set = open_train_dataset(config.data, checkpoint.categories if checkpoint else None)
        self.categories: CategorySet = self.train_set.categories
        self.val_set: PanopticDataset = open_dataset(config.data.val, self.categories)
        torch.manual_seed(config.seed)
        self.model: UPSNet = build_model(config, self.categories, pretrained=not (resume or init))
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.model, config.train)
        self.iteration, self.best = 0, -1.0
        if checkpoint is not None and resume:
            self._restore(checkpoint)
        elif (output / "last.pt").exists():
            raise FileExistsError(
                f"{output}: holds a run already; continue it with --resume, or choose another --output"
            )
        self.report = fill(self.model, read_weights(init), self.categories) if init else None

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.training is None:
            raise ValueError(f"{self.output / 'last.pt'}: holds no optimiser state, expected the last.pt of a run")
        ours, theirs = _flat(self.config.dump()), _flat(checkpoint.config.dump())
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key) and key not in _FREE_TO_CHANGE:
                found = f"{key} is {ours.get(key)!r}, expected {theirs.get(key)!r}"
                raise ValueError(f"--resume: {found} as in {self.output / 'last.pt'}")
        load_weights(self.model, checkpoint.weights, source=str(self.output / "last.pt"))
        self.optimizer.load_state_dict(checkpoint.training["optimizer"])
        self.iteration, self.best = checkpoint.training["iteration"], checkpoint.training["best"]

    def run(self) -> dict[str, Any]:
        """Trains to the end.

        Returns:
            The metrics of the last evaluation.
        """
        config, stop = self.config.train, self.config.train.iterations
        if self.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.output / "config.yaml") as path:
                path.write_text(yaml.safe_dump(self.config.dump(), sort_keys=False))
        loader = train_loader(
            self.train_set,
            self.config.data,
            batch_size=config.batch_size,
            seed=self.config.seed,
            start=self.iteration * config.accumulate,
            stop=stop * config.accumulate,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        model: nn.Module = self.model
        if distributed.world_size() > 1:
            model = DistributedDataParallel(model)
        interval = _Interval()
        batches = iter(loader)
        metrics: dict[str, Any] = {}
        self.model.train()
        with RunLog(self.output, start=self.iteration, stop=stop, enabled=self.is_main) as log:
            while self.iteration < stop:
                self._step(model, [next(batches).to(self.device) for _ in range(config.accumulate)], interval)
                self.iteration += 1
                log.step()
                last = self.iteration == stop
                due = {name: last or self.iteration % getattr(config, name) == 0 for name in _EVERY}
                if any(due.values()):
                    images = len(interval.steps) * config.batch_size
                    log.losses(self.iteration, interval.read(), self.optimizer.param_groups[0]["lr"], images)
                if due["evaluate_every"]:
                    metrics = self._evaluate(log)
                if due["checkpoint_every"] or due["evaluate_every"]:
                    self._save()
        return metrics or evaluate(self.model, self.val_set, self.config, self.device)

    def _step(self, model: nn.Module, batches: list[PanopticBatch], interval: _Interval) -> None:
        config = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.iteration)
        dtype = autocast_dtype(config.precision, self.device)
        for batch in batches:
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                losses = model(batch)
            total = weighted_total(losses, self.model.loss_weights)
            (total / len(batches)).backward()
            interval.add(self.iteration, batch, losses)
        if config.clip_gradient is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _evaluate(self, log: RunLog) -> dict[str, Any]:
        distributed.share_buffers(self.model)
        metrics = evaluate(self.model, self.val_set, self.config, self.device)
        name, value = headline(metrics)
        if self.is_main:
            panel = self._panel()
            log.evaluation(self.iteration, metrics, panel)
            if value > self.best:
                save_checkpoint(self.output / "model.pt", self._checkpoint(metrics))
                write_json(self.output / "metrics.json", {**metrics, "iteration": self.iteration})
                if panel is not None:
                    with atomic_path(self.output / "comparison.jpg") as path:
                        Image.fromarray(panel).save(path, quality=92)
            log.bar.write(f"{name} {value:.2f} (best {max(value, self.best):.2f})")
        self.best = max(value, self.best)
        return metrics

    def _panel(self) -> npt.NDArray[np.uint8] | None:
        """Predictions beside truth for the first validation images, in one picture."""
        predictor = PanopticPredictor(self.model, self.categories, InferenceInput(self.config.data), self.device)
        pictures = []
        for index in range(min(self.config.evaluate.panels, len(self.val_set))):
            sample = self.val_set[index]
            pictures.append(comparison(sample.image, predictor(sample.image), sample, self.categories))
        self.model.train()
        return grid(pictures) if pictures else None

    def _checkpoint(self, metrics: dict[str, Any] | None) -> Checkpoint:
        return Checkpoint(self.config, self.categories, self.model.state_dict(), metrics)

    def _save(self) -> None:
        """Writes `last.pt`: all that is needed to go on exactly as if nothing had happened."""
        if self.is_main:
            state = {"optimizer": self.optimizer.state_dict(), "iteration": self.iteration, "best": self.best}
            save_checkpoint(self.output / "last.pt", replace(self._checkpoint(None), training=state))
        distributed.barrier()


_EVERY = ("log_every", "checkpoint_every", "evaluate_every")
_FREE_TO_CHANGE = {"data.num_workers", "data.max_unreadable", "evaluate.panels", *(f"train.{name}" for name in _EVERY)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
