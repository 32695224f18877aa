"""Work on many images in worker processes, with the results in order and few of them on their way at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

Result = TypeVar("Result")


def in_order(work: Dataset[Result], count: int, workers: int | None = None, chunk: int = 4) -> Iterator[Result]:
    """Yields `work[0]`, ..., `work[count - 1]`.

    Args:
        work: computes a result for an index.
        count: of the results.
        workers: processes; None: one per core. Never more than there are chunks; 1 works in this process.
        chunk: results that a worker makes at a time.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, count // chunk)
    if workers <= 1:
        yield from (work[index] for index in range(count))
        return
    batches = [list(range(at, min(at + chunk, count))) for at in range(0, count, chunk)]
    options: dict[str, Any] = {"collate_fn": list, "worker_init_fn": _one_thread, "prefetch_factor": 2}
    for results in DataLoader(work, batch_sampler=batches, num_workers=workers, **options):
        yield from results


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
