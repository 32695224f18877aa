"""Views of an image for test-time augmentation: the image at several scales, and mirrored.

The base is the network input of a prediction without augmentation. `View` converts boxes, masks and maps between a view
and the base. All views of a batch have the same base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upsnet.ops.panoptic_fusion.slots import Axis
from upsnet.ops.sizes import InputForm, Size

MAX_SCALES = 16
SCALE_LIMITS = (0.1, 10.0)
GRID = 4
"""Network-input pixels per cell of the finest maps. With mirroring, the size of a view is a whole number of cells, so
that the cells of an image and of its mirror image coincide."""


@dataclass(frozen=True)
class ViewPlan:
    """The views whose predictions are averaged.

    Args:
        scales: factors on the size of the network input, one for each view.
        flip: also use the mirror image (left and right) of each view.

    Raises:
        ValueError: there is no scale, a scale appears twice, there are more than `MAX_SCALES`, or a scale is outside
            `SCALE_LIMITS`.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        low, high = SCALE_LIMITS
        found = " ".join(f"{scale:g}" for scale in self.scales) or "none"
        if not self.scales or not all(math.isfinite(s) and low <= s <= high for s in self.scales):
            raise ValueError(f"scales of the views: {found}, expected numbers from {low:g} to {high:g}")
        if len(set(self.scales)) != len(self.scales) or len(self.scales) > MAX_SCALES:
            raise ValueError(f"scales of the views: {found}, expected at most {MAX_SCALES} different numbers")

    def __str__(self) -> str:
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"scales {scales}, mirrored too" if self.flip else f"scales {scales}"

    def sizes(self, base: Size, form: InputForm) -> list[Size]:
        """(H, W) of the view at each scale, for an image whose base has the size `base`."""
        return [self._fit((base[0] * scale, base[1] * scale), form) for scale in self.scales]

    def base_size(self, size: Size, form: InputForm) -> Size:
        """(H, W) of the base, for an image whose network input without augmentation has `size`."""
        return self._fit(size, form)

    def _fit(self, size: tuple[float, float], form: InputForm) -> Size:
        if not self.flip:
            return max(1, round(size[0])), max(1, round(size[1]))
        rest = form.remainder
        height, width = (max(1, round((side - rest) / GRID)) * GRID + rest for side in size)
        return height, width


@dataclass(frozen=True)
class View:
    """One view of a batch of B images.

    Attributes:
        images: [B, 3, H, W] as `PanopticModel.raw` takes them, mirrored if `is_flipped`.
        image_sizes: int64 [B, 2], (H, W) of the valid part of each image.
        sizes: the same numbers in host memory.
        base_sizes: (H, W) of the valid part of each image in the base, in host memory.
        base_input: (H, W) of the padded base.
        is_flipped: left and right are exchanged.
    """

    images: Tensor
    image_sizes: Tensor
    sizes: Sequence[Size]
    base_sizes: Sequence[Size]
    base_input: Size
    is_flipped: bool = False

    @property
    def is_base(self) -> bool:
        """Whether the view is the base itself."""
        return not self.is_flipped and self._input_size == self.base_input and list(self.sizes) == list(self.base_sizes)

    @property
    def _input_size(self) -> Size:
        return self.images.shape[2], self.images.shape[3]

    def flipped(self) -> View:
        """Returns the mirror image of the view. The padding stays at the right."""
        width = self.images.shape[3]
        column = torch.arange(width, device=self.images.device)
        mirrored = self.image_sizes[:, 1:] - 1 - column
        index = torch.where(mirrored >= 0, mirrored, column)[:, None, None].expand_as(self.images)
        images = self.images.gather(3, index)
        return View(images, self.image_sizes, self.sizes, self.base_sizes, self.base_input, not self.is_flipped)

    def ratios(self) -> list[tuple[float, float]]:
        """Factors (y, x) that convert lengths in the view to lengths in the base, for each image."""
        return [(base[0] / own[0], base[1] / own[1]) for own, base in zip(self.sizes, self.base_sizes, strict=True)]

    def boxes_to_base(self, boxes: Tensor) -> Tensor:
        """Boxes float32 [B, ..., 4], XYXY in pixels of the view -> in pixels of the base."""
        factors, widths = self._factors(boxes), self._widths(boxes, self.base_sizes)
        return self._mirrored(boxes * factors, widths)

    def boxes_from_base(self, boxes: Tensor) -> Tensor:
        """The inverse of `boxes_to_base`."""
        factors, widths = self._factors(boxes), self._widths(boxes, self.base_sizes)
        return self._mirrored(boxes, widths) / factors

    def masks_to_base(self, masks: Tensor) -> Tensor:
        """Masks [..., M, M] of boxes in the view -> masks of the same boxes in the base."""
        return masks.flip(-1) if self.is_flipped else masks

    def maps_to_base(self, maps: Tensor, *, align_corners: bool = False) -> Tensor:
        """Resamples maps linearly onto the cells of the base.

        Args:
            maps: float [B, C, h, w] of the padded view: h and w are 1/4 of the input, rounded as in the architecture.
            align_corners: True: the centres of the corner cells are the centres of the input's corner pixels. False:
                the edges of the maps are the edges of the input.

        Returns:
            float32 [B, C, h', w'] on the base. Cells in the padding repeat the last cells of the image.
        """
        maps = maps.float()
        if self.is_base:
            return maps
        rest = int(align_corners)
        cells = tuple(-(-(side - rest) // GRID) + rest for side in self.base_input)
        result = maps.new_empty(*maps.shape[:2], *cells)
        for one, image in zip(result, range(len(maps)), strict=True):
            rows, columns = (self._axis(axis, image, maps, cells[axis], align_corners) for axis in range(2))
            found = torch.lerp(maps[image][:, rows.low], maps[image][:, rows.high], rows.weight[:, None])
            torch.lerp(found[:, :, columns.low], found[:, :, columns.high], columns.weight, out=one)
        return result

    def offsets_to_base(self, offsets: Tensor, *, align_corners: bool = False) -> Tensor:
        """Like `maps_to_base`, for vectors (dy, dx) [B, 2, h, w] in cells of the view -> in cells of the base."""
        rows = [(y, -x if self.is_flipped else x) for y, x in self.ratios()]
        factors = offsets.new_tensor(rows, dtype=torch.float32)[..., None, None]
        return self.maps_to_base(offsets, align_corners=align_corners) * factors

    def _axis(self, axis: int, image: int, maps: Tensor, base_cells: int, align_corners: bool) -> Axis:
        """The positions of the base's cells between the view's cells, computed on the host in float64."""
        cells, pixels, valid = maps.shape[2 + axis], self._input_size[axis], self.sizes[image][axis]
        base_pixels, base_valid = self.base_input[axis], self.base_sizes[image][axis]
        index = torch.arange(base_cells, dtype=torch.float64)
        if align_corners:
            pixel = index * (max(base_pixels - 1, 1) / max(base_cells - 1, 1))
        else:
            pixel = (index + 0.5) * (base_pixels / base_cells) - 0.5
        pixel = (pixel + 0.5) * (valid / base_valid) - 0.5
        if self.is_flipped and axis == 1:
            pixel = valid - 1 - pixel
        if align_corners:
            per_pixel = max(cells - 1, 1) / max(pixels - 1, 1)
            position, last = pixel * per_pixel, (valid - 1) * per_pixel
        else:
            position, last = (pixel + 0.5) * (cells / pixels) - 0.5, valid * cells / pixels - 1
        # Rounding removes float64 errors: where two cells coincide, the weight of the next cell is exactly 0.
        position = position.clamp(0, min(math.ceil(last - 1e-9), cells - 1)).mul(2**20).round().div(2**20)
        low = position.floor()
        high = (low + 1).clamp(max=cells - 1)
        device = maps.device
        return Axis(low.long().to(device), high.long().to(device), (position - low).float().to(device))

    def _factors(self, boxes: Tensor) -> Tensor:
        rows = [(x, y, x, y) for y, x in self.ratios()]
        return boxes.new_tensor(rows).view(len(rows), *[1] * (boxes.ndim - 2), 4)

    @staticmethod
    def _widths(boxes: Tensor, sizes: Sequence[Size]) -> Tensor:
        return boxes.new_tensor([width for _, width in sizes]).view(len(sizes), *[1] * (boxes.ndim - 2))

    def _mirrored(self, boxes: Tensor, widths: Tensor) -> Tensor:
        if not self.is_flipped:
            return boxes
        x1, y1, x2, y2 = boxes.unbind(-1)
        return torch.stack([widths - x2, y1, widths - x1, y2], -1)
