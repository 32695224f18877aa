"""Reading inside the data workers, and what may go wrong there: files that cannot be read, workers that are killed.

Everything random is a function of (seed, epoch, image).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm.contrib.logging import logging_redirect_tqdm

from upsnet.categories import CategorySet
from upsnet.data.copy_paste import paste_things
from upsnet.data.sampler import Key, image_seed
from upsnet.data.transforms import Augmentation
from upsnet.structures import PanopticBatch, Sample


class PanopticDataset(Protocol):
    """What every reader offers."""

    categories: CategorySet

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) without reading the image."""
        ...

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class FileDataset(Protocol):
    """What a reader of files may offer besides."""

    def file_name(self, index: int) -> str:
        """Of the picture, without reading it."""
        ...

    def read(self, index: int, reduction: int) -> Sample:
        """Like `[index]`, but the image may come at 1 / `reduction` of its sides (2, 4 or 8, rounded up)."""
        ...


class Item(NamedTuple):
    """An augmented sample, its random stream, and the images that could not be read for it, with the reasons."""

    sample: Sample
    seed: int
    unreadable: dict[int, str]


class BeingRead:
    """Shared memory in which each worker writes what it reads, for the case that it does not live to tell."""

    def __init__(self, num_workers: int) -> None:
        self.table = torch.full((num_workers, 2), -1, dtype=torch.int64).share_memory_()

    def note(self, index: int) -> None:
        """Called by a worker before it reads."""
        worker = get_worker_info()
        if worker is not None:
            self.table.numpy()[worker.id] = os.getpid(), index

    def forget(self) -> None:
        """Called before new workers start: those before them are gone, and need not be missed."""
        self.table.fill_(-1)

    def by_process(self) -> dict[int, int]:
        """Process id -> index of the image that it read last."""
        return {pid: index for pid, index in self.table.tolist() if pid != -1}


class TrainingItems(Dataset[Item]):
    """Reads and augments samples inside the workers.

    An image that cannot be read gives its place to another of its orientation, drawn from (seed, epoch, image).

    Args:
        dataset: to read.
        augmentation: of every sample.
        seed: of the run.
        sizes: (H, W) of every image.
        max_unreadable: how many images may fail for one sample.
        being_read: told of every image.
        copy_paste: chance that things of another image are pasted in.
    """

    def __init__(
        self,
        dataset: PanopticDataset,
        augmentation: Augmentation,
        seed: int,
        sizes: Sequence[tuple[int, int]],
        max_unreadable: int,
        being_read: BeingRead,
        copy_paste: float = 0.0,
    ) -> None:
        self.dataset, self.augmentation, self.seed = dataset, augmentation, seed
        self.sizes = np.array(sizes)
        self.max_unreadable, self.being_read = max_unreadable, being_read
        self.copy_paste = copy_paste

    def __getitem__(self, key: Key) -> Item:
        """The sample for a key.

        Raises:
            ValueError: too many images, or all there are, cannot be read.
        """
        seed = image_seed(self.seed, *key)
        unreadable: dict[int, str] = {}
        sample = self._first_readable(self._candidates(key), seed, unreadable)
        rng = np.random.default_rng([seed, 1])
        if rng.random() < self.copy_paste:
            source = self._first_readable(self._sources(rng), int(rng.integers(2**62)), unreadable)
            sample = paste_things(sample, source, self.dataset.categories.num_stuff, rng)
        return Item(sample, seed, unreadable)

    def _first_readable(self, candidates: Iterable[int], seed: int, unreadable: dict[int, str]) -> Sample:
        """The first image that can be read, augmented; notes the others."""
        for candidate in candidates:
            self.being_read.note(candidate)
            try:
                return self._read(candidate, seed)
            except (OSError, ValueError) as error:
                unreadable[candidate] = str(error)
            if len(unreadable) > self.max_unreadable:
                break
        raise ValueError(_too_many(unreadable, self.max_unreadable))

    def _read(self, index: int, seed: int) -> Sample:
        rng = np.random.default_rng(seed)
        height, width = self.sizes[index].tolist()
        geometry = self.augmentation.plan((height, width), rng)
        if isinstance(self.dataset, FileDataset):
            sample = self.dataset.read(index, geometry.reduction)
        else:
            sample = self.dataset[index]
        return self.augmentation.apply(geometry, sample, rng)

    def _candidates(self, key: Key) -> Iterator[int]:
        """The image itself, then the others of its orientation."""
        yield key.image
        is_wide = self.sizes[:, 1] > self.sizes[:, 0]
        group = np.flatnonzero(is_wide == is_wide[key.image])
        for other in np.random.default_rng([self.seed, *key]).permutation(group).tolist():
            if other != key.image:
                yield other

    def _sources(self, rng: np.random.Generator) -> Iterator[int]:
        """Any image, then all of them."""
        yield int(rng.integers(len(self.sizes)))
        yield from rng.permutation(len(self.sizes)).tolist()


class WholeItems(Dataset[Sample]):
    """Reads samples for evaluation: what cannot be read is an error.

    Args:
        dataset: to read.
        being_read: told of every image.
        reduction: (H, W) of an image -> the factor by which it may be read smaller.
    """

    def __init__(
        self, dataset: PanopticDataset, being_read: BeingRead, reduction: Callable[[tuple[int, int]], int]
    ) -> None:
        self.dataset, self.being_read, self.reduction = dataset, being_read, reduction

    def __getitem__(self, index: int) -> Sample:
        self.being_read.note(index)
        if isinstance(self.dataset, FileDataset):
            return self.dataset.read(index, self.reduction(self.dataset.size(index)))
        return self.dataset[index]


class Batches:
    """The batches of a `DataLoader`, with its troubles named.

    Each image that was replaced because it cannot be read is logged once, as a warning.

    Args:
        loader: of batches.
        dataset: to name images.
        being_read: what its workers read.
        max_unreadable: how many images may be replaced before that is an error.

    Raises:
        ValueError: while iterating: more images cannot be read.
        ChildProcessError: a worker was killed; names what it read last.
    """

    def __init__(
        self, loader: DataLoader[Any], dataset: PanopticDataset, being_read: BeingRead, max_unreadable: int = 0
    ) -> None:
        self.loader, self.dataset, self.being_read = loader, dataset, being_read
        self.max_unreadable = max_unreadable
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[PanopticBatch]:
        has_signal = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        before = _handler_without_torch() if has_signal else None  # now: torch wraps its own around the program's

        def notice(*arguments: Any) -> None:
            try:
                self._require_workers()
            finally:
                if callable(before):
                    before(*arguments)

        self.being_read.forget()
        batches = iter(self.loader)
        for _ in range(len(self.loader)):
            self._require_workers()
            if has_signal:
                signal.signal(signal.SIGCHLD, notice)
            try:
                batch = next(batches)
            except (RuntimeError, ConnectionError, EOFError):  # of torch, or for a batch that went with its worker
                self._require_workers(patience=1)
                raise
            finally:
                if has_signal:
                    signal.signal(signal.SIGCHLD, before)
            self._count(batch.unreadable)
            yield batch

    def _require_workers(self, patience: float = 0) -> None:
        """Raises if a worker has ended, or does within seconds; they all live until the last batch is here."""
        reading = self.being_read.by_process()
        if not reading:
            return
        alive = {process.pid: process for process in multiprocessing.active_children()}
        if patience and reading.keys() <= alive.keys():
            ended = wait([alive[pid].sentinel for pid in reading], timeout=patience)
            for process in alive.values():
                if process.sentinel in ended:
                    process.join(patience)
            alive = {process.pid: process for process in multiprocessing.active_children()}
        dead = {pid: index for pid, index in reading.items() if pid not in alive}
        if dead:
            names, pids = ", ".join(map(self._name, sorted(set(dead.values())))), ", ".join(map(str, dead))
            raise ChildProcessError(
                f"data worker {pids} ended while reading {names}: killed, perhaps for want of memory or of room in "
                "/dev/shm (docker run --ipc=host), or crashed by the file. Lower data.num_workers, or look at the file"
            )

    def _name(self, index: int) -> str:
        return self.dataset.file_name(index) if isinstance(self.dataset, FileDataset) else f"image {index}"

    def _count(self, unreadable: dict[int, str]) -> None:
        for index, reason in unreadable.items():
            if index not in self.unreadable:
                self.unreadable[index] = reason
                with logging_redirect_tqdm():
                    logging.getLogger(__name__).warning("%s: another image takes its place", reason)
        if len(self.unreadable) > self.max_unreadable:
            raise ValueError(_too_many(self.unreadable, self.max_unreadable))


def _handler_without_torch() -> Any:
    """What handles SIGCHLD, unless it is torch's: that raises wherever this process is by then, and once more later."""
    handler = signal.getsignal(signal.SIGCHLD)
    is_torch = getattr(handler, "__module__", "").startswith("torch.")
    return signal.SIG_DFL if is_torch or handler is None else handler


def _too_many(unreadable: dict[int, str], limit: int) -> str:
    first = "; ".join(list(unreadable.values())[:3])
    expected = f"at most {limit} (data.max_unreadable)" if len(unreadable) > limit else "one of their orientation to be"
    return (
        f"{len(unreadable)} training images cannot be read, expected {expected}: {first}. "
        "`upsnet doctor` lists what is wrong with a data set"
    )
