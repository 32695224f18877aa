"""The model as recorded CUDA graphs: one launch in place of some thousand kernels that Python starts one by one."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch

from upsnet.models.base import PanopticModel
from upsnet.structures import PanopticBatch, PanopticOutput

MAX_GRAPHS = 8
"""Combinations of sizes that are kept, the latest used ones."""
WARM_UPS = 3
"""Runs before recording: kernels are compiled and chosen in the first ones."""


@dataclass(frozen=True)
class _Recording:
    batch: PanopticBatch
    graph: torch.cuda.CUDAGraph
    output: PanopticOutput


class GraphedModel:
    """`PanopticModel.predict`, recorded for each combination of sizes: its shapes are fixed, and it never waits.

    Args:
        model: in evaluation mode, on a GPU; its weights must stay where they are.
    """

    def __init__(self, model: PanopticModel) -> None:
        self.model = model
        self.recordings: OrderedDict[tuple[object, ...], _Recording] = OrderedDict()
        self.pool = torch.cuda.graph_pool_handle()

    @torch.no_grad()
    def predict(self, batch: PanopticBatch) -> PanopticOutput:
        """As `PanopticModel.predict`, at the original sizes."""
        key = (
            tuple(batch.images.shape), batch.images.dtype, tuple(batch.network_sizes), tuple(batch.original_sizes),
            tuple(batch.scales),
        )  # fmt: skip
        recording = self.recordings.pop(key, None) or self._record(batch)
        self.recordings[key] = recording
        if len(self.recordings) > MAX_GRAPHS:
            self.recordings.popitem(last=False)
        recording.batch.images.copy_(batch.images, non_blocking=True)
        recording.batch.image_sizes.copy_(batch.image_sizes, non_blocking=True)
        recording.graph.replay()
        output = recording.output  # Copied, because the next graph writes into the same memory.
        return PanopticOutput(
            [ids.clone() for ids in output.segment_ids], output.segment_classes.clone(), output.segment_scores.clone()
        )

    def _record(self, batch: PanopticBatch) -> _Recording:
        static = replace(batch, images=batch.images.clone(), image_sizes=batch.image_sizes.clone())
        stream = torch.cuda.Stream(batch.images.device)
        stream.wait_stream(torch.cuda.current_stream(batch.images.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.model.predict(static)
        torch.cuda.current_stream(batch.images.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=stream):
            output = self.model.predict(static)
        return _Recording(static, graph, output)
