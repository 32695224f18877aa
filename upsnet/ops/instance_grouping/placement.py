"""Where the pixels of the result lie between the cells of the network's maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upsnet.ops.panoptic_fusion.slots import Axis, Grid
from upsnet.ops.sizes import Size


@dataclass(frozen=True)
class Placement:
    """The sizes that place maps of `cells` over the pixels of a result; all are (H, W).

    The result shows the valid part of the input, resized with aligned edges, as images are. The maps show the whole
    input: with `align_corners` the centres of their corner cells are the centres of the input's corner pixels, without
    it their edges are the input's edges.

    Attributes:
        cells: of the maps.
        input_size: of the padded network input.
        image_size: of the valid part of the input, in its upper left corner.
        output_size: of the result.
        align_corners: how the maps lie on the input.
    """

    cells: Size
    input_size: Size
    image_size: Size
    output_size: Size
    align_corners: bool

    def crop(self, maps: Tensor) -> Tensor:
        """The cells of maps [..., h, w] that touch the image: the padding must have no effect on the result."""
        rows, columns = (self._used(axis) for axis in range(2))
        return maps[..., :rows, :columns]

    def grid(self, device: torch.device) -> Grid:
        """The pixels of the result over the cells that `crop` keeps."""
        return Grid(self._axis(0, device), self._axis(1, device))

    def pixels_per_cell(self) -> tuple[float, float]:
        """By how much an offset in cells grows along y and x when it is given in pixels of the result."""
        y, x = (
            self._span(axis)[1] * self.output_size[axis] / (self._span(axis)[0] * self.image_size[axis])
            for axis in range(2)
        )
        return y, x

    def _span(self, axis: int) -> tuple[int, int]:
        """Two lengths that are equal, in cells and in pixels of the input."""
        cells, pixels = self.cells[axis], self.input_size[axis]
        return (max(cells - 1, 1), max(pixels - 1, 1)) if self.align_corners else (cells, pixels)

    def _used(self, axis: int) -> int:
        """Cells that touch the image."""
        cells, pixels = self._span(axis)
        if self.align_corners:
            used = 1 - (1 - self.image_size[axis]) * cells // pixels
        else:
            used = -(-self.image_size[axis] * cells // pixels)
        return min(used, self.cells[axis])

    def _axis(self, axis: int, device: torch.device) -> Axis:
        """Positions are fractions, computed in integers, so that every device and form gets the same weights.

        Pixel i of the result has its centre at u = (i + 1/2) image / output - 1/2 pixels of the input, and at
        u cells / pixels (corners aligned) or (u + 1/2) cells / pixels - 1/2 cells of the maps.
        """
        cells, pixels = self._span(axis)
        image, output, last = self.image_size[axis], self.output_size[axis], self._used(axis) - 1
        unit = 2 * output * pixels
        position = (2 * torch.arange(output, device=device) + 1) * image * cells
        position = (position - output * (cells if self.align_corners else pixels)).clamp(0, last * unit)
        low = position // unit
        return Axis(low, (low + 1).clamp(max=last), (position - low * unit).float() / unit)
