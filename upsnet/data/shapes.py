"""`shapes`: a generated data set that is small, exact and hard enough to tell a good model from a bad one.

Every image is a function of (seed, index): three textured stuff classes behind noisy horizons; one to seven
rotated, textured, occluding things of four classes; a void blob in 30 % and a crowd of tiny things in 12 % of
the images; lighting and noise over all. Nothing is stored; `write_samples` puts it on the disk in COCO layout.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.structures import Sample

FloatImage = npt.NDArray[np.float64]

CATEGORIES = CategorySet.from_json(
    [
        {"id": 1, "name": "sky", "isthing": 0, "color": [120, 170, 230]},
        {"id": 2, "name": "grass", "isthing": 0, "color": [80, 160, 80]},
        {"id": 3, "name": "road", "isthing": 0, "color": [128, 128, 128]},
        {"id": 4, "name": "disc", "isthing": 1, "color": [220, 40, 40]},
        {"id": 5, "name": "square", "isthing": 1, "color": [250, 140, 20]},
        {"id": 6, "name": "triangle", "isthing": 1, "color": [240, 220, 30]},
        {"id": 7, "name": "star", "isthing": 1, "color": [160, 60, 200]},
    ],
    source="shapes",
)
_STUFF_HUES = ((0.58, 0.45), (0.33, 0.50), (0.58, 0.05))
"""(hue, saturation) of sky, grass and road: no thing has them."""
_THING_HUES = (0.0, 0.085, 0.155, 0.80)


class Shapes:
    """The generated data set.

    Args:
        num_images: how many.
        image_size: (H, W) in pixels; radii grow with the shorter side (7 to 30 at 128).
        seed: other seeds are other data sets; training and validation take different ones.
    """

    def __init__(self, num_images: int, image_size: tuple[int, int] = (128, 128), seed: int = 0) -> None:
        if num_images < 1 or min(image_size) < 16:
            raise ValueError(f"shapes: num_images {num_images}, image_size {image_size}; expected >= 1 and sides >= 16")
        self.categories = CATEGORIES
        self.num_images = num_images
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return self.num_images

    def size(self, index: int) -> tuple[int, int]:
        """(H, W), the same for every image."""
        return self.image_size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num_images:
            raise IndexError(f"shapes: index {index}, expected 0..{self.num_images - 1}")
        return _Scene(np.random.default_rng([self.seed, index]), self.image_size).sample(index)


class _Scene:
    """Draws one image, back to front."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = size
        self.scale = min(size) / 128
        self.image: FloatImage = np.zeros((*size, 3))
        self.ids = np.zeros(size, dtype=np.int32)
        self.classes: list[int] = []
        self.crowd: list[bool] = []

    def sample(self, index: int) -> Sample:
        self._stuff()
        self._things()
        if self.rng.random() < 0.12:
            self._crowd()
        if self.rng.random() < 0.30:
            self._void()
        self._light()
        return self._finish(index)

    def _stuff(self) -> None:
        x = np.arange(self.width) / self.width
        edges = [np.full(self.width, -1.0)]
        for low, high in ((0.15, 0.45), (0.55, 0.85)):
            waves = [
                self.rng.uniform(0.02, 0.06)
                / k
                * np.sin(2 * np.pi * (k * x * self.rng.uniform(0.6, 1.4) + self.rng.random()))
                for k in (1, 2, 5)
            ]
            jagged = self.rng.normal(0, 0.008, self.width)
            edges.append((self.rng.uniform(low, high) + sum(waves) + jagged) * self.height)
        rows = np.arange(self.height)[:, None] + 0.5
        band = (rows > edges[1]).astype(np.int64) + (rows > edges[2])
        for channel in range(3):
            hue, saturation = _STUFF_HUES[channel]
            color = _color(self.rng, hue, saturation, value=(0.45, 0.8))
            region = band == channel
            self._paint(region, color * self._texture(region.shape)[..., None], (slice(None), slice(None)), channel)

    def _things(self) -> None:
        previous: tuple[float, float, float] | None = None
        for _ in range(self.rng.integers(1, 8)):
            radius = float(np.exp(self.rng.uniform(np.log(7), np.log(30)))) * self.scale
            if previous is not None and self.rng.random() < 0.4:
                angle, distance = (
                    self.rng.uniform(0, 2 * np.pi),
                    self.rng.uniform(0.4, 0.9) * (previous[2] + radius) * 0.7,
                )
                cx, cy = previous[0] + distance * np.cos(angle), previous[1] + distance * np.sin(angle)
                cx, cy = float(np.clip(cx, 0, self.width)), float(np.clip(cy, 0, self.height))
            else:
                cx, cy = self.rng.uniform(0.05, 0.95) * self.width, self.rng.uniform(0.05, 0.95) * self.height
            self._thing(int(self.rng.integers(4)), cx, cy, radius, segment=None)
            previous = (cx, cy, radius)

    def _crowd(self) -> None:
        kind = int(self.rng.integers(4))
        cx, cy = self.rng.uniform(0.2, 0.8) * self.width, self.rng.uniform(0.2, 0.8) * self.height
        self.classes.append(3 + kind)
        self.crowd.append(True)
        segment = len(self.classes)
        for _ in range(self.rng.integers(6, 11)):
            x, y = cx + self.rng.normal(0, 10) * self.scale, cy + self.rng.normal(0, 6) * self.scale
            self._thing(kind, x, y, self.rng.uniform(2.5, 4.5) * self.scale, segment)

    def _void(self) -> None:
        radius = self.rng.uniform(8, 20) * self.scale
        wobble = [(self.rng.uniform(0.05, 0.2), self.rng.uniform(0, 2 * np.pi)) for _ in range(3)]
        x, y, window = self._window(self.rng.uniform(0, self.width), self.rng.uniform(0, self.height), 1.6 * radius)
        angle = np.arctan2(y, x)
        edge = 1 + sum(a * np.sin((k + 2) * angle + p) for k, (a, p) in enumerate(wobble))
        inside = np.hypot(x, y) < radius * edge
        color = _color(self.rng, self.rng.random(), 0.3, value=(0.2, 0.6))
        self.image[window][inside] = (color * self._texture(inside.shape)[..., None])[inside]
        self.ids[window][inside] = 0

    def _thing(self, kind: int, cx: float, cy: float, radius: float, segment: int | None) -> None:
        x, y, window = self._window(cx, cy, 1.1 * radius)
        angle = self.rng.uniform(0, 2 * np.pi)
        u = (np.cos(angle) * x + np.sin(angle) * y) / radius
        v = (np.cos(angle) * y - np.sin(angle) * x) / radius
        inside = _OUTLINES[kind](u, v)
        color = _color(self.rng, _THING_HUES[kind] + self.rng.uniform(-0.025, 0.025), 0.75, value=(0.55, 0.95))
        texture = self._texture(inside.shape, u * radius / self.scale, v * radius / self.scale)
        self._paint(inside, color * texture[..., None], window, 3 + kind, segment)

    def _paint(
        self,
        region: npt.NDArray[np.bool_],
        pixels: FloatImage,
        window: tuple[slice, slice],
        channel: int,
        segment: int | None = None,
    ) -> None:
        if segment is None:
            self.classes.append(channel)
            self.crowd.append(False)
            segment = len(self.classes)
        self.image[window][region] = pixels[region]
        self.ids[window][region] = segment

    def _window(self, cx: float, cy: float, reach: float) -> tuple[FloatImage, FloatImage, tuple[slice, slice]]:
        """Pixel centres relative to (cx, cy) in the part of the image within `reach`."""
        x1, x2 = (int(np.clip(v, 0, self.width)) for v in (np.floor(cx - reach), np.ceil(cx + reach) + 1))
        y1, y2 = (int(np.clip(v, 0, self.height)) for v in (np.floor(cy - reach), np.ceil(cy + reach) + 1))
        x, y = np.arange(x1, x2)[None, :] + 0.5 - cx, np.arange(y1, y2)[:, None] + 0.5 - cy
        return *np.broadcast_arrays(x, y), (slice(y1, y2), slice(x1, x2))  # type: ignore[return-value]

    def _texture(self, shape: tuple[int, ...], u: FloatImage | None = None, v: FloatImage | None = None) -> FloatImage:
        """Brightness factor around 1: plain, stripes, checks or noise; stuff (no `u`) takes the image's axes."""
        if u is None or v is None:
            v, u = np.meshgrid(np.arange(shape[0]) / self.scale, np.arange(shape[1]) / self.scale, indexing="ij")
        kind, strength, period = self.rng.integers(4), self.rng.uniform(0.08, 0.3), self.rng.uniform(3, 9)
        if kind == 0:
            return np.ones(shape)
        if kind == 1:
            return 1 + strength * np.sign(np.sin(2 * np.pi * u / period))
        if kind == 2:
            return 1 + strength * np.sign(np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period))
        return 1 + strength * _smooth_noise(self.rng, shape, cell=max(1.0, period * self.scale / 2))

    def _light(self) -> None:
        angle, slope = self.rng.uniform(0, 2 * np.pi), self.rng.uniform(0, 0.5)
        y, x = np.arange(self.height)[:, None] / self.height - 0.5, np.arange(self.width)[None, :] / self.width - 0.5
        self.image *= (self.rng.uniform(0.75, 1.2) + slope * (np.cos(angle) * x + np.sin(angle) * y))[..., None]
        self.image += self.rng.normal(0, self.rng.uniform(0.01, 0.06), self.image.shape)

    def _finish(self, index: int) -> Sample:
        """Drops the segments that were painted over, and numbers the rest without gaps."""
        visible = np.flatnonzero(np.bincount(self.ids.ravel(), minlength=len(self.classes) + 1)[1:]) + 1
        renumber = np.zeros(len(self.classes) + 1, dtype=np.int32)
        renumber[visible] = np.arange(1, len(visible) + 1)
        return Sample(
            image=(self.image * 255).clip(0, 255).round().astype(np.uint8),
            segment_map=renumber[self.ids],
            classes=np.array(self.classes, dtype=np.int64)[visible - 1],
            is_crowd=np.array(self.crowd, dtype=bool)[visible - 1],
            image_id=index,
            file_name=f"{index:06d}.png",
        )


def _polygon(corners: int, radius: float) -> Callable[[FloatImage, FloatImage], npt.NDArray[np.bool_]]:
    """Inside test of a regular polygon around the origin; `radius` is that of its corners."""
    apothem = radius * np.cos(np.pi / corners)
    angles = 2 * np.pi * np.arange(corners) / corners
    sides = [(float(np.cos(a)), float(np.sin(a))) for a in angles]
    return lambda u, v: np.max([a * u + b * v for a, b in sides], axis=0) < apothem


def _star(u: FloatImage, v: FloatImage) -> npt.NDArray[np.bool_]:
    """Five points: inside all but at most one of the five half-planes through the pentagram's lines."""
    lines = [np.cos(a) * u + np.sin(a) * v < 0.31 for a in 2 * np.pi * np.arange(5) / 5]
    return (np.sum(lines, axis=0) >= 4) & (u * u + v * v < 1.02)


_OUTLINES: tuple[Callable[[FloatImage, FloatImage], npt.NDArray[np.bool_]], ...] = (
    lambda u, v: u * u + v * v < 0.81,
    _polygon(4, 1.05),
    _polygon(3, 1.1),
    _star,
)


def _color(rng: np.random.Generator, hue: float, saturation: float, value: tuple[float, float]) -> FloatImage:
    """RGB in 0..1 with a little spread in saturation and a wide one in brightness."""
    spread = float(np.clip(saturation + rng.uniform(-0.1, 0.15), 0, 1))
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, spread, rng.uniform(*value)))


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cell: float) -> FloatImage:
    """Noise in -1..1, bilinear between random values `cell` pixels apart."""
    grid = rng.uniform(-1, 1, (int(shape[0] / cell) + 2, int(shape[1] / cell) + 2))
    y, x = np.arange(shape[0]) / cell, np.arange(shape[1]) / cell
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None], (x - x0)[None, :]
    rows = grid[y0] * (1 - fy) + grid[y0 + 1] * fy
    return rows[:, x0] * (1 - fx) + rows[:, x0 + 1] * fx
