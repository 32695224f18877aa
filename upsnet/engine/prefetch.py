"""Batches on the device: copied from pinned memory on a stream of their own, while the step before computes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator

import torch

from upsnet.structures import PanopticBatch, map_tensors


class Prefetcher:
    """An iterator over batches on `device`. On the CPU it hands them through.

    A step returns to the host long before the device has done it, so the host asks for the next batch while the
    device still computes: all it takes for the copy to overlap is a stream of its own. The host is held back where
    it is more than `ahead` batches in front, which bounds the memory that waiting batches take.

    Args:
        batches: from the data loader.
        device: to copy them to.
        ahead: batches of two updates at least, for the host to prepare one while the device computes the other.

    Attributes:
        seconds: spent waiting for the data loader so far.
    """

    def __init__(self, batches: Iterable[PanopticBatch], device: torch.device, *, ahead: int) -> None:
        self.batches, self.device, self.ahead = iter(batches), device, ahead
        self.seconds = 0.0
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._taken: deque[torch.cuda.Event] = deque()

    def __iter__(self) -> Iterator[PanopticBatch]:
        return self

    def __next__(self) -> PanopticBatch:
        start = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - start
        return batch.to(self.device) if self._stream is None else self._copy(batch, self._stream)

    def _copy(self, batch: PanopticBatch, stream: torch.cuda.Stream) -> PanopticBatch:
        current = torch.cuda.current_stream(self.device)
        self._taken.append(current.record_event())
        if len(self._taken) > self.ahead:
            self._taken.popleft().synchronize()
        with torch.cuda.stream(stream):
            copied = batch.to(self.device)
        current.wait_stream(stream)

        def belongs_to_step(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(current)  # its memory is free again when the step, not the copy, has done with it
            return tensor

        return map_tensors(copied, belongs_to_step)
