"""The `model` section of a run that trains Panoptic-DeepLab: every key, its default and its limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from upsnet.config.backbone import (
    BackboneConfig,
    PixelMean,
    PixelStd,
    TimmBackboneConfig,
    kind_of_backbone,
    with_pixel_statistics,
)
from upsnet.config.section import Channels, Fraction, Layers, Section, Size, Slots, Weight


class DilatedBackboneConfig(BackboneConfig):
    """As `BackboneConfig`, with other defaults: batch norms learn, nothing is frozen, and res5 has a stride of 16."""

    norm: Literal["frozen_bn", "bn", "gn"] = "bn"
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    output_stride: Literal[8, 16, 32] = 16


class DilatedTimmBackboneConfig(TimmBackboneConfig):
    """As `TimmBackboneConfig`, with a stride of 16 by default."""

    output_stride: Literal[8, 16, 32] = 16


AnyDilatedBackboneConfig = Annotated[
    Annotated[DilatedBackboneConfig, Tag(DilatedBackboneConfig.tag)]
    | Annotated[DilatedTimmBackboneConfig, Tag(DilatedTimmBackboneConfig.tag)],
    Discriminator(kind_of_backbone),
]


class ASPPConfig(Section):
    """Atrous spatial pyramid pooling (Chen et al. 2018), of both decoders."""

    rates: Annotated[tuple[Layers, ...], Field(max_length=8)] = (6, 12, 18)
    """Dilations of the 3x3 branches."""
    channels: Channels = 256
    conv: Literal["dense", "separable"] = "dense"
    """separable: each 3x3 branch is a depthwise convolution and a 1x1 convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the values after the projection that training sets to zero."""
    pool_bias: bool = False
    """The convolution of the pooling branch has a bias."""
    pool_window: Size | None = None
    """(H, W) in pixels of the network input of the window that the pooling branch averages over, padding included, as
    in detectron2 and at test time in the original program. None: the valid cells of the image."""


LowLevels = Annotated[tuple[Channels, ...], Field(min_length=1, max_length=3)]
"""Channels that the decoder projects each low-level map to: of res3 and res2; three values: of res4, res3, res2."""


class SemanticBranchConfig(Section):
    """Decoder and head of the semantic logits."""

    low_level_channels: LowLevels = (64, 32)
    channels: Channels = 256
    """Of the decoder."""
    head_channels: Channels = 256


class InstanceBranchConfig(Section):
    """Decoder of the instances, and the heads of centres and offsets."""

    low_level_channels: LowLevels = (32, 16)
    channels: Channels = 128
    """Of the decoder."""
    head_channels: Channels = 32
    """Of each of the two heads."""
    max_detections: Slots = 200
    """K, the centres of an image at most."""


class GroupingConfig(Section):
    """How the maps of the heads become segments."""

    center_threshold: Fraction = 0.1
    """Centres have a heat above it."""
    nms_kernel: Annotated[int, Field(ge=1, le=1001)] = 7
    """Pixels a side of the window in which a centre is the maximum, odd."""
    stuff_area_limit: Annotated[int, Field(ge=0, le=10**9)] = 2048
    """Stuff classes with fewer pixels in the image become void."""
    score: Literal["semantic", "center", "both"] = "both"
    """Of an instance. semantic: the mean probability of its class; center: the heat at its centre; both: their
    product."""

    @field_validator("nms_kernel")
    @classmethod
    def _check_kernel(cls, side: int) -> int:
        if side % 2 == 0:
            raise ValueError("expected an odd number")
        return side


class TargetConfig(Section):
    """What the heads learn from an instance."""

    sigma: Annotated[float, Field(ge=0.5, le=100)] = 8
    """Pixels: standard deviation of the Gaussian around each centre, which ends at 3 sigma + 1."""
    small_area: Annotated[int, Field(ge=0, le=10**9)] = 4096
    """Instances with fewer pixels count `small_weight` times in the semantic loss."""
    small_weight: Weight = 3
    center: Literal["nearest", "truncated"] = "nearest"
    """The pixel of a centre: nearest to the centre of mass; truncated: above and to the left, as in the original
    program."""
    crowd_peaks: bool = False
    """Crowds have a peak, offsets and `small_weight` like instances, as in the original program."""


class LossConfig(Section):
    """Weight of each loss, and how they are averaged."""

    semantic: Weight = 1.0
    center: Weight = 200.0
    offset: Weight = 0.01
    hard_pixels: Annotated[Fraction, Field(gt=0)] = 0.2
    """Share of the pixels, those of the largest loss, that the semantic loss averages."""
    normalizer: Literal["labelled", "official"] = "labelled"
    """labelled: each loss is averaged over the labelled pixels of an image, then over the images. official: over the
    pixels of all images of the process at once; the semantic loss counts ignored pixels as pixels of loss 0."""

    def weights(self) -> dict[str, float]:
        """Loss name (`loss_center`, ...) -> weight."""
        return {f"loss_{name}": value for name, value in self if name not in ("hard_pixels", "normalizer")}


class PanopticDeepLabConfig(Section):
    """Panoptic-DeepLab (Cheng et al. 2020)."""

    architecture: Literal["panoptic_deeplab"]
    backbone: AnyDilatedBackboneConfig = DilatedBackboneConfig()
    norm: Literal["bn", "gn"] = "bn"
    """Of decoders and heads."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of a batch in the running statistics of all batch norms."""
    conv: Literal["separable", "dense"] = "separable"
    """Of decoders and heads. separable: one depthwise 5x5 and a 1x1 convolution; dense: two 3x3 convolutions."""
    align_corners: bool = False
    """Resizing aligns the centres of the corner cells; the network input then has sizes of 32 n + 1."""
    low_level_first: bool = False
    """Decoders concatenate the low-level map before the coarser map, as in detectron2."""
    aspp: ASPPConfig = ASPPConfig()
    semantic: SemanticBranchConfig = SemanticBranchConfig()
    instance: InstanceBranchConfig = InstanceBranchConfig()
    panoptic: GroupingConfig = GroupingConfig()
    target: TargetConfig = TargetConfig()
    pixel_mean: PixelMean | None = None
    """None: for a ResNet, the values of ImageNet; for a model of timm, the values of its weights."""
    pixel_std: PixelStd | None = None
    loss: LossConfig = LossConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return with_pixel_statistics(values)

    @property
    def tasks(self) -> frozenset[str]:
        """What the model predicts: `PanopticModel.tasks`."""
        return frozenset({"panoptic", "semantic", "instance"})

    @property
    def coarsest_stride(self) -> int:
        """Pixels of the network input per cell of the coarsest feature map."""
        return self.backbone.output_stride
