"""A model whose predictions are recorded as CUDA graphs."""

from __future__ import annotations

from dataclasses import replace

import torch

from upsnet.models.base import PanopticModel
from upsnet.models.recording import RecordedFunction
from upsnet.ops.backend import autocast
from upsnet.structures import PanopticBatch, PanopticOutput


class GraphedModel:
    """`PanopticModel.predict`, recorded for each combination of sizes.

    Args:
        model: in evaluation mode, on a GPU; its weights must stay where they are.
        device: of the model.
        precision: as `ops.backend.autocast` takes it.

    Raises:
        ValueError: the model has no fixed shapes.
    """

    def __init__(self, model: PanopticModel, device: torch.device, precision: str = "fp32") -> None:
        model.require_fixed_shapes()
        self.model, self.recorded = model, RecordedFunction(device, _copy)
        self.device, self.precision = device, precision

    @torch.no_grad()
    def predict(self, batch: PanopticBatch) -> PanopticOutput:
        """As `PanopticModel.predict`, at the original sizes."""
        sizes = (tuple(batch.network_sizes), tuple(batch.original_sizes))
        return self.recorded(self._predict, replace(batch, target=None), sizes)

    def _predict(self, batch: PanopticBatch) -> PanopticOutput:
        with autocast(self.precision, self.device):  # inside the recording, so that the graph converts the weights
            return self.model.predict(batch)


def _copy(output: PanopticOutput) -> PanopticOutput:
    maps = [ids.clone() for ids in output.segment_ids]
    return PanopticOutput(maps, output.segment_classes.clone(), output.segment_scores.clone())
