"""Augmentation with one geometry for the image and the segment map, decided before either is read.

A step draws from a generator and refines a `Geometry`; `Geometry.apply` then makes the pixels that are wanted, and no
others. Pixels are resampled by `resample`; ids are looked up under the centre of each new pixel, so that no id is ever
blended and neither drifts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from upsnet.ops.sizes import MULTIPLES_OF_32, InputForm
from upsnet.structures import Sample

REDUCTIONS = (8, 4, 2)
"""Factors by which a JPEG can be read smaller (`io.images.read_image`)."""
REDUCTION_GAP = 1.5
"""An image is reduced by a factor only if each side of the result is at least this many times the wanted side."""
WARP_COST = 4
"""Pixels that `cv2.resize` makes while `cv2.warpAffine` makes one."""

GREY = np.array([0.2989, 0.587, 0.114])
"""Weight of red, green and blue in brightness, as torchvision has it."""


def reduction_for(source: tuple[int, int], scaled: tuple[int, int]) -> int:
    """The factor (8, 4, 2, 1) by which an image of size `source` is reduced before it is resized to `scaled`."""
    for factor in REDUCTIONS:
        if all(factor * REDUCTION_GAP * new <= old for new, old in zip(scaled, source, strict=True)):
            return factor
    return 1


def resample(
    image: npt.NDArray[np.uint8],
    source: tuple[int, int],
    scaled: tuple[int, int],
    corner: tuple[int, int] = (0, 0),
    window: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Resizes an image; training, evaluation and prediction use this one function.

    An image that is enlarged is interpolated linearly (OpenCV). An image that shrinks is filtered, so that fine texture
    does not become a pattern: it is reduced to the means of blocks (`reduction_for`), and then by a triangle filter as
    wide as the scale (Pillow). Pixel i of an axis lies at (i + 1/2) old / new - 1/2.

    Args:
        image: uint8 [H, W, 3], of size `source`, or reduced already when it was read: each side divided by
            `reduction_for` and rounded up.
        source: (H, W) of the whole image.
        scaled: (H, W) that the whole image would have.
        corner, window: (top, left) and (H, W) of the part that is made; by default all of it.

    Returns:
        uint8 of the size `window`.

    Raises:
        ValueError: the image has neither size.
    """
    (top, left), (height, width) = corner, window or scaled
    factor = reduction_for(source, scaled)
    reduced = (-(-source[0] // factor), -(-source[1] // factor))
    if image.shape[:2] not in (source, reduced):
        raise ValueError(f"size {image.shape[:2]}, expected {source} or {reduced}")
    if scaled[0] * scaled[1] < source[0] * source[1]:
        if image.shape[:2] != reduced:
            image = _block_means(image, factor)
        y, x = (old / new / factor for old, new in zip(source, scaled, strict=True))
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return np.asarray(
            Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box), dtype=np.uint8
        )
    if scaled[0] * scaled[1] <= WARP_COST * height * width:
        if image.shape[:2] != scaled:
            image = np.asarray(cv2.resize(image, scaled[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        return image[top : top + height, left : left + width]
    y, x = (old / new for old, new in zip(source, scaled, strict=True))
    matrix = np.array([[x, 0, (left + 0.5) * x - 0.5], [0, y, (top + 0.5) * y - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, dtype=np.uint8)


def _block_means(image: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """The means of blocks of `factor` squared, as JPEG has them: the last row and column are repeated at the end."""
    height, width = image.shape[:2]
    if height % factor or width % factor:
        image = np.asarray(
            cv2.copyMakeBorder(image, 0, -height % factor, 0, -width % factor, cv2.BORDER_REPLICATE), dtype=np.uint8
        )
    size = (image.shape[1] // factor, image.shape[0] // factor)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def fit_size(size: tuple[int, int], short_side: int, max_side: int) -> tuple[int, int]:
    """The (H, W) with the shorter side at `short_side`, unless the longer one would pass `max_side`."""
    scale = min(short_side / min(size), max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def pad_images(
    images: Sequence[np.ndarray],
    divisor: int,
    size: tuple[int, int] | None = None,
    min_side: int = 0,
    form: InputForm = MULTIPLES_OF_32,
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Stacks [h, w, 3] images of any sizes into [B, 3, H, W] with zeros at the bottom and the right.

    Args:
        images: uint8 or float32.
        divisor: H and W become multiples of it (plus `form.remainder`), as small as possible.
        size: (H, W), given instead.
        min_side: least H and W otherwise.
        form: of the architecture.

    Returns:
        The batch (channels last in memory), and the valid (H, W) of each image.
    """
    height, width = (max(min_side, *(image.shape[axis] for image in images)) for axis in (0, 1))
    height, width = size or form.padded_size((height, width), divisor)
    batch = np.zeros((len(images), height, width, 3), dtype=images[0].dtype)
    for slot, image in zip(batch, images, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
    return torch.from_numpy(batch).permute(0, 3, 1, 2), sizes


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of an augmented picture come from: scale the source, cut a window, mirror, transpose.

    Attributes:
        source: (H, W) of the picture.
        scaled: (H, W) that all of it would have.
        corner: (top, left) of the window among the scaled pixels.
        window: (H, W) of it.
        flip_x, flip_y: mirror left and right, top and bottom.
        transpose: then exchange the axes.
    """

    source: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    window: tuple[int, int]
    flip_x: bool = False
    flip_y: bool = False
    transpose: bool = False

    @classmethod
    def whole(cls, source: tuple[int, int], scaled: tuple[int, int] | None = None) -> Geometry:
        """A whole picture, resized to `scaled` if given."""
        return cls(source, scaled or source, (0, 0), scaled or source)

    @property
    def reduction(self) -> int:
        """The factor by which the image may be read smaller."""
        return reduction_for(self.source, self.scaled)

    def apply(self, sample: Sample) -> Sample:
        """Makes the augmented sample.

        Args:
            sample: of the size `source`; its image may have been read smaller by `reduction`.

        Raises:
            ValueError: its image or its map has another size.
        """
        if sample.size != self.source:
            raise ValueError(f"{sample.file_name}: size {sample.size}, expected {self.source}")
        return replace(sample, image=self._image(sample), segment_map=self._ids(sample.segment_map))

    def _ids(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The source pixel under the centre of each new one."""
        rows, columns = (
            np.minimum(((np.arange(start, start + length) + 0.5) * old / new).astype(np.int64), old - 1)
            for start, length, old, new in zip(self.corner, self.window, self.source, self.scaled, strict=True)
        )
        rows, columns = rows[:: -1 if self.flip_y else 1], columns[:: -1 if self.flip_x else 1]
        if len(rows) * ids.shape[1] < len(columns) * ids.shape[0]:  # the axis that leaves fewer pixels goes first
            ids = ids.take(rows, axis=0).take(columns, axis=1)
        else:
            ids = ids.take(columns, axis=1).take(rows, axis=0)
        return np.ascontiguousarray(ids.T) if self.transpose else ids

    def _image(self, sample: Sample) -> npt.NDArray[np.uint8]:
        try:
            image = resample(sample.image, self.source, self.scaled, self.corner, self.window)
        except ValueError as error:
            raise ValueError(f"{sample.file_name}: {error}") from None
        if self.flip_x or self.flip_y:
            image = np.asarray(cv2.flip(image, 0 if not self.flip_x else -1 if self.flip_y else 1), dtype=np.uint8)
        return np.asarray(cv2.transpose(image) if self.transpose else image, dtype=np.uint8)


GeometryStep = Callable[[Geometry, np.random.Generator], Geometry]


class ResizeShortSide:
    """Resizes so that the shorter side is one of `short_sides`, and the longer at most `max_side` pixels."""

    def __init__(self, short_sides: Sequence[int], max_side: int) -> None:
        self.short_sides = tuple(short_sides)
        self.max_side = max_side

    def __call__(self, geometry: Geometry, rng: np.random.Generator) -> Geometry:
        """Draws one of the sides."""
        short_side = self.short_sides[int(rng.integers(len(self.short_sides)))]
        return Geometry.whole(geometry.source, fit_size(geometry.source, short_side, self.max_side))


class JitterCrop:
    """Large-scale jitter (Ghiasi et al. 2021, sec. 3), log-uniform in scale, then a random crop of a fixed size.

    Args:
        crop_size: (H, W); a smaller image is kept whole (the batch pads it).
        scale_range: factors on the scale at which the image just fits into the crop.
    """

    def __init__(self, crop_size: tuple[int, int], scale_range: tuple[float, float]) -> None:
        self.crop_size = crop_size
        self.scale_range = scale_range

    def __call__(self, geometry: Geometry, rng: np.random.Generator) -> Geometry:
        """Draws scale and window."""
        source = geometry.source
        fit = min(self.crop_size[0] / source[0], self.crop_size[1] / source[1])
        low, high = self.scale_range
        scale = fit * float(np.exp(rng.uniform(np.log(low), np.log(high))))
        scaled = max(1, round(source[0] * scale)), max(1, round(source[1] * scale))
        top, left = (int(rng.integers(max(0, s - c) + 1)) for s, c in zip(scaled, self.crop_size, strict=True))
        window = min(scaled[0], self.crop_size[0]), min(scaled[1], self.crop_size[1])
        return Geometry(source, scaled, (top, left), window)


def horizontal_flip(geometry: Geometry, rng: np.random.Generator) -> Geometry:
    """Mirrors left and right with probability 1/2."""
    return replace(geometry, flip_x=bool(rng.random() < 0.5))


def dihedral_flip(geometry: Geometry, rng: np.random.Generator) -> Geometry:
    """One of the eight symmetries of the square, for images without an up (microscopy, aerial)."""
    flip_x, flip_y, transpose = (bool(rng.random() < 0.5) for _ in range(3))
    return replace(geometry, flip_x=flip_x, flip_y=flip_y, transpose=transpose)


class Photometric:
    """Random brightness, contrast and saturation (factors within 1 +- `strength`) and hue (+- `hue` turns).

    Each is torchvision's adjustment of that name, but for the rounding of its result.
    """

    def __init__(self, strength: float, hue: float) -> None:
        self.strength = strength
        self.hue = hue

    def __call__(self, image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Draws the factors, and changes uint8 [H, W, 3] by them."""
        brightness, contrast, saturation = (float(rng.uniform(1 - self.strength, 1 + self.strength)) for _ in range(3))
        image = _mix_channels(image, brightness * np.eye(3))
        mean = float(np.dot(cv2.mean(image)[:3], GREY))
        image = _mix_channels(image, contrast * np.eye(3), mean * (1 - contrast))
        image = _mix_channels(image, saturation * np.eye(3) + (1 - saturation) * GREY)
        if self.hue:
            planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            image = tv.adjust_hue(planes, float(rng.uniform(-self.hue, self.hue))).numpy().transpose(1, 2, 0)
        return image


def _mix_channels(
    image: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64], offset: float = 0
) -> npt.NDArray[np.uint8]:
    """matrix [3, 3] x pixel + offset, rounded and cut to 0..255."""
    return np.asarray(cv2.transform(image, np.column_stack([matrix, np.full(3, offset)])), dtype=np.uint8)


@dataclass(frozen=True)
class Augmentation:
    """The training augmentation: geometry first, then colour.

    Attributes:
        steps: refine the geometry in turn.
        photometric: changes the colours.
    """

    steps: Sequence[GeometryStep] = ()
    photometric: Photometric | None = None

    def plan(self, size: tuple[int, int], rng: np.random.Generator) -> Geometry:
        """Draws the geometry of a picture of `size` = (H, W)."""
        geometry = Geometry.whole(size)
        for step in self.steps:
            geometry = step(geometry, rng)
        return geometry

    def apply(self, geometry: Geometry, sample: Sample, rng: np.random.Generator) -> Sample:
        """Makes the augmented sample: `rng` is that of `plan`, which draws the colours next."""
        sample = geometry.apply(sample)
        return sample if self.photometric is None else replace(sample, image=self.photometric(sample.image, rng))
