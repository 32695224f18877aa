"""What a step that does not fit into the GPU's memory should tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from upsnet.structures import PanopticBatch


@contextmanager
def remedies_for_memory(iteration: int, batches: list[PanopticBatch]) -> Iterator[None]:
    """Names the step and its images where the memory of the device does not suffice, and what to change.

    Args:
        iteration: of the step.
        batches: that it uses.

    Raises:
        MemoryError: in the place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        largest = max(batches, key=lambda batch: batch.images.numel())
        height, width = largest.images.shape[-2:]
        raise MemoryError(
            f"iteration {iteration}: {len(largest.images)} images of {height}x{width} "
            f"({', '.join(largest.file_names)}) need more memory than there is: {error}. Halve train.batch_size and "
            "double train.accumulate, set model.instance.mask_slots=32 or model.backbone.checkpoint_activations=true, "
            "or make the images smaller"
        ) from None
