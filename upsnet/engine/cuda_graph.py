"""Training steps as recorded CUDA graphs: one launch in place of thousands of kernels that Python starts one by one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from upsnet.config import TrainConfig
from upsnet.engine import distributed
from upsnet.models.compiled import with_slots_padded
from upsnet.structures import PanopticBatch, list_tensors, map_tensors

MAX_GRAPHS = 32
"""Sizes of batches that are remembered, the latest used ones."""

Run = Callable[[PanopticBatch], dict[str, Tensor]]
"""Takes a batch to its losses, and adds to the gradients."""


def can_record(config: TrainConfig, device: torch.device) -> bool:
    """Whether steps are to be recorded, and can be: on one GPU, because processes exchange gradients within a step."""
    return config.cuda_graph and device.type == "cuda" and distributed.world_size() == 1


@dataclass(frozen=True)
class _Recording:
    batch: PanopticBatch
    graph: torch.cuda.CUDAGraph
    losses: dict[str, Tensor]


class RecordedSteps:
    """Forward, losses and backward of batches, recorded when a size comes for the second time, and replayed.

    The first time runs as usual, which also chooses and compiles the kernels.

    This needs fixed shapes, no wait for the host, and random choices that are a function of the batch:
    `PanopticModel.loss` has them all. The graphs add into the same gradients, which the first step makes: keep them
    where they are, with `zero_grad(set_to_none=False)`.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.recordings: OrderedDict[tuple[object, ...], _Recording | None] = OrderedDict()
        self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, run: Run, batch: PanopticBatch) -> dict[str, Tensor]:
        """What `run`, always the same one, makes of a batch: its losses, detached."""
        batch = with_slots_padded(batch)
        key = tuple((t.shape, t.dtype) for t in list_tensors(batch))
        is_known, recording = key in self.recordings, self.recordings.pop(key, None)
        if is_known and recording is None:
            recording = self._record(run, batch)
        self.recordings[key] = recording
        if len(self.recordings) > MAX_GRAPHS:
            self.recordings.popitem(last=False)
        if recording is None:
            return self._run_once(run, batch)
        for static, tensor in zip(list_tensors(recording.batch), list_tensors(batch), strict=True):
            static.copy_(tensor, non_blocking=True)
        recording.graph.replay()
        return _copies(recording.losses)

    def _run_once(self, run: Run, batch: PanopticBatch) -> dict[str, Tensor]:
        """As usual, but on the stream of the recordings: gradients are added where they were made."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            losses = run(batch)
        current.wait_stream(self._stream)
        return _copies(losses)

    def _record(self, run: Run, batch: PanopticBatch) -> _Recording:
        static, graph = map_tensors(batch, torch.clone), torch.cuda.CUDAGraph()
        # Other threads pin memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            losses = {name: loss.detach() for name, loss in run(static).items()}
        return _Recording(static, graph, losses)


def _copies(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detached, in memory of their own: the next graph writes into the same."""
    return dict(zip(losses, torch.stack([loss.detach() for loss in losses.values()]).unbind(), strict=True))
