"""The checkpoints in a run's folder: room for them, the newest that can be read, and whether it is of this run."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upsnet.config import CocoConfig, Config, DataConfig
from upsnet.config.migrate import UnknownFormatError
from upsnet.data.loader import PanopticDataset, data_root
from upsnet.engine import distributed
from upsnet.io.files import remove_leftovers, sync_folder
from upsnet.models.checkpoint import Checkpoint, TrainingState, load_checkpoint, save_checkpoint

FREE_TO_CHANGE = frozenset(
    {
        "data.num_workers",
        "data.max_unreadable",
        "evaluate.batch_size",
        "evaluate.instance",
        "evaluate.panels",
        "evaluate.precision",
        "model.backbone.checkpoint_activations",  # for the run that met too large a picture
        *(f"train.{name}_every" for name in ("log", "checkpoint", "evaluate", "histograms")),
        "train.cuda_graph",  # for the run whose sizes are too many to record
        "train.iterations",  # to lengthen or shorten a run
        "train.keep_checkpoints",
        "train.steps",
        "train.wandb_project",
        "train.warmup_iterations",
    }
)
"""Keys of the config that may differ when a run is resumed."""


NEXT, PROBE = ".next.pt", ".probe.pt"
"""Files that exist while checkpoints are written, and before the first."""


class CheckpointFiles:
    """`last.pt` of a run and those before it, `last-00001000.pt`, named by their iteration.

    Args:
        folder: of the run.
        keep: how many there are at most.

    Attributes:
        iteration: of `last.pt`; None if there is none, or if it cannot be read.
        found: the file that `newest` has read.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.last = self.found = folder / "last.pt"
        self.iteration: int | None = None

    def older(self) -> list[Path]:
        """Those before `last.pt`, the newest first."""
        return sorted(self.folder.glob("last-*.pt"), reverse=True)

    def require_none(self) -> tuple[None, list[str]]:
        """What `newest` gives where there is no checkpoint, as it must be.

        Raises:
            FileExistsError: there is one.
        """
        if self.last.exists() or self.older():
            raise FileExistsError(
                f"{self.folder}: holds a run already; continue it with --resume, or choose another --output"
            )
        return None, []

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that can be read, and a line for every one that cannot; None: there is no checkpoint.

        Raises:
            ValueError: there are some, and none can be read; or a newer version wrote one.
        """
        faults: list[str] = []
        for path in [*([self.last] if self.last.exists() else []), *self.older()]:
            try:
                checkpoint = load_checkpoint(path)
                state = _complete(checkpoint, path)
            except UnknownFormatError:  # not damaged, and never to be overwritten
                raise
            except ValueError as error:
                faults.append(str(error))
                continue
            self.iteration, self.found = state["iteration"] if path == self.last else None, path
            notes = [f"warning: {fault}; going on from {path.name} in its place" for fault in faults]
            return checkpoint, notes
        if faults:
            raise ValueError("; ".join(faults))
        return None, []

    def save(self, checkpoint: Checkpoint, iteration: int) -> None:
        """Writes a new `last.pt`; at every moment there is a whole one, under this or an older name."""
        fresh = self.folder / NEXT
        save_checkpoint(fresh, checkpoint)
        if self.keep > 1 and self.iteration not in (None, iteration):
            self.last.replace(self.folder / f"last-{self.iteration:08d}.pt")
        fresh.replace(self.last)
        sync_folder(self.folder)
        self.iteration = iteration
        for path in self.older()[self.keep - 1 :]:
            path.unlink()

    def prepare(self, weights: int, training: int) -> None:
        """Makes the folder, clears what a killed process left, and finds out whether the checkpoints will fit.

        Args:
            weights, training: bytes of the model, and of the rest of `last.pt`.

        Raises:
            OSError: it cannot be written, or is too small.
        """
        remedy = "expected a folder that holds the checkpoints; free some space, or choose another --output"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            for name in (NEXT, PROBE):
                (self.folder / name).unlink(missing_ok=True)
            held = sum(path.stat().st_size for path in self.folder.glob("*.pt"))
            needed = (self.keep + 1) * (weights + training) + 2 * weights - held  # one more of each while it is written
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                raise OSError(f"{self.folder}: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free; {remedy}")
            _write_once(self.folder / PROBE, weights + training)  # a quota or a limit may allow less than is free
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(f"{self.folder}: {error.strerror}; {remedy}") from None


def _write_once(path: Path, size: int) -> None:
    """Writes a file of `size` bytes, waits until the disk has it, and removes it."""
    block = bytes(1 << 20)
    try:
        with path.open("wb") as file:
            for start in range(0, size, len(block)):
                file.write(block[: size - start])
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)


def checkpoint_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Bytes of the weights, and of the optimiser's state once it has one."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    learnt = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    if isinstance(optimizer, torch.optim.AdamW):
        return weights, 2 * learnt
    return weights, learnt if optimizer.param_groups[0]["momentum"] else 0


def _complete(checkpoint: Checkpoint, path: Path) -> TrainingState:
    state: dict[str, Any] = dict(checkpoint.training or {})
    absent = sorted(TrainingState.__annotations__.keys() - {"scaler"} - state.keys())  # older files have no scaler
    if checkpoint.training is None or absent:
        raise ValueError(
            f"{path}: holds no {', '.join(absent)}, expected the last.pt of a run; begin a new run with --init {path}"
        )
    return checkpoint.training


def describe_data(train: PanopticDataset, val: PanopticDataset, config: DataConfig) -> dict[str, Any]:
    """What must be the same when a run goes on, because an image is chosen by its place in the data set.

    Returns:
        Plain values under the names that an error shows.
    """
    return {"data.train": _describe(train, config.train), "data.val": _describe(val, config.val)}


def _describe(dataset: PanopticDataset, source: Any) -> dict[str, Any]:
    sizes = np.array([dataset.size(i) for i in range(len(dataset))], dtype="<i8")
    described = {
        "number of images": len(dataset),
        "categories": _digest(repr(sorted((c.id, c.name, c.is_thing) for c in dataset.categories.categories)).encode()),
        "image ids": _digest(repr(getattr(dataset, "image_ids", len(dataset))).encode()),
        "image sizes": _digest(sizes.tobytes()),
    }
    if isinstance(source, CocoConfig):
        with (data_root() / source.annotation_file).open("rb") as file:
            described["annotation file"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return described


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def require_same(config: Config, data: dict[str, Any], checkpoint: Checkpoint, source: Path) -> None:
    """Checks that a checkpoint is of this run.

    Raises:
        ValueError: naming every key of the config and every property of the data that differs.
    """
    assert checkpoint.training is not None
    ours, theirs = flatten(config.dump()), flatten(checkpoint.config.dump())
    free = FREE_TO_CHANGE
    if config.train.peak_lr == checkpoint.config.train.peak_lr:
        free |= {"train.lr", "train.reference_batch"}  # the same rate, written differently
    wrong = [
        f"{key} is {ours.get(key)!r}, expected {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and key not in free
    ]
    if wrong:
        may_differ = ", ".join(sorted(FREE_TO_CHANGE))
        raise ValueError(f"--resume: {'; '.join(wrong)} as in {source}; only these keys may differ: {may_differ}")
    done, iterations = checkpoint.training["iteration"], config.train.iterations
    if done > iterations:
        raise ValueError(
            f"--resume: {source} is at iteration {done}, beyond train.iterations={iterations}; raise train.iterations, "
            "or evaluate the checkpoint"
        )
    ours, theirs = flatten(data), flatten(checkpoint.training["data"])
    wrong = [
        f"{key} is {ours.get(key)!r}, expected {theirs.get(key)!r}"
        for key in ours.keys() | theirs.keys()
        if ours.get(key) != theirs.get(key)
    ]
    if wrong:
        raise ValueError(
            f"--resume: the data set is another than in {source}: {'; '.join(sorted(wrong))}. "
            "Put the data back, or begin a new run with --init"
        )


def require_common_start(iteration: int, folder: Path) -> None:
    """Checks that all processes begin at this iteration; every one must call it.

    Raises:
        ValueError: they have found different checkpoints.
    """
    found = distributed.gather(iteration)
    if len(set(found)) > 1:
        raise ValueError(
            f"{folder}: the processes found checkpoints of iterations {', '.join(map(str, found))}, expected the same: "
            "use a folder that all of them see"
        )


def notes_of_beginning(config: Config, found: Checkpoint | None, folder: Path, world_size: int) -> list[str]:
    """What a user should know before the first step."""
    train, notes = config.train, []
    if train.peak_lr != train.lr:
        notes.append(
            f"train.lr {train.lr:g} is for {train.reference_batch} images, an update has "
            f"{train.batch_size * train.accumulate}: the rate is {train.peak_lr:g}"
        )
    if found is not None and found.training is not None:
        notes.append(f"going on from iteration {found.training['iteration']} of {folder}")
        if found.training["world_size"] != world_size:
            notes.append(
                f"number of processes: {world_size}, {found.training['world_size']} before: sums are taken in another "
                "order, and batch norms that learn see other parts of a batch"
            )
    return notes


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
