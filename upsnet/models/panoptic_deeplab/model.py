"""Panoptic-DeepLab (Cheng et al. 2020): semantic logits, a heat map of centres, and offsets to the centres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from upsnet.config import PanopticDeepLabConfig
from upsnet.models.backbone import Backbone
from upsnet.models.base import FusedTensors, PanopticModel
from upsnet.models.layers import normalize_images
from upsnet.models.panoptic_deeplab.decoder import Decoder, Head, upsample
from upsnet.models.panoptic_deeplab.losses import center_loss, hard_pixel_loss, offset_loss
from upsnet.models.panoptic_deeplab.targets import make_targets
from upsnet.ops.instance_grouping.operator import fuse_for_export
from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.instance_grouping.pipeline import fuse
from upsnet.ops.instance_grouping.segments import instances_of_segments
from upsnet.ops.sizes import InputForm, Size
from upsnet.ops.views import View
from upsnet.structures import PanopticBatch, PanopticOutput

STRIDE = 4
"""Pixels of the network input per cell of the predictions."""
SEMANTIC_DROPOUT, INSTANCE_DROPOUT = 1, 2
"""Streams of random numbers."""


class PanopticDeepLabRaw(NamedTuple):
    """The output of all layers with weights, which `PanopticDeepLab.fuse` takes.

    The maps have h = H / 4 and w = W / 4 cells; with aligned corners (H - 1) / 4 + 1 and (W - 1) / 4 + 1.

    Attributes:
        semantic_logits: float32 [B, S + T, h, w].
        center: float32 [B, 1, h, w], heat, about 0..1.
        offset: float32 [B, 2, h, w], (dy, dx) from each cell to the centre of its instance, in cells.
        input_size: (H, W) of the padded network input.
        with_instances: the result shall have the instances for AP.
    """

    semantic_logits: Tensor
    center: Tensor
    offset: Tensor
    input_size: Size
    with_instances: bool = False


class PanopticDeepLab(PanopticModel):
    """The whole model: backbone, two decoders, three heads, and the grouping of pixels into instances.

    Convolutions near the lower and the right edge of an image see the padding of the batch: zeros in the first layer,
    and what the layers make of them later. Nothing else depends on the padding.

    Args:
        backbone: of `config`.
        num_stuff, num_things: S and T.
        config: the section `model`.
    """

    tasks = frozenset({"panoptic", "semantic", "instance"})
    memory_options = ("model.backbone.output_stride=32",)
    norm_keys = ("model.backbone.norm", "model.norm")
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Backbone, num_stuff: int, num_things: int, config: PanopticDeepLabConfig) -> None:
        super().__init__()
        self.num_stuff, self.align_corners = num_stuff, config.align_corners
        self.input_form = InputForm(remainder=int(config.align_corners))
        self.loss_weights = config.loss.weights()
        self.loss_config, self.target_config = config.loss, config.target
        panoptic = config.panoptic
        self.grouping = GroupingOptions(
            center_threshold=panoptic.center_threshold,
            nms_kernel=panoptic.nms_kernel,
            top_k=config.instance.max_detections,
            stuff_area_limit=panoptic.stuff_area_limit,
            score=panoptic.score,
        )
        self.backbone = backbone
        semantic, instance, inputs = config.semantic, config.instance, backbone.channels
        self.semantic_decoder = Decoder(
            inputs, semantic.low_level_channels, semantic.channels, config, SEMANTIC_DROPOUT
        )
        self.instance_decoder = Decoder(
            inputs, instance.low_level_channels, instance.channels, config, INSTANCE_DROPOUT
        )
        self.semantic_head = Head(semantic.channels, semantic.head_channels, num_stuff + num_things, config)
        self.center_head = Head(instance.channels, instance.head_channels, 1, config)
        self.offset_head = Head(instance.channels, instance.head_channels, 2, config)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(1, 3, 1, 1))

    def maps(self, images: Tensor, image_sizes: Tensor, seeds: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Semantic logits, heat and offsets at 1/4 of the network input, as in `PanopticDeepLabRaw`.

        Args:
            images, image_sizes: as in `raw`.
            seeds: int64 [B], for the dropout while training.
        """
        pixels = normalize_images(images, image_sizes, self.pixel_mean, self.pixel_std, self.backbone.first_conv)
        features = self.backbone(pixels)
        semantic = self.semantic_head(self.semantic_decoder(features, image_sizes, seeds))
        decoded = self.instance_decoder(features, image_sizes, seeds)
        return semantic, self.center_head(decoded), self.offset_head(decoded)

    def raw(self, images: Tensor, image_sizes: Tensor, *, with_instances: bool = False) -> PanopticDeepLabRaw:
        """As `PanopticModel.raw`."""
        size = (images.shape[2], images.shape[3])
        return PanopticDeepLabRaw(*self.maps(images, image_sizes), size, with_instances)

    def raw_of_views(self, views: Sequence[View], *, with_instances: bool = False) -> PanopticDeepLabRaw:
        """As `PanopticModel.raw_of_views`. Averages the maps of all views."""
        total: list[Tensor] = []
        for view in views:
            semantic, center, offset = self.maps(view.images, view.image_sizes)
            found = [view.maps_to_base(x, align_corners=self.align_corners) for x in (semantic, center)]
            found.append(view.offsets_to_base(offset, align_corners=self.align_corners))
            total = found if not total else [a.add_(b) for a, b in zip(total, found, strict=True)]
        semantic, center, offset = (x / len(views) for x in total)
        return PanopticDeepLabRaw(semantic, center, offset, views[0].base_input, with_instances)

    def fuse(
        self,
        raw: PanopticDeepLabRaw,
        image_sizes: Sequence[Size],
        output_sizes: Sequence[Size],
        *,
        with_semantic: bool = False,
    ) -> PanopticOutput:
        """As `PanopticModel.fuse`. The instances for AP are those of the map, so their masks do not overlap."""
        with torch.autocast(raw.center.device.type, enabled=False):
            found = fuse(
                raw.semantic_logits,
                raw.center,
                raw.offset,
                image_sizes,
                output_sizes,
                input_size=raw.input_size,
                num_stuff=self.num_stuff,
                options=self.grouping,
                align_corners=self.align_corners,
                with_semantic=with_semantic,
            )
        classes, scores = found.segment_classes, found.segment_scores
        ids = _crop(found.segment_ids, output_sizes)
        semantic = None if found.semantic is None else _crop(found.semantic, output_sizes)
        instances = None
        if raw.with_instances:
            parts = zip(ids, classes, scores, strict=True)
            instances = [instances_of_segments(*part, self.num_stuff) for part in parts]
        return PanopticOutput(ids, classes, scores, semantic, instances)

    def fuse_for_export(self, raw: PanopticDeepLabRaw, image_sizes: Tensor, canvas: Tensor) -> FusedTensors:
        """As `PanopticModel.fuse_for_export`: the grouping is one operator of the graph."""
        found = fuse_for_export(
            raw.semantic_logits,
            raw.center,
            raw.offset,
            image_sizes,
            canvas,
            input_size=raw.input_size,
            num_stuff=self.num_stuff,
            options=self.grouping,
            align_corners=self.align_corners,
        )
        return FusedTensors(*found)

    def loss(self, batch: PanopticBatch) -> dict[str, Tensor]:
        """The losses of a training batch, unweighted, by name."""
        if batch.target is None:
            raise ValueError("a batch without target cannot be trained on: make it with data.loader.collate")
        truth, config = batch.target, self.loss_config
        size, over_batch = (batch.images.shape[2], batch.images.shape[3]), config.normalizer == "official"
        maps = self.maps(batch.images, batch.image_sizes, truth.seeds)
        target = make_targets(truth, self.target_config)
        with torch.autocast(batch.images.device.type, enabled=False):
            semantic, center, offset = (upsample(x, size, align_corners=self.align_corners) for x in maps)
            return {
                "loss_semantic": hard_pixel_loss(
                    semantic, truth.semantic_map, target.semantic_weight, config.hard_pixels, over_batch=over_batch
                ),
                "loss_center": center_loss(center, target.heat, target.heat_weight, over_batch=over_batch),
                "loss_offset": offset_loss(offset * STRIDE, target.offset, target.offset_weight, over_batch=over_batch),
            }


def _crop(maps: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Maps [B, H, W] -> the part of each that its size covers."""
    return [one[:height, :width] for one, (height, width) in zip(maps, sizes, strict=True)]
