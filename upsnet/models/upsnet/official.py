"""The numbers of the official UPSNet program, for its published checkpoints (`model.panoptic.method: official`).

The program resizes images by one exact scale, fuses at the size of the network input, rounds boxes to whole pixels, and
resizes the map by nearest neighbour. `ARCHITECTURE.md` lists the differences to the default. Everything here has the
form of `ops.panoptic_fusion.reference`: it computes the logits of all channels, and takes the argmax. It cannot be
exported, and CUDA graphs cannot record it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upsnet.config import PanopticConfig
from upsnet.models.upsnet.model import UPSNet, UPSNetRaw
from upsnet.models.upsnet.panoptic_head import PanopticHead
from upsnet.ops.mask_paste import inside_boxes, paste_masks
from upsnet.ops.panoptic_fusion.pipeline import implementation_for, overlap_fraction
from upsnet.ops.panoptic_fusion.reference import class_logits, pixel_centers, upsample
from upsnet.ops.panoptic_fusion.segment_ids import histogram, ids_of_owners
from upsnet.ops.panoptic_fusion.slots import NEVER, STRIDE, Axis, Grid, Slots, clip_region
from upsnet.ops.sizes import InputForm, Size
from upsnet.structures import Detections, PanopticBatch, PanopticOutput

BAND = 128
"""Rows of the map that are fused at a time, so that the logits of all channels need little memory."""


def exact_scale(size: Size, short_side: int, max_side: int) -> float:
    """`short_side` / shorter side, unless the longer side would then round to more than `max_side`."""
    scale = short_side / min(size)
    return max_side / max(size) if round(scale * max(size)) > max_side else scale


def scaled_size(size: Size, scale: float) -> Size:
    """(H, W) of an image resized by a scale, at least 1 x 1."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_image(image: Tensor, scale: float) -> Tensor:
    """Bilinear resize [3, H, W] by one scale for both axes, without rounding to whole grey levels.

    Pixel i of the result lies at (i + 1/2) / scale - 1/2, whatever the rounding of the size.

    Returns:
        float32 [3, h, w] of `scaled_size`.
    """
    image = image.float()
    for dim, count in zip((1, 2), scaled_size((image.shape[1], image.shape[2]), scale), strict=True):
        last = image.shape[dim] - 1
        position = ((torch.arange(count, dtype=torch.float64) + 0.5) / scale - 0.5).clamp(0, last)
        low = position.floor().long()
        shape = (-1, 1) if dim == 1 else (-1,)
        weight = (position - low).float().view(shape).to(image.device)
        low = low.to(image.device)
        image = torch.lerp(image.index_select(dim, low), image.index_select(dim, (low + 1).clamp(max=last)), weight)
    return image


@dataclass(frozen=True)
class OfficialResize:
    """Resizes the images of a batch by `resize_image`, and pads them again.

    Attributes:
        short_side, max_side: as in `exact_scale`; `short_side` None: images keep their size.
        multiple: the height and the width of the result are multiples of it.
        network_size: (H, W) of the result, which images that are larger are shrunk to; None: as small as possible.
    """

    short_side: int | None
    max_side: int
    multiple: int = 32
    network_size: Size | None = None

    def scale(self, size: Size) -> float:
        """Network pixels per pixel of an image of `size` = (H, W)."""
        scale = 1.0 if self.short_side is None else exact_scale(size, self.short_side, self.max_side)
        return min(
            scale, *(limit / side for limit, side in zip(self.network_size or (math.inf,) * 2, size, strict=True))
        )

    def network_sizes(self, sizes: Sequence[Size]) -> list[Size]:
        """(H, W) of resized images."""
        return [scaled_size(size, self.scale(size)) for size in sizes]

    def images(self, images: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Images [B, 3, H, W], and (H, W) of the valid part of each -> float32 [B, 3, h, w]."""
        resized = [
            resize_image(image[:, :h, :w], self.scale((h, w))) for image, (h, w) in zip(images, sizes, strict=True)
        ]
        height, width = self.network_size or (
            -(-max(image.shape[dim] for image in resized) // self.multiple) * self.multiple for dim in (1, 2)
        )
        batch = resized[0].new_zeros(len(resized), 3, height, width)
        for slot, image in zip(batch, resized, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return batch

    def __call__(self, batch: PanopticBatch) -> PanopticBatch:
        """The batch resized."""
        sizes = self.network_sizes(batch.network_sizes)
        images, size_tensor = self.images(batch.images, batch.network_sizes), torch.tensor(sizes)
        return replace(batch, images=images, image_sizes=size_tensor.to(batch.image_sizes.device), network_sizes=sizes)


@dataclass(frozen=True)
class OfficialSlots(Slots):
    """`Slots` whose mask and class logit count in different pixels.

    Attributes:
        region: of the mask logit.
        semantic_region: int32 [B, K, 4], of the logit of the class.
    """

    semantic_region: Tensor


def place_slots(boxes: Tensor, labels: Tensor, valid: Tensor, mask_logits: Tensor, size: Size) -> OfficialSlots:
    """Lays instances on a result of `size` = (H, W).

    Boxes are rounded to whole pixels: the mask's end downwards, the semantic end to the nearest. A negative semantic
    edge counts from the far side of the image, as an index of an array does.

    Args:
        boxes: float32 [B, K, 4], XYXY in pixels of the result; x2 and y2 are the last pixel, not the one after it.
        labels, valid, mask_logits: see `Slots`.
        size: of the result.
    """
    low, high = boxes[..., :2].trunc(), boxes[..., 2:]
    frame = torch.cat([low, low + (high.trunc() - low + 1).clamp(min=1)], -1)
    mask = torch.cat([low, high.trunc() + 1], -1)
    semantic = torch.cat([low, high.round() + 1], -1)
    x, y = semantic[..., 0::2], semantic[..., 1::2]
    semantic = torch.stack([x + (x < 0) * size[1], y + (y < 0) * size[0]], -1).flatten(-2)
    return OfficialSlots(labels, valid, mask_logits, frame, clip_region(mask, size), clip_region(semantic, size))


def competing(slots: OfficialSlots, keep: Tensor) -> OfficialSlots:
    """The slots that enter the fusion.

    Where no instance is kept, the program lets the first detection compete with an empty mask. If there is no detection
    at all, an instance of logit 0 competes.

    Args:
        slots: all.
        keep: bool [B, K], the result of the mask removal.
    """
    first = torch.arange(keep.shape[1], device=keep.device) == 0
    stand_in = first & ~keep.any(1, keepdim=True)
    return replace(
        slots,
        valid=keep | stand_in,
        region=slots.region.masked_fill(stand_in[..., None], 0),
        semantic_region=slots.semantic_region.masked_fill((stand_in & ~slots.valid)[..., None], 0),
    )


def panoptic_logits(semantic: Tensor, slots: OfficialSlots, num_stuff: int, first_row: int = 0) -> Tensor:
    """The volume of panoptic logits: planes are 0 outside their regions, also where they are subtracted.

    Args:
        semantic: float32 [B, S + T, h, W], semantic logits at the resolution of the result, from row `first_row` on.
        slots: those that compete.
        num_stuff: S.
        first_row: where `semantic` begins in the result.

    Returns:
        float32 [B, S + K + 1, h, W].
    """
    height, width = semantic.shape[-2:]
    x, y = pixel_centers((first_row + height, width), semantic.device)
    y = y[first_row:]
    own = torch.where(inside_boxes(slots.semantic_region, x, y), class_logits(semantic, slots.labels, num_stuff), 0)
    mask = torch.where(inside_boxes(slots.region, x, y), paste_masks(slots.mask_logits, slots.frame, x, y), 0)
    valid = slots.valid[..., None, None]
    explained = own.where(valid, NEVER).amax(1, keepdim=True).where(valid.any(1, keepdim=True), 0)
    unknown = semantic[:, num_stuff:].amax(1, keepdim=True) - explained
    return torch.cat([semantic[:, :num_stuff], (own + mask).where(valid, NEVER), unknown], dim=1)


def fuse(semantic_logits: Tensor, slots: OfficialSlots, size: Size, num_stuff: int) -> tuple[Tensor, Tensor]:
    """The panoptic and the semantic map int32 [B, H, W] at the size of the network input, `size` = (H, W).

    Args:
        semantic_logits: float [B, S + T, h, w] at 1/4 of the padded input.
        slots: those that compete.
        size: of the valid network input.
        num_stuff: S.
    """
    grid = Grid.of(size, size, (semantic_logits.shape[2], semantic_logits.shape[3]), semantic_logits.device)
    panoptic, semantic = [], []
    for start in range(0, size[0], BAND):
        low, high, weight = (t[start : start + BAND] for t in (grid.rows.low, grid.rows.high, grid.rows.weight))
        band = upsample(semantic_logits.float(), Grid(Axis(low, high, weight), grid.columns))
        panoptic.append(panoptic_logits(band, slots, num_stuff, start).argmax(1).int())
        semantic.append(band.argmax(1).int())
    return torch.cat(panoptic, 1), torch.cat(semantic, 1)


def resize_map(maps: Tensor, scale: float, size: Size) -> Tensor:
    """Resizes maps [..., h, w] to `size` = (H, W) by nearest neighbour: pixel i shows pixel floor(i scale).

    Args:
        maps: any type.
        scale: pixels of `maps` per pixel of the result.
        size: of the result.
    """
    rows, columns = (
        (torch.arange(new, device=maps.device, dtype=torch.float64) * step).floor().long().clamp(max=old - 1)
        for new, old, step in zip(size, maps.shape[-2:], _steps(maps.shape[-2:], scale, size), strict=True)
    )
    return maps[..., rows[:, None], columns]


def _steps(source: Sequence[int], scale: float, size: Size) -> list[float]:
    """The scale in float32 if the result has the size of the image, give or take a pixel, else that of each axis."""
    is_own_size = all(abs(old / scale - new) <= 1 for old, new in zip(source, size, strict=True))
    ratios = [old / new for old, new in zip(source, size, strict=True)]
    return [float(np.float32(scale))] * 2 if is_own_size else ratios


def majority_owners(channels: Tensor, semantic: Tensor, classes: Tensor, num_stuff: int) -> Tensor:
    """The majority rule: an instance joins the stuff class that at least half of its pixels have in the semantic map.

    Args:
        channels: int32 [B, H, W], the panoptic map.
        semantic: int32 [B, H, W], the semantic head's own map.
        classes: int64 [B, S + K], the semantic channel of each panoptic channel.
        num_stuff: S.

    Returns:
        int64 [B, S + K]: the channel that each one becomes a part of, mostly itself.
    """
    count, bins = classes.shape[1], num_stuff + 1  # The last bin is for all things.
    rows = torch.arange(count, device=classes.device).expand_as(classes)
    pairs = histogram(channels.long() * bins + semantic.clamp(max=num_stuff), (count + 1) * bins)
    pairs = pairs.view(-1, count + 1, bins)[:, :count]
    pixels, stuff = pairs[..., :num_stuff].max(2)
    joins = (2 * pixels >= pairs.sum(2)) & (rows >= num_stuff) & (stuff != classes)
    return stuff.where(joins, rows)


class OfficialPanopticHead(PanopticHead):
    """The panoptic head with the program's rounding, stand-ins and majority rule."""

    def __init__(self, num_stuff: int, num_things: int, config: PanopticConfig) -> None:
        super().__init__(num_stuff, num_things, config)

    def logits(self, semantic: Tensor, boxes: Tensor, labels: Tensor, keep: Tensor, masks: Tensor) -> Tensor:
        """As `PanopticHead.logits`."""
        size = (semantic.shape[2], semantic.shape[3])
        slots = place_slots(_to_last_pixel(boxes) / STRIDE, labels, keep, masks, size)
        return panoptic_logits(semantic.float(), slots, self.num_stuff)

    @staticmethod
    def table(detections: Detections, num_stuff: int) -> tuple[Tensor, Tensor]:
        """As `PanopticHead.table`; the stand-in for "no detection" has the last stuff class."""
        classes, scores = PanopticHead.table(detections, num_stuff)
        classes[:, num_stuff:] = classes[:, num_stuff:].where(detections.valid, num_stuff - 1)
        return classes, scores

    def fuse_images(
        self,
        semantic_logits: Tensor,
        detections: Detections,
        network_sizes: Sequence[Size],
        output_sizes: Sequence[Size],
        scales: Sequence[float],
    ) -> PanopticOutput:
        """Fuses each image at the size of its network input, and resizes the maps.

        Args:
            semantic_logits: [B, S + T, h, w] at 1/4 of the padded input.
            detections: the panoptic list.
            network_sizes: (H, W) of the valid network input of each image; output_sizes: of each result.
            scales: network pixels per pixel of the image.
        """
        classes, scores = self.table(detections, self.num_stuff)
        maps: list[Tensor] = []
        semantics: list[Tensor] = []
        for row, (network, size, scale) in enumerate(zip(network_sizes, output_sizes, scales, strict=True)):
            one = slice(row, row + 1)
            both = self.maps(semantic_logits[one], detections[one], network)
            channels, semantic = (resize_map(m, scale, size) for m in both)
            owner = majority_owners(channels, semantic, classes[one], self.num_stuff)
            own_classes = classes[one].gather(1, owner)
            maps.extend(ids_of_owners(channels, owner, own_classes, self.num_stuff, self.stuff_area_limit))
            semantics.extend(semantic)
        return PanopticOutput(maps, classes, scores, semantics)

    def maps(self, semantic_logits: Tensor, detections: Detections, size: Size) -> tuple[Tensor, Tensor]:
        """The panoptic and the semantic map int32 [B, H, W] at the size of the network input, `size` = (H, W)."""
        boxes, valid, masks = _to_last_pixel(detections.boxes), detections.valid, detections.mask_logits
        with torch.autocast(semantic_logits.device.type, enabled=False):
            slots = place_slots(boxes, detections.labels, valid, masks, size)
            overlap = overlap_fraction(self.overlap_threshold)
            keep = implementation_for(semantic_logits).keep_instances(slots, size, overlap)
            return fuse(semantic_logits, competing(slots, keep), size, self.num_stuff)


def _to_last_pixel(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] that end after their last pixel -> that end with it."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - 1], -1)


class OfficialUPSNet(UPSNet):
    """UPSNet that predicts as the official program does; it is trained as any other.

    For a prediction it takes images at their own size, and resizes them itself.

    Args:
        resize: of images in a prediction.
        parts: as `UPSNet`.
    """

    input_form = InputForm(resizes_images=True)

    def __init__(self, *parts: Any, resize: OfficialResize, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.resize = resize

    def require_fixed_shapes(self) -> None:
        """As `PanopticModel.require_fixed_shapes`: always an error."""
        raise ValueError(
            "model.panoptic.method=official can be neither exported nor recorded as a CUDA graph; add the override "
            "model.panoptic.method=unified"
        )

    def raw(self, images: Tensor, image_sizes: Tensor, *, with_instances: bool = False) -> UPSNetRaw:
        """As `UPSNet.raw`, of images at their own size; boxes are in pixels of the resized images."""
        sizes = [(height, width) for height, width in image_sizes.tolist()]
        network_sizes = torch.tensor(self.resize.network_sizes(sizes)).to(image_sizes.device)
        return super().raw(self.resize.images(images, sizes), network_sizes, with_instances=with_instances)

    def fuse(
        self, raw: UPSNetRaw, image_sizes: Sequence[Size], output_sizes: Sequence[Size], *, with_semantic: bool = False
    ) -> PanopticOutput:
        """As `UPSNet.fuse`."""
        head = self.panoptic_head
        assert isinstance(head, OfficialPanopticHead)
        assert raw.semantic_logits is not None
        assert raw.panoptic is not None
        scales, network = [self.resize.scale(size) for size in image_sizes], self.resize.network_sizes(image_sizes)
        output = head.fuse_images(raw.semantic_logits, raw.panoptic, network, output_sizes, scales)
        instances = self.instances(raw.instances, network, output_sizes)
        return replace(output, semantic=output.semantic if with_semantic else None, instances=instances)
