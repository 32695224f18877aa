"""The training step as one compiled graph: `torch.compile` with what varies between batches declared beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from upsnet.models.base import PanopticModel
from upsnet.structures import PanopticBatch

SLOTS = 16
"""Slots of the truth come in powers of two, from this on."""


def compile_loss(model: PanopticModel, backend: str = "inductor") -> None:
    """Compiles `model.loss` in place, as one graph without breaks; weights and their names stay what they are.

    The first batch of a size compiles for it; from the second size on the height and the width are variables of one
    graph. The number of instances is padded to a power of two. What a run compiles is then bounded by the
    number of those powers, however many sizes its pictures have.

    Args:
        model: before it is wrapped for several processes.
        backend: of `torch.compile`.
    """
    compiled: Callable[[PanopticBatch], dict[str, Tensor]] = torch.compile(model.loss, backend=backend, fullgraph=True)
    model.loss = lambda batch: compiled(with_slots_padded(batch))  # type: ignore[method-assign]


def with_slots_padded(batch: PanopticBatch) -> PanopticBatch:
    """The batch with empty slots added to its truth: the next power of two, at least `SLOTS`; no loss changes."""
    if batch.target is None:
        return batch
    truth = batch.target
    count = truth.labels.shape[1]
    more = max(SLOTS, 1 << (count - 1).bit_length()) - count
    padded = replace(
        truth,
        boxes=F.pad(truth.boxes, (0, 0, 0, more)),
        labels=F.pad(truth.labels, (0, more)),
        is_crowd=F.pad(truth.is_crowd, (0, more)),
    )
    return replace(batch, target=padded)
