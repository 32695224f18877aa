"""Rules for the sizes of images."""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int]
"""(H, W) in pixels."""


@dataclass(frozen=True)
class InputForm:
    """The form in which an architecture takes images.

    Attributes:
        multiple: the height and the width of a batch are `n * multiple + remainder`.
        remainder: 0; 1 for an architecture that aligns the corners of its grids.
        resizes_images: for a prediction, the model takes images at their own size and resizes them itself.
    """

    multiple: int = 32
    remainder: int = 0
    resizes_images: bool = False

    def padded_size(self, size: Size, multiple: int | None = None) -> Size:
        """The smallest size that the architecture takes and that holds `size` = (H, W).

        Args:
            size: (H, W).
            multiple: a multiple of the architecture's, in its place.
        """
        step = multiple or self.multiple
        height, width = (-(-(side - self.remainder) // step) * step + self.remainder for side in size)
        return height, width


MULTIPLES_OF_32 = InputForm()
"""The form of most architectures."""
