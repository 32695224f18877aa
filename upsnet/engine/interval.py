"""What the steps since the last look came to, kept on the device so that a step never waits for the host."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upsnet.engine import distributed
from upsnet.structures import PanopticBatch

NEVER = (math.inf, 0)
"""When something was not finite, if nothing was."""


@dataclass
class _Step:
    iteration: int
    files: list[list[str]]
    losses: list[dict[str, Tensor]]
    gradient_norm: Tensor


class Interval:
    """Losses and gradient norms of the steps of one interval.

    Args:
        earlier: what `rows` gave when the run stopped inside the interval, or None.
    """

    def __init__(self, earlier: Tensor | None = None) -> None:
        self._earlier = None if earlier is None else earlier.numpy()
        self._steps: list[_Step] = []

    def __len__(self) -> int:
        """Steps that this process made."""
        return len(self._steps)

    def add(
        self, iteration: int, batches: list[PanopticBatch], losses: list[dict[str, Tensor]], gradient_norm: Tensor
    ) -> None:
        """Takes a step: its batches, the losses of each, and the norm of the gradient before clipping."""
        detached = [{name: value.detach() for name, value in part.items()} for part in losses]
        self._steps.append(_Step(iteration, [b.file_names for b in batches], detached, gradient_norm))

    def rows(self) -> Tensor:
        """One row a step, float64 [steps, terms + 1], the means over all processes; the interval goes on.

        Raises:
            FloatingPointError: something was not finite; names the iteration, the images and the terms.
        """
        parts = [] if self._earlier is None else [self._earlier]
        if self._steps:
            table, when, failure = self._table()
            gathered = distributed.gather((when, table))
            first = min(moment for moment, _ in gathered)
            if first < NEVER:  # it spreads to all processes with the gradient: where it came first, there is the cause
                distributed.agree(failure=failure if when == first else None)
            parts.append(np.mean([rows for _, rows in gathered], axis=0))
        return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0, 0, dtype=torch.float64)

    def read(self) -> dict[str, float]:
        """Means of the interval, by name, and `gradient_norm`; a new interval begins. Raises as `rows` does."""
        names = [*self._steps[0].losses[0], "gradient_norm"]
        means = self.rows().numpy().mean(0).tolist()
        self._steps.clear()
        self._earlier = None
        return dict(zip(names, means, strict=True))

    def _table(self) -> tuple[npt.NDArray[np.float64], tuple[float, int], FloatingPointError | None]:
        """This process's rows, when something is first not finite (iteration; 0 a loss, 1 the norm), and the error."""
        names = list(self._steps[0].losses[0])
        stacked = [torch.stack([torch.stack([p[n].float() for n in names]) for p in s.losses]) for s in self._steps]
        losses = torch.stack(stacked).cpu().numpy()
        norms = torch.stack([step.gradient_norm.float() for step in self._steps]).cpu().numpy()
        table = np.concatenate([losses.astype(np.float64).mean(1), norms[:, None].astype(np.float64)], 1)
        for step, parts, norm in zip(self._steps, losses, norms, strict=True):
            for files, row in zip(step.files, parts.tolist(), strict=True):
                named = zip(names, row, strict=True)
                wrong = [f"{name}={value:g}" for name, value in named if not math.isfinite(value)]
                if wrong:
                    return table, (step.iteration, 0), _not_finite(step.iteration, wrong, files)
            if not math.isfinite(norm):
                files = [file for part in step.files for file in part]
                return table, (step.iteration, 1), _not_finite(step.iteration, [f"gradient norm={norm:g}"], files)
        return table, NEVER, None


def _not_finite(iteration: int, terms: list[str], files: list[str]) -> FloatingPointError:
    return FloatingPointError(
        f"iteration {iteration}: {', '.join(terms)}; images {', '.join(files)}. "
        "Lower train.lr, set train.clip_gradient, or look at these images"
    )
