"""Augmentation with one geometry for the image and the segment map.

Pixels are resized by `cv2.INTER_LINEAR`, ids by looking up the pixel under each new pixel's centre, so that no
id is ever blended and neither drifts. Each transform is a function of (sample, generator) and draws nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from upsnet.structures import Sample

Transform = Callable[[Sample, np.random.Generator], Sample]


def resize_image(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Bilinear resize of uint8 (or float32) [H, W, 3] to `size` = (H, W)."""
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), dtype=image.dtype)


def resize_ids(ids: npt.NDArray[np.int32], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Nearest resize of an id map [H, W] to `size` by index lookup at pixel centres."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(size, ids.shape, strict=True)
    )
    return ids[rows[:, None], columns[None, :]]


def resize_sample(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resizes the image and the segment map to `size` = (H, W)."""
    if size == sample.size:
        return sample
    return replace(sample, image=resize_image(sample.image, size), segment_map=resize_ids(sample.segment_map, size))


def fit_size(size: tuple[int, int], short_side: int, max_side: int) -> tuple[int, int]:
    """The (H, W) with the shorter side at `short_side`, unless the longer one would pass `max_side`."""
    scale = min(short_side / min(size), max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_exactly(image: npt.NDArray[np.uint8], short_side: int, max_side: int) -> npt.NDArray[np.float32]:
    """Bilinear resize of uint8 [H, W, 3] without rounding, by one scale for both axes, as the official UPSNet does.

    Pixel i lies at (i + 1/2) / scale - 1/2, whatever the rounding of the size.
    """
    scale = exact_scale(image.shape[:2], short_side, max_side)
    if round(scale * min(image.shape[:2])) < 1:
        raise ValueError(f"image of {image.shape[1]} x {image.shape[0]} is too narrow for {max_side} pixels a side")
    pixels = image.astype(np.float32)
    resized = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.float32)


def exact_scale(size: tuple[int, int], short_side: int, max_side: int) -> float:
    """`short_side` / shorter side, unless the longer one would then round to more than `max_side`."""
    scale = short_side / min(size)
    return max_side / max(size) if round(scale * max(size)) > max_side else scale


def pad_images(
    images: Sequence[np.ndarray], divisor: int, size: tuple[int, int] | None = None, min_side: int = 0
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Stacks [h, w, 3] images of any sizes into [B, 3, H, W] with zeros at the bottom and the right.

    Args:
        images: uint8 or float32.
        divisor: H and W become multiples of it, as small as possible.
        size: (H, W), given instead.
        min_side: least H and W otherwise, a multiple of the divisor.

    Returns:
        The batch (channels last in memory), and the valid (H, W) of each image.
    """
    longest = (max(image.shape[axis] for image in images) for axis in (0, 1))
    height, width = size or (max(min_side, -(-side // divisor) * divisor) for side in longest)
    batch = np.zeros((len(images), height, width, 3), dtype=images[0].dtype)
    for slot, image in zip(batch, images, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    sizes = [(int(image.shape[0]), int(image.shape[1])) for image in images]
    return torch.from_numpy(batch).permute(0, 3, 1, 2), sizes


class ResizeShortSide:
    """Resizes so that the shorter side is one of `short_sides`, and the longer at most `max_side` pixels."""

    def __init__(self, short_sides: Sequence[int], max_side: int) -> None:
        self.short_sides = tuple(short_sides)
        self.max_side = max_side

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draws one of the sides."""
        short_side = self.short_sides[int(rng.integers(len(self.short_sides)))]
        return resize_sample(sample, fit_size(sample.size, short_side, self.max_side))


class JitterCrop:
    """Large-scale jitter (Ghiasi et al. 2021, sec. 3), log-uniform in scale, then a random crop of a fixed size.

    Args:
        crop_size: (H, W); a smaller image is kept whole (the batch pads it).
        scale_range: factors on the scale at which the image just fits into the crop.
    """

    def __init__(self, crop_size: tuple[int, int], scale_range: tuple[float, float]) -> None:
        self.crop_size = crop_size
        self.scale_range = scale_range

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draws scale and window."""
        fit = min(self.crop_size[0] / sample.size[0], self.crop_size[1] / sample.size[1])
        low, high = self.scale_range
        scale = fit * float(np.exp(rng.uniform(np.log(low), np.log(high))))
        sample = resize_sample(sample, (max(1, round(sample.size[0] * scale)), max(1, round(sample.size[1] * scale))))
        top, left = (int(rng.integers(max(0, s - c) + 1)) for s, c in zip(sample.size, self.crop_size, strict=True))
        window = slice(top, top + self.crop_size[0]), slice(left, left + self.crop_size[1])
        return replace(sample, image=sample.image[window], segment_map=sample.segment_map[window])


def horizontal_flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """Mirrors left and right with probability 1/2."""
    if rng.random() < 0.5:
        return replace(sample, image=sample.image[:, ::-1], segment_map=sample.segment_map[:, ::-1])
    return sample


def dihedral_flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """One of the eight symmetries of the square, for images without an up (microscopy, aerial)."""
    sample = horizontal_flip(sample, rng)
    if rng.random() < 0.5:
        sample = replace(sample, image=sample.image[::-1], segment_map=sample.segment_map[::-1])
    if rng.random() < 0.5:
        sample = replace(sample, image=sample.image.swapaxes(0, 1), segment_map=sample.segment_map.T)
    return sample


class Photometric:
    """Random brightness, contrast and saturation (factors within 1 +- `strength`) and hue (+- `hue` turns)."""

    def __init__(self, strength: float, hue: float) -> None:
        self.strength = strength
        self.hue = hue

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Draws the factors."""
        image = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        for adjust in (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation):
            image = adjust(image, float(rng.uniform(1 - self.strength, 1 + self.strength)))
        if self.hue:
            image = tv.adjust_hue(image, float(rng.uniform(-self.hue, self.hue)))
        return replace(sample, image=image.numpy().transpose(1, 2, 0))
