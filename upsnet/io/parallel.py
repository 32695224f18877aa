"""Items of a sequence made by worker processes, and given in their order."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader

Item = TypeVar("Item", covariant=True)

CGROUPS = Path("/sys/fs/cgroup")


class Indexed(Protocol[Item]):
    """What can be asked for its items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


def in_order(items: Indexed[Item], workers: int | None = None, chunk: int = 16) -> Iterator[Item]:
    """Yields every item in its order; a few chunks per worker are on their way at a time.

    Args:
        items: what to read. It travels to the workers, and what it gives travels back.
        workers: processes; by default one per CPU. Few items are made in this process.
        chunk: items that go to a worker at a time.
    """
    workers = min(available_cpus() if workers is None else workers, len(items) // chunk)
    if workers <= 1:
        yield from (items[index] for index in range(len(items)))
        return
    loader: DataLoader[Any] = DataLoader(
        items,  # type: ignore[arg-type]
        batch_size=chunk,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=quiet_worker,
        prefetch_factor=2,
    )
    for made in loader:
        yield from made


def available_cpus() -> int:
    """The number of CPUs that this process may use: those it may run on, and no more than its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(CGROUPS)
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def cgroup_quota(root: Path) -> float | None:
    """The CPUs that the control group of this process gives it (Linux, versions 1 and 2); None without a limit.

    Args:
        root: where the control groups are mounted.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((root / name).read_text() for name in names).split()
            if quota != "max" and int(quota) > 0 and int(period) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return None


def quiet_worker(_: int) -> None:
    """A worker starts no threads of its own, and leaves alone what it shares with its parent."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    gc.freeze()  # a collection would write to every object that was there before the fork, and so copy its page
