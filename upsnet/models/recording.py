"""Functions of batches recorded as CUDA graphs: one launch replaces thousands that Python makes one by one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch.nn import functional as F

from upsnet.structures import PanopticBatch, list_tensors, map_tensors

MAX_GRAPHS = 32
"""Maximum number of recorded graphs. Batches of further sizes run eagerly. Graphs are not replaced, because with
varying sizes almost every step would then record a new one."""
MAX_SEEN = 4096
"""Maximum number of shapes that are remembered without a recording."""

MIN_SLOTS = 16
"""Minimum number of ground-truth slots of a batch that is recorded."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Recording(Generic[Result]):
    batch: PanopticBatch
    graph: torch.cuda.CUDAGraph
    result: Result


class RecordedFunction(Generic[Result]):
    """Runs a function of batches. It is recorded when the shapes of a batch come for the second time, then replayed.

    The first time runs as usual, which also compiles and chooses the kernels.

    The function must have fixed shapes, must not wait for the device, and may draw only random numbers that are a
    function of the batch. This holds for `PanopticModel.loss`, and for `raw` and `fuse` unless `require_fixed_shapes`
    raises. It may change tensors in place (gradients): these must stay at their address.

    Args:
        device: a GPU.
        copy: copies a result. The next replay writes into the memory of the result.
    """

    def __init__(self, device: torch.device, copy: Callable[[Result], Result]) -> None:
        self.device, self.copy = device, copy
        self.recordings: dict[Hashable, _Recording[Result]] = {}
        self._seen: set[Hashable] = set()
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(
        self, run: Callable[[PanopticBatch], Result], batch: PanopticBatch, constants: Hashable = None
    ) -> Result:
        """The result for a batch.

        Args:
            run: always the same function.
            batch: its tensors are the inputs of the graph.
            constants: values on the host that the function reads from the batch; each combination has its own graph.
        """
        key = (constants, tuple((t.shape, t.dtype) for t in list_tensors(batch)))
        recording = self.recordings.get(key)
        if recording is None:
            if len(self.recordings) >= MAX_GRAPHS or key not in self._seen:
                if len(self._seen) < MAX_SEEN:
                    self._seen.add(key)
                return self._run_once(run, batch)
            self._seen.remove(key)  # a recording that fails is not tried again at once
            recording = self.recordings[key] = self._record(run, batch)
        for static, tensor in zip(list_tensors(recording.batch), list_tensors(batch), strict=True):
            static.copy_(tensor, non_blocking=True)
        recording.graph.replay()
        return self.copy(recording.result)

    def _run_once(self, run: Callable[[PanopticBatch], Result], batch: PanopticBatch) -> Result:
        """Runs as usual, but on the stream of the recordings, so that gradients lie where graphs add to them."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = run(batch)
        current.wait_stream(self._stream)
        return self.copy(result)

    def _record(self, run: Callable[[PanopticBatch], Result], batch: PanopticBatch) -> _Recording[Result]:
        static, graph = map_tensors(batch, torch.clone), torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile, which the default mode forbids.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = run(static)
        return _Recording(static, graph, result)


def with_slots_padded(batch: PanopticBatch) -> PanopticBatch:
    """Pads the ground-truth slots to the next power of two, so that fewer graphs are needed. No loss changes."""
    if batch.target is None:
        return batch
    target = batch.target
    count = target.labels.shape[1]
    more = max(MIN_SLOTS, 1 << (count - 1).bit_length()) - count
    padded = replace(
        target,
        boxes=F.pad(target.boxes, (0, 0, 0, more)),
        labels=F.pad(target.labels, (0, more)),
        is_crowd=F.pad(target.is_crowd, (0, more)),
    )
    return replace(batch, target=padded)
