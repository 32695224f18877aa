"""Test-time augmentation: a model whose predictions average several views of each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from upsnet.models.base import PanopticModel
from upsnet.ops.sizes import Size
from upsnet.ops.views import View, ViewPlan
from upsnet.structures import PanopticBatch, PanopticOutput


class AugmentedModel:
    """Predicts like `PanopticModel`, with the average over the views of a plan.

    Args:
        model: in evaluation mode.
        plan: the views. `InferenceInput(..., views=plan)` makes batches that contain them.
    """

    def __init__(self, model: PanopticModel, plan: ViewPlan) -> None:
        self.model, self.plan = model, plan

    @torch.no_grad()
    def predict(
        self,
        batch: PanopticBatch,
        output_sizes: Sequence[Size] | None = None,
        *,
        with_semantic: bool = False,
        with_instances: bool = False,
    ) -> PanopticOutput:
        """As `PanopticModel.predict`.

        Raises:
            ValueError: the batch does not contain the views, or the architecture has no test-time augmentation.
        """
        if len(batch.views) != len(self.plan.scales):
            raise ValueError(
                f"the batch has {len(batch.views)} views, expected {len(self.plan.scales)}; make it with "
                "InferenceInput(..., views=plan)"
            )
        raw = self.model.raw_of_views(self._views(batch), with_instances=with_instances)
        sizes = output_sizes or batch.original_sizes
        return self.model.fuse(raw, batch.network_sizes, sizes, with_semantic=with_semantic)

    def _views(self, batch: PanopticBatch) -> list[View]:
        base_input = (batch.images.shape[2], batch.images.shape[3])
        views = [
            View(one.images, one.image_sizes, one.network_sizes, batch.network_sizes, base_input) for one in batch.views
        ]
        return [*views, *(view.flipped() for view in views)] if self.plan.flip else views
