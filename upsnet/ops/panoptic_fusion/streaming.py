"""The panoptic map tile by tile with a running maximum: no volume of planes, and little memory.

Within a cell of the semantic logits every pixel is a convex combination of the cell's four corners. So a channel
whose largest corner is below some stuff channel's smallest one is not the best anywhere in the cell, and a tile
upsamples only the channels that this leaves over (all, if the logits are noise). Instances are added in their regions.

For tensors in host memory, and the fallback on other devices: regions steer slices, which the host must know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from upsnet.categories import semantic_from_label
from upsnet.ops.mask_paste import paste_factors
from upsnet.ops.panoptic_fusion.slots import ALWAYS, NEVER, Axis, Grid, Method, Slots

TILE = (64, 128)
ROUNDING = 1e-6
"""Error of interpolation in float32, at most, relative to the largest logit."""

Region = tuple[int, int, int, int]
"""XYXY, half-open, in pixels."""


def keep_instances(slots: Slots, size: tuple[int, int], overlap: Fraction) -> Tensor:
    """As `reference.keep_instances`: bool [B, K]."""
    keep = torch.zeros_like(slots.valid)
    for image in range(len(keep)):
        instances = _instances(slots, image)
        for label in {instance.label for instance in instances}:
            taken = torch.zeros(size, dtype=torch.bool, device=keep.device)
            for instance in instances:
                if instance.label == label and _keeps(instance, taken, overlap):
                    keep[image, instance.slot] = True
    return keep


def fuse(
    semantic_logits: Tensor, slots: Slots, grid: Grid, *, num_stuff: int, method: Method, with_semantic: bool
) -> tuple[Tensor, Tensor | None]:
    """As `reference.fuse`: int32 [B, H, W], and again or None."""
    maps = torch.empty(len(semantic_logits), *grid.size, dtype=torch.int32, device=semantic_logits.device)
    semantic = torch.empty_like(maps) if with_semantic else None
    bands, strips = _spans(grid.rows, TILE[0]), _spans(grid.columns, TILE[1])
    for image, logits in enumerate(semantic_logits):
        instances = _instances(slots, image)
        for rows in bands:
            for columns in strips:
                tile = _Tile(logits, rows, columns, instances, num_stuff, method)
                if semantic is not None:
                    semantic[image][tile.window] = tile.semantic()
                maps[image][tile.window] = tile.fuse(num_stuff + slots.labels.shape[1])
    return maps, semantic


@dataclass(frozen=True)
class _Instance:
    """A slot that competes, on the host; `rows @ columns` are its mask logits in `region`."""

    slot: int
    label: int
    region: Region
    rows: Tensor
    columns: Tensor


def _instances(slots: Slots, image: int) -> list[_Instance]:
    valid, labels = slots.valid[image].tolist(), slots.labels[image].tolist()
    found = []
    for slot, (x1, y1, x2, y2) in enumerate(slots.region[image].tolist()):
        if valid[slot]:
            x, y = (torch.arange(a, max(a, b), device=slots.frame.device) + 0.5 for a, b in ((x1, x2), (y1, y2)))
            factors = paste_factors(slots.mask_logits[image, slot].float(), slots.frame[image, slot], x, y)
            found.append(_Instance(slot, labels[slot], (x1, y1, x2, y2), *factors))
    return found


def _keeps(instance: _Instance, taken: Tensor, overlap: Fraction) -> bool:
    """Whether an instance stays; if so, its pixels are marked in `taken`, bool [H, W]."""
    occupied = taken[_window(instance.region, (0, 0))]
    mask = instance.rows @ instance.columns > 0
    area, shared = int(mask.count_nonzero()), int((mask & occupied).count_nonzero())
    if area == 0 or shared * overlap.denominator > area * overlap.numerator:
        return False
    occupied |= mask
    return True


@dataclass(frozen=True)
class _Span:
    """A stretch of pixels along one axis, the cells it lies on, and its interpolation float32 [pixels, cells]."""

    start: int
    stop: int
    cells: slice
    weights: Tensor


def _spans(axis: Axis, length: int) -> list[_Span]:
    spans = []
    for start in range(0, len(axis.low), length):
        low, high, weight = (t[start : start + length] for t in (axis.low, axis.high, axis.weight))
        first, last = int(low[0]), int(high[-1]) + 1
        weights = Axis(low - first, high - first, weight).matrix(last - first)
        spans.append(_Span(start, start + len(low), slice(first, last), weights))
    return spans


class _Tile:
    """One tile of one image: the best stuff and thing first, then the instances in order."""

    def __init__(
        self, logits: Tensor, rows: _Span, columns: _Span, instances: list[_Instance], num_stuff: int, method: Method
    ) -> None:
        self.box = (columns.start, rows.start, columns.stop, rows.stop)
        self.window = _window(self.box, (0, 0))
        self.instances, self.num_stuff, self.method = instances, num_stuff, method
        corners = logits[:, rows.cells, columns.cells].float()
        here = (i for i in instances if _overlap(i.region, self.box))
        needed = {semantic_from_label(i.label, num_stuff) for i in here}
        self.channels = _contenders(corners, num_stuff, needed)
        self.volume = rows.weights @ corners[self.channels] @ columns.weights.T
        self.row = {channel: row for row, channel in enumerate(self.channels.tolist())}
        self.split = sum(channel < num_stuff for channel in self.row)

    def semantic(self) -> Tensor:
        """The argmax of the semantic logits, int64 [h, w]."""
        return self.channels[self.volume.argmax(0)]

    def fuse(self, unknown: int) -> Tensor:
        """The panoptic map, int64 [h, w]."""
        best, index = self.volume[: self.split].max(0)
        winner = self.channels[index]
        explained = torch.zeros_like(best)
        for slot, region, own, score in self._planes():
            window = _window(region, self.box)
            winner[window].masked_fill_(score > best[window], self.num_stuff + slot)
            torch.maximum(best[window], score, out=best[window])
            torch.maximum(explained[window], own, out=explained[window])
        if self.split < len(self.channels):
            winner.masked_fill_(self.volume[self.split :].amax(0) - explained > best, unknown)
        return winner

    def _planes(self) -> Iterator[_Plane]:
        for instance in self.instances:
            if region := _overlap(instance.region, self.box):
                rows, columns = _window(region, instance.region)
                factors = instance.rows[rows], instance.columns[:, columns]
                if self.method == "heuristic":
                    score = torch.where(factors[0] @ factors[1] > 0, ALWAYS, NEVER)
                    yield instance.slot, region, torch.zeros_like(score), score
                else:
                    own = self._own(instance, region)
                    yield instance.slot, region, own, torch.addmm(own, *factors)

    def _own(self, instance: _Instance, region: Region) -> Tensor:
        """The logit of an instance's class in a region."""
        return self.volume[self.row[semantic_from_label(instance.label, self.num_stuff)]][_window(region, self.box)]


_Plane = tuple[int, Region, Tensor, Tensor]
"""Slot, region, and there: logit of the class, and of the instance."""


def _contenders(corners: Tensor, num_stuff: int, needed: Iterable[int]) -> Tensor:
    """The channels int64 [n] that may be the best semantic logit between `corners` [C, h, w], and those `needed`."""
    bound = _pool(corners[:num_stuff], torch.minimum).amax(0) - ROUNDING * corners.abs().amax()
    contends = ~(_pool(corners, torch.maximum) < bound).flatten(1).all(1)  # NaN contends: no channel is lost
    contends[list(needed)] = True
    return contends.nonzero()[:, 0]


def _pool(x: Tensor, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extreme of the four corners of each cell: [C, h, w] -> [C, h - 1, w - 1]."""
    for dim in (1, 2):
        last = x.shape[dim] - 1
        x = extreme(x.narrow(dim, 0, last), x.narrow(dim, 1, last)) if last else x
    return x


def _overlap(a: Region, b: Region) -> Region | None:
    x1, y1, x2, y2 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _window(region: Region, origin: Region | tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a region, relative to the corner of `origin`."""
    return slice(region[1] - origin[1], region[3] - origin[1]), slice(region[0] - origin[0], region[2] - origin[0])
