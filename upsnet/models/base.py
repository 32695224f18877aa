"""What engine, evaluation, inference and export know of an architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upsnet.ops.sizes import MULTIPLES_OF_32, InputForm, Size
from upsnet.ops.views import View
from upsnet.structures import PanopticBatch, PanopticOutput


class FusedTensors(NamedTuple):
    """What `fuse` gives, as tensors of fixed shapes, in an exported graph.

    Attributes:
        segment_ids: int32 [B, h, w]; 0 = void, `i + 1` = row `i` of the table.
        segment_classes: int64 [B, R], semantic channel of each row.
        segment_scores: float32 [B, R]; 1 for stuff.
    """

    segment_ids: Tensor
    segment_classes: Tensor
    segment_scores: Tensor


@dataclass(frozen=True)
class Limits:
    """What an architecture can learn and find at most; the doctor compares it with the data. None: no limit.

    Attributes:
        max_detections: instances that it can predict in an image.
        train_slots: instances of an image that its losses see at once.
        best_iou: boxes float32 [N, 4] in pixels of the network input, and the (H, W) of the image there -> float32 [N],
            the IoU of each box with the anchor that fits best.
        positive_iou, negative_iou: IoU from which an anchor is positive, and below which it is negative.
    """

    max_detections: int | None = None
    train_slots: int | None = None
    best_iou: Callable[[Tensor, Size], Tensor] | None = None
    positive_iou: float = 0.7
    negative_iou: float = 0.3


class PanopticModel(nn.Module, ABC):
    """A model that gives every pixel a class and every instance a mask.

    An architecture implements `loss`, `raw`, `fuse` and, to be exported, `fuse_for_export`. The last three have fixed
    shapes and never wait for the device, so that CUDA graphs and exports can record them.

    Attributes:
        tasks: what it predicts, of `panoptic`, `semantic` and `instance`.
        loss_weights: weight of each loss by its name (`loss_class`); `loss` may skip those of weight 0.
        input_form: the form in which it takes images.
        memory_options: overrides of the config with which a training step takes less memory, for error messages.
        norm_keys: keys of the config that choose a norm, for error messages.
    """

    tasks: frozenset[str]
    loss_weights: dict[str, float]
    input_form: InputForm = MULTIPLES_OF_32
    memory_options: tuple[str, ...] = ()
    norm_keys: tuple[str, ...] = ("model.backbone.norm",)

    def padded_size(self, size: Size) -> Size:
        """The smallest size that the architecture takes and that holds an image of `size` = (H, W)."""
        return self.input_form.padded_size(size)

    def forward(self, batch: PanopticBatch) -> dict[str, Tensor] | PanopticOutput:
        """`loss(batch)` while training, else `predict(batch)`."""
        return self.loss(batch) if self.training else self.predict(batch)

    @abstractmethod
    def loss(self, batch: PanopticBatch) -> dict[str, Tensor]:
        """The losses of a training batch, unweighted scalars by name, each averaged over the images.

        Raises:
            ValueError: the batch has no target.
        """

    @abstractmethod
    def raw(self, images: Tensor, image_sizes: Tensor, *, with_instances: bool = False) -> Any:
        """Everything that is learnt: a named tuple, which `fuse` takes.

        Args:
            images: uint8, or float32 in 0..255, [B, 3, H, W], RGB, padded at the bottom and the right.
            image_sizes: int64 [B, 2], (H, W) of the valid part of each image.
            with_instances: also what AP needs.
        """

    def raw_of_views(self, views: Sequence[View], *, with_instances: bool = False) -> Any:
        """Like `raw`, with the average of several views of the same images (test-time augmentation).

        If the base is the only view, the result has the same bits as that of `raw`.

        Args:
            views: at least one.
            with_instances: as for `raw`.

        Raises:
            ValueError: the architecture has no test-time augmentation.
        """
        raise ValueError(f"{type(self).__name__} has no test-time augmentation: it does not implement raw_of_views")

    @abstractmethod
    def fuse(
        self, raw: Any, image_sizes: Sequence[Size], output_sizes: Sequence[Size], *, with_semantic: bool = False
    ) -> PanopticOutput:
        """Makes the prediction; it has no parameters.

        Args:
            raw: what `raw` returned.
            image_sizes: (H, W) of the valid network input of each image, on the host.
            output_sizes: (H, W) of each result.
            with_semantic: also the map of the semantic head.
        """

    def require_fixed_shapes(self) -> None:
        """Checks that exports and CUDA graphs can record `raw` and `fuse`.

        Raises:
            ValueError: they cannot; the message says what to change.
        """

    def fuse_for_export(self, raw: Any, image_sizes: Tensor, canvas: Tensor) -> FusedTensors:
        """`fuse` as part of a graph, in which all sizes are tensors.

        Args:
            raw: what `raw` returned.
            image_sizes: int64 [B, 2], (H, W) of the valid network input of each image.
            canvas: [h, w] of any type: its shape is the size of the maps.

        Raises:
            ValueError: the architecture cannot be exported.
        """
        raise ValueError(f"{type(self).__name__} cannot be exported: it does not implement fuse_for_export")

    @torch.no_grad()
    def predict(
        self,
        batch: PanopticBatch,
        output_sizes: Sequence[Size] | None = None,
        *,
        with_semantic: bool = False,
        with_instances: bool = False,
    ) -> PanopticOutput:
        """Predicts a batch.

        Args:
            batch: images and their valid sizes.
            output_sizes: (H, W) of each result; by default the images' original sizes.
            with_semantic: also the map of the semantic head.
            with_instances: also the instances with a mask of their own each, for AP.
        """
        raw = self.raw(batch.images, batch.image_sizes, with_instances=with_instances)
        sizes = output_sizes or batch.original_sizes
        return self.fuse(raw, batch.network_sizes, sizes, with_semantic=with_semantic)
