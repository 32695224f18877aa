"""The training loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from upsnet.config import Config, TrainConfig
from upsnet.data.loader import PanopticDataset, open_dataset, train_loader
from upsnet.data.sampler import require_equal_shares
from upsnet.doctor.check_run import check_before_training
from upsnet.engine import distributed
from upsnet.engine.evaluate import comparison_panel, evaluate, headline
from upsnet.engine.interval import Interval
from upsnet.engine.logging import RunLog, score_text
from upsnet.engine.memory import remedies_for_memory
from upsnet.engine.optim import (
    add_gradients,
    build_optimizer,
    clip_gradient,
    copy_losses,
    gradient_scaler,
    require_schedule,
    set_learning_rate,
)
from upsnet.engine.prefetch import Prefetcher
from upsnet.engine.profiling import StepProfiler
from upsnet.engine.resume import (
    CheckpointFiles,
    checkpoint_bytes,
    describe_data,
    notes_of_beginning,
    require_common_start,
    require_same,
)
from upsnet.engine.run_lock import lock_folder
from upsnet.engine.signals import StopRequestedError, StopSignals
from upsnet.io.files import atomic_path, write_json
from upsnet.io.images import write_image
from upsnet.models.base import PanopticModel
from upsnet.models.build import build_model, resolve
from upsnet.models.checkpoint import Checkpoint, TrainingState, load_weights, save_checkpoint
from upsnet.models.pretrained.weights import fill, read_weights
from upsnet.models.recording import RecordedFunction, with_slots_padded
from upsnet.ops.backend import training_format
from upsnet.structures import PanopticBatch

MIN_LOSS_SCALE = 2.0**-10
"""fp16: training ends when the loss scale falls below. It begins at 2^16, and falls to 0 if nothing stops it."""
NOTHING_TO_SCORE = -1.0
"""`best` of a run whose evaluations had nothing to score: lower than any score."""


class TrainingResult(NamedTuple):
    """How a run ended.

    Attributes:
        metrics: the contents of `metrics.json` (percent) for the last evaluation; None if a signal stopped the run.
        stop_signal: number of the signal that stopped the run, 0 if none did.
    """

    metrics: dict[str, Any] | None
    stop_signal: int


def train(
    config: Config,
    output: Path | str,
    *,
    resume: bool = False,
    init: Path | str | None = None,
    profile: bool = False,
    config_name: str = "CONFIG",
    tell: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] = lambda line: None,
) -> TrainingResult:
    """Trains a model, and writes checkpoints, metrics and logs into `output`: `upsnet train` as a function.

    It trains on the GPU if there is one. Under `torchrun` every process calls it, and each has its own GPU. The first
    process checks a sample of the data before the first step.

    Args:
        config: the run.
        output: folder of the run, the same for all processes.
        resume: continue from the newest checkpoint in the folder, or begin if there is none. Always on under
            `torchrun --max-restarts`.
        init: file of weights to begin with, of any kind that `models.pretrained.weights.read_weights` knows.
        profile: write `profile.json.gz`, a trace of a few steps.
        config_name: path or name of the config, for messages that suggest a command.
        tell: called with each line of information, in the first process only.
        warn: called with each warning about the initial weights and the data, in the first process only.

    Returns:
        How the run ended, in every process.

    Raises:
        OSError, ValueError: a file is missing, or config, checkpoint and data do not match. One line says what to do.
        FloatingPointError: a loss or a gradient is not finite.
        MemoryError: a step does not fit into the memory of the GPU.
    """
    with distributed.process_group() as device, _locked(Path(output)):
        resume = resume or distributed.restarts_by_itself()
        start = None if init is None else Path(init)
        trainer = Trainer(config, Path(output), device, resume=resume, init=start, profile=profile)
        if trainer.is_main:
            for line in trainer.introduction():
                tell(line)
            for line in trainer.report.warnings if trainer.report else []:
                warn(line)
            for line in check_before_training(config, trainer.train_set, trainer.val_set, source=config_name):
                warn(line)
        metrics = trainer.run()
        if trainer.is_main:
            for line in trainer.summary(metrics):
                tell(line)
        return TrainingResult(metrics, trainer.stopped)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of the run's folder in the first process; an error ends all processes."""
    with ExitStack() as stack:
        failure = None
        if distributed.rank() == 0:
            try:
                stack.enter_context(lock_folder(folder))
            except OSError as error:
                failure = error
        distributed.agree(failure=failure)
        yield


def can_record(config: TrainConfig, device: torch.device) -> bool:
    """Whether steps are recorded as CUDA graphs: on GPUs, unless batch norms exchange statistics within the step."""
    return config.cuda_graph and device.type == "cuda" and not config.sync_batch_norm


class Trainer:
    """One run: builds everything, trains, evaluates, and leaves the files that README.md lists.

    Args:
        config: the run.
        output: its folder; all processes must see the same.
        device: of this process.
        resume: go on from the newest checkpoint in the folder; where there is none, begin.
        init: file of weights to begin with, of any kind that `models.pretrained.weights.read_weights` knows.
        profile: write `profile.json.gz`, a trace of a few steps.

    Attributes:
        report: what of `init` was used.
        notes: lines that the user should see before the run.
        stopped: number of the signal that ended `run` early, 0 if none did.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is asked for is not there, or does not fit.
    """

    def __init__(
        self,
        config: Config,
        output: Path,
        device: torch.device,
        *,
        resume: bool = False,
        init: Path | None = None,
        profile: bool = False,
    ) -> None:
        config = resolve(config)
        self.config, self.output, self.device = config, output, device
        require_schedule(config.train)
        require_equal_shares(config.train.batch_size, distributed.world_size())
        self.is_main = distributed.rank() == 0
        self.files = CheckpointFiles(output, config.train.keep_checkpoints)
        found, self.notes = self.files.newest() if resume else self.files.require_none()
        # A resumed model's classes keep their order, whatever the order in the data set's JSON is by now.
        self.train_set = open_dataset(config.data, "train", found.categories if found else None)
        self.categories = self.train_set.categories
        self.val_set: PanopticDataset = open_dataset(config.data, "val", self.categories)
        self.data = describe_data(self.train_set, self.val_set, config.data)
        torch.manual_seed(config.seed)
        self.model: PanopticModel = build_model(
            config, self.categories, pretrained=not (found or init), tell=self.notes.append
        )
        if config.train.sync_batch_norm:
            distributed.synchronize_batch_norms(self.model, device)
        self.model.to(device, memory_format=training_format(device))  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.model, config.train)
        self.iteration, self.best, self.best_iteration = 0, NOTHING_TO_SCORE, 0
        self.evaluation_due, self.stopped = False, 0
        self._interval = Interval()
        self._scaler = gradient_scaler(config.train.precision, device)
        self._profiler = StepProfiler(output / "profile.json.gz", device) if profile and self.is_main else None
        self.report = None
        if found is not None:
            self._restore(found)
        elif init is not None:
            self.report = fill(self.model, read_weights(init), self.categories)
        self._recorded = RecordedFunction(device, copy_losses) if can_record(config.train, device) else None
        self._flat: distributed.FlatGradients | None = None
        self.notes += notes_of_beginning(config, found, output, distributed.world_size())

    def introduction(self) -> list[str]:
        """What the user should know before the first step: the initial weights that were taken, and notes."""
        return [*(self.report.lines() if self.report else []), *self.notes]

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.training
        assert state is not None
        require_same(self.config, self.data, checkpoint, self.files.found)
        load_weights(self.model, checkpoint.weights, source=str(self.files.found))
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.evaluation_due = state["iteration"], state["evaluation_due"]
        self.best, self.best_iteration = state["best"], state["best_iteration"]
        self._interval = Interval(state["interval"] if len(state["interval"]) else None)
        if self._scaler is not None and state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])

    def run(self) -> dict[str, Any] | None:
        """Trains to the end, or until a signal asks to stop (`StopSignals`).

        Returns:
            The metrics of the last evaluation; None if the run was stopped.
        """
        self._begin_folder()
        self._since, self._first = time.monotonic(), self.iteration
        model: nn.Module = self.model
        if self.config.train.cuda_graph and distributed.world_size() > 1:
            self._flat = distributed.FlatGradients(self.model)
        else:
            model = distributed.data_parallel(self.model, self.device, accumulates=self.config.train.accumulate > 1)
        batches = Prefetcher(self._loader(), self.device, ahead=2 * self.config.train.accumulate)
        self.model.train()
        metrics = None
        log = RunLog(
            self.output,
            start=self.iteration,
            stop=self.config.train.iterations,
            evaluation_due=self.evaluation_due,
            device=self.device,
            enabled=self.is_main,
            wandb_project=self.config.train.wandb_project,
            config=self.config.dump(),
        )
        with log, StopSignals() as signals:
            if self.evaluation_due:
                metrics = self._evaluate(log, signals)
            while self.iteration < self.config.train.iterations and not self.stopped:
                group = self._next(batches, signals)
                if self.stopped:
                    break
                with remedies_for_memory(self.model, self.iteration, group):
                    self._step(model, group)
                self.iteration += 1
                log.step()
                metrics = self._look(log, signals, batches.seconds) or metrics
            if self.stopped and self.files.iteration != self.iteration:
                self._save()
        if self._profiler is not None:
            self._profiler.close()
        return None if self.stopped else metrics or evaluate(self.model, self.val_set, self.config, self.device)

    def _begin_folder(self) -> None:
        """Makes the run's folder, if the checkpoints will fit into it, and checks that all processes begin as one."""
        failure = None
        if self.is_main:
            try:
                self.files.prepare(*checkpoint_bytes(self.model, self.optimizer))
                with atomic_path(self.output / "config.yaml") as path:
                    path.write_text(yaml.safe_dump(self.config.dump(), sort_keys=False))
            except OSError as error:
                failure = error
        distributed.agree(failure=failure)
        require_common_start(self.iteration, self.output)

    def _loader(self) -> Any:
        config = self.config.train
        return train_loader(
            self.train_set,
            self.config.data,
            batch_size=config.batch_size,
            seed=self.config.seed,
            start=self.iteration * config.accumulate,
            stop=config.iterations * config.accumulate,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            form=self.model.input_form,
        )

    def _next(self, batches: Prefetcher, signals: StopSignals) -> list[PanopticBatch]:
        """The batches of a step; ends all processes if one has none, stops them if one is asked to."""
        group: list[PanopticBatch] = []
        failure = None
        try:
            if not signals.received:
                group = [next(batches) for _ in range(self.config.train.accumulate)]
        except Exception as error:  # of any kind: the others wait
            failure = error
        self.stopped = distributed.agree(signals.received, failure)
        return group

    def _step(self, model: nn.Module, batches: list[PanopticBatch]) -> None:
        config = self.config.train
        set_learning_rate(self.optimizer, config, self.iteration)
        scale = self._scaler.scale if self._scaler is not None else None
        run = partial(add_gradients, model, self.model.loss_weights, config.precision, 1 / len(batches), scale=scale)
        losses: list[dict[str, Tensor]] = []
        for number, batch in enumerate(batches, 1):
            with distributed.gradients_stay_here(model, number < len(batches)):
                losses.append(run(batch) if self._recorded is None else self._recorded(run, with_slots_padded(batch)))
        if self._flat is not None:
            self._flat.average()
        norm = self._update(config.clip_gradient)
        self.optimizer.zero_grad(set_to_none=self._recorded is None and self._flat is None)
        self._interval.add(self.iteration, batches, losses, norm)
        if self._profiler is not None:
            self._profiler.step()

    def _update(self, limit: float | None) -> Tensor:
        """One step of the optimiser; the norm of the gradient before it is clipped."""
        if self._scaler is None:
            norm = clip_gradient(self.model, limit)
            self.optimizer.step()
            return norm
        self._scaler.unscale_(self.optimizer)
        norm = clip_gradient(self.model, limit)
        self._scaler.step(self.optimizer)  # not if a gradient overflowed
        self._scaler.update()
        return torch.where(norm.isfinite(), norm, 0.0)

    def _require_loss_scale(self) -> None:
        """Every overflow halves the loss scale of fp16. If it has become tiny, almost every step is left out."""
        if self._scaler is None:
            return
        scale, failure = self._scaler.get_scale(), None
        if scale < MIN_LOSS_SCALE:
            failure = FloatingPointError(
                f"iteration {self.iteration}: the loss scale of train.precision=fp16 has fallen to {scale:.1e}, "
                "because the gradients of many steps were not finite; lower train.lr, set train.clip_gradient, or use "
                "train.precision=fp32"
            )
        distributed.agree(failure=failure)

    def _look(self, log: RunLog, signals: StopSignals, waited: float) -> dict[str, Any] | None:
        """Logs, saves and evaluates what is due after a step; gives the metrics of an evaluation."""
        config = self.config.train
        last = self.iteration == config.iterations
        due = [
            last or self.iteration % n == 0 for n in (config.log_every, config.checkpoint_every, config.evaluate_every)
        ]
        if any(due):
            self._require_loss_scale()
            steps = len(self._interval)
            values = {**self._interval.read(), "lr": self.optimizer.param_groups[0]["lr"]}
            images = steps * config.accumulate * config.batch_size
            log.interval(self.iteration, values, steps=steps, images=images, waited=waited)
        if config.histograms_every and self.iteration % config.histograms_every == 0:
            log.histograms(self.iteration, self.model)
        self.evaluation_due = due[2]
        if due[1] or due[2]:
            self._save()
        return self._evaluate(log, signals) if self.evaluation_due else None

    def _evaluate(self, log: RunLog, signals: StopSignals) -> dict[str, Any] | None:
        distributed.share_buffers(self.model)
        try:
            metrics = evaluate(
                self.model, self.val_set, self.config, self.device, stop=signals, with_ap=self._measures_ap()
            )
        except StopRequestedError as error:
            self.stopped = error.number
            return None
        _, value = headline(metrics)
        rank = NOTHING_TO_SCORE if value is None else value
        is_best = rank > self.best or not self.best_iteration
        if is_best:
            self.best, self.best_iteration = rank, self.iteration
        if self.is_main:
            panel = comparison_panel(self.model, self.val_set, self.config, self.device)
            log.evaluation(self.iteration, metrics, panel)
            if is_best:
                save_checkpoint(self.output / "model.pt", self._checkpoint(metrics))
                write_json(self.output / "metrics.json", {**metrics, "iteration": self.iteration})
                if panel is not None:
                    write_image(self.output / "comparison.jpg", panel)
        self.evaluation_due = False
        self._save()
        return metrics

    def _measures_ap(self) -> bool:
        """Whether the evaluation of this iteration includes AP."""
        setting = self.config.evaluate.instance
        return self.iteration == self.config.train.iterations if setting == "last" else bool(setting)

    def _checkpoint(self, metrics: dict[str, Any] | None) -> Checkpoint:
        return Checkpoint(self.config, self.categories, self.model.state_dict(), metrics)

    def _save(self) -> None:
        """Writes `last.pt`: all that is needed to go on exactly as if nothing had happened."""
        state: TrainingState = {
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "best": self.best,
            "best_iteration": self.best_iteration,
            "evaluation_due": self.evaluation_due,
            "interval": self._interval.rows(),
            "data": self.data,
            "world_size": distributed.world_size(),
            "scaler": {} if self._scaler is None else self._scaler.state_dict(),
        }
        failure = None
        if self.is_main:
            try:
                self.files.save(replace(self._checkpoint(None), training=state), self.iteration)
            except OSError as error:
                failure = error
        distributed.agree(failure=failure)
        self.files.iteration = self.iteration

    def summary(self, metrics: dict[str, Any] | None) -> list[str]:
        """What `run`, which gave these metrics, came to."""
        config, steps = self.config.train, self.iteration - self._first
        lines = [
            f"{steps} iterations, {steps * config.accumulate * config.batch_size} images in "
            f"{timedelta(seconds=round(time.monotonic() - self._since))}"
        ]
        if self._profiler is not None:
            lines += [self._profiler.report, f"trace: {self._profiler.trace}"]
        if metrics is None:
            name = signal.Signals(self.stopped).name
            lines.append(
                f"stopped by {name} at iteration {self.iteration} of {config.iterations}, all of it in "
                f"{self.files.last}; --resume goes on"
            )
        else:
            name, value = headline(metrics)
            best = score_text(self.best if self.best > NOTHING_TO_SCORE else None, ".2f")
            lines.append(
                f"last {name} {score_text(value, '.2f')}, best {name} {best} (iteration {self.best_iteration}); "
                f"model: {self.output / 'model.pt'}"
            )
        return lines
