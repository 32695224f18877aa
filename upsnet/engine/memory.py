"""Errors of a training step that name the keys of the config that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from upsnet.models.backbone import backbone_of
from upsnet.models.base import PanopticModel
from upsnet.structures import PanopticBatch


@contextmanager
def remedies_for_memory(model: PanopticModel, iteration: int, batches: list[PanopticBatch]) -> Iterator[None]:
    """Names the step and its images, and what to change, if memory does not suffice or an image has too few pixels.

    Args:
        model: that trains; it knows the keys of its architecture.
        iteration: of the step.
        batches: that it uses.

    Raises:
        MemoryError, ValueError: in the place of torch's errors.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        largest = max(batches, key=lambda batch: batch.images.numel())
        height, width = largest.images.shape[-2:]
        options = f"set {' or '.join(model.memory_options)}, " if model.memory_options else ""
        raise MemoryError(
            f"iteration {iteration}: {len(largest.images)} images of {height}x{width} "
            f"({', '.join(largest.file_names)}) need more memory than there is: {error}. Halve train.batch_size and "
            f"double train.accumulate, {options}or make the images smaller"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        height, width = batches[0].images.shape[-2:]
        backbone = backbone_of(model)
        own = "gn" if backbone is None else backbone.norm_without_batch
        other_norm = " and ".join(f"{key}={own if '.backbone.' in key else 'gn'}" for key in model.norm_keys)
        raise ValueError(
            f"iteration {iteration}: {len(batches[0].images)} image of {height}x{width} in a process leaves a batch "
            f"norm one value per channel; set {other_norm}, or use more images per process, or larger ones"
        ) from None
