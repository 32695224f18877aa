"""The reader that `data_loading.py` compares with: Pillow, a mask per instance, and boxes found in the masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2 import functional as tv

from upsnet.data.coco import CocoPanoptic
from upsnet.data.transforms import Geometry
from upsnet.io.panoptic_png import rgb_to_id


class PlainReader:
    """The reader to compare with; `geometry` says what to do with an image."""

    def __init__(self, dataset: CocoPanoptic) -> None:
        self.dataset = dataset

    def picture(self, index: int) -> Image.Image:
        """RGB."""
        return Image.open(self.dataset.image_dir / self.dataset.file_name(index)).convert("RGB")

    def masks(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """bool [n, H, W], and classes [n]."""
        row = self.dataset.truth.annotations.at(index)
        ids = rgb_to_id(np.asarray(Image.open(self.dataset.truth.png_dir / row.file_name)))
        return torch.from_numpy(ids == row.known[1:, None, None]), torch.from_numpy(self.dataset.channels[row.classes])

    def geometry(
        self, geometry: Geometry, image: Image.Image, masks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [3, h, w] and bool [n, h, w]."""
        (top, left), (height, width) = geometry.corner, geometry.window
        if geometry.scaled != geometry.source:
            image = image.resize(geometry.scaled[::-1], Image.Resampling.BILINEAR)
            masks = F.interpolate(masks[:, None].float(), geometry.scaled, mode="nearest-exact")[:, 0] > 0.5
        image = image.crop((left, top, left + width, top + height))
        masks = masks[:, top : top + height, left : left + width]
        if geometry.flip_x:
            image, masks = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), masks.flip(-1)
        return tv.pil_to_tensor(image), masks

    def colour(self, image: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
        """Brightness, contrast and saturation, factors within 1 +- `strength`."""
        for adjust in (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation):
            image = adjust(image, float(rng.uniform(1 - strength, 1 + strength)))
        return image

    def target(self, masks: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Boxes, labels and masks of the things that are left, and the semantic map."""
        kept = masks.any(2).any(1)
        masks, classes = masks[kept], classes[kept]
        semantic = torch.full(masks.shape[1:], 255, dtype=torch.uint8)
        for mask, kind in zip(masks, classes, strict=True):
            semantic[mask] = kind.to(torch.uint8)
        things = classes >= self.dataset.categories.num_stuff
        return {
            "boxes": masks_to_boxes(masks[things]), "labels": classes[things], "masks": masks[things],
            "semantic": semantic,
        }  # fmt: skip

    def batch(self, images: Sequence[torch.Tensor], targets: Sequence[dict[str, torch.Tensor]]) -> tuple[Any, ...]:
        """Images padded to multiples of 32 at the bottom and the right; targets stay apart."""
        height, width = (-(-max(i.shape[axis] for i in images) // 32) * 32 for axis in (1, 2))
        padded = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
        for slot, image in zip(padded, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return padded, targets
