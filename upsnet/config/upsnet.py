"""The `model` section of a run that trains UPSNet: every key, its default and its limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from upsnet.config.backbone import AnyBackboneConfig, BackboneConfig, PixelMean, PixelStd, with_pixel_statistics
from upsnet.config.conventions import Conventions, with_conventions
from upsnet.config.section import Channels, Fraction, Layers, Positive, Section, Slots, Weight


class SemanticConfig(Section):
    """The semantic head: convolutions shared by P2-P5."""

    conv: Literal["dilated", "deformable"] = "dilated"
    num_layers: Layers = 3
    channels: Channels = 128
    dilation: Layers = 2


AnchorRow = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=64)]
"""Sizes or ratios of the anchors of a level."""


class RPNConfig(Section):
    """Region proposals. `anchor_sizes` has one row per level from P2 on (5 rows: up to P6)."""

    anchor_sizes: tuple[AnchorRow, ...] = ((32,), (64,), (128,), (256,), (512,))
    aspect_ratios: AnchorRow = (0.5, 1.0, 2.0)
    anchor_shapes: (
        tuple[Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1, max_length=64)], ...] | None
    ) = None
    """(width, height) of every anchor, one row per level, in place of `anchor_sizes` and `aspect_ratios`."""
    anchor_offset: Fraction = 0.5
    """Where in its cell an anchor is centred."""
    pre_nms: Slots = 1000
    post_nms: Slots = 1000
    pre_nms_train: Slots = 2000
    post_nms_train: Slots = 2000
    nms_iou: Fraction = 0.7
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    samples: Slots = 256
    positive_fraction: Fraction = 0.5

    @model_validator(mode="after")
    def _check(self) -> RPNConfig:
        for name in ("anchor_sizes", "anchor_shapes"):
            rows = getattr(self, name)
            if rows is not None and (not 1 <= len(rows) <= 5 or len({len(row) for row in rows}) != 1):
                raise ValueError(f"{name} needs 1 to 5 rows (P2..P6) of equal length")
        return self

    def shapes(self) -> list[list[tuple[float, float]]]:
        """(width, height) of the anchors of each level."""
        if self.anchor_shapes is not None:
            return [list(row) for row in self.anchor_shapes]
        roots = [ratio**0.5 for ratio in self.aspect_ratios]
        return [[(size / root, size * root) for size in row for root in roots] for row in self.anchor_sizes]


class InstanceConfig(Section):
    """Boxes, classes and masks of the proposals, and the two detection lists."""

    roi_samples: Slots = 512
    positive_fraction: Fraction = 0.25
    positive_iou: Fraction = 0.5
    canonical_size: Positive = 224
    """Boxes of this size (square root of the area) pool from P4."""
    box_channels: Channels = 1024
    box_pool: Layers = 7
    mask_channels: Channels = 256
    mask_layers: Annotated[int, Field(ge=0, le=64)] = 4
    mask_pool: Layers = 14
    mask_slots: Slots | None = None
    """Foreground RoIs that train the mask branch, per image, at most; by default all of them."""
    max_detections: Slots = 100
    """K, the slots of each list."""
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.5


class PanopticConfig(Section):
    """How the two heads become one map."""

    method: Literal["unified", "official", "heuristic"] = "unified"
    """unified: UPSNet's head. official: the same with the resizing and the rounding of the official program, for its
    checkpoints; slower, and cannot be exported. heuristic: the merge of Kirillov et al. 2018 (usual: both thresholds
    0.5)."""
    score_threshold: Fraction = 0.6
    nms_iou: Fraction = 0.5
    overlap_threshold: Fraction = 0.3
    """An instance with more of its mask already taken by its own class (heuristic: by any) is dropped."""
    stuff_area_limit: Annotated[int, Field(ge=0, le=10**9)] = 4096
    """Stuff classes with fewer pixels in the image become void."""
    train_slots: Slots = 100
    """Ground-truth instances that enter the panoptic loss, per image."""
    keep_fraction: Fraction = 0.7
    """Share of them that is kept; the rest teaches the unknown channel."""


class LossConfig(Section):
    """Weight of each loss; 0 skips its computation where that saves time."""

    rpn_objectness: Weight = 1.0
    rpn_box: Weight = 1.0
    class_: Annotated[Weight, Field(alias="class")] = 1.0
    box: Weight = 1.0
    mask: Weight = 1.0
    semantic: Weight = 1.0
    semantic_roi: Weight = 0.2
    panoptic: Weight = 1.0
    normalizer: Literal["labelled", "official"] = "labelled"
    """official: the semantic RoI and the panoptic loss are averaged over ignored pixels too, and the objectness over
    `rpn.samples` whatever was sampled."""

    def weights(self) -> dict[str, float]:
        """Loss name (`loss_class`, ...) -> weight."""
        values = self.model_dump(by_alias=True, exclude={"normalizer"})
        return {f"loss_{name}": value for name, value in values.items()}


class UPSNetConfig(Section):
    """UPSNet (Xiong et al. 2019)."""

    architecture: Literal["upsnet"] = "upsnet"
    conventions: Conventions | None = None
    """Fills in the anchors, the RoIAlign, the strides and the pixel statistics of another program, where this section
    does not give them (`config/conventions.py`)."""
    heads: Literal["both", "semantic", "instance"] = "both"
    backbone: AnyBackboneConfig = BackboneConfig()
    fpn_channels: Channels = 256
    fpn_gap: bool = False
    """Adds a projection of res5's global mean to P5."""
    roi_align: Literal["aligned", "legacy", "inclusive"] = "aligned"
    """legacy: without the half-pixel shift, at least one cell wide (torchvision's Mask R-CNN); inclusive: legacy, and
    the box's last pixel is its end (the official UPSNet)."""
    min_box: Weight = 0.0
    """Pixels of a clipped box that stay inside the image, per side."""
    semantic: SemanticConfig = SemanticConfig()
    rpn: RPNConfig = RPNConfig()
    instance: InstanceConfig = InstanceConfig()
    panoptic: PanopticConfig = PanopticConfig()
    pixel_mean: PixelMean | None = None
    """None: for a ResNet, the values of ImageNet; for a model of timm, the values of its weights."""
    pixel_std: PixelStd | None = None
    loss: LossConfig = LossConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return with_pixel_statistics(with_conventions(values))

    @model_validator(mode="after")
    def _check(self) -> UPSNetConfig:
        if self.backbone.output_stride != 32:
            raise ValueError(
                f"backbone.output_stride={self.backbone.output_stride}: the pyramid of UPSNet needs 32; only "
                "architecture=panoptic_deeplab has others"
            )
        if self.panoptic.method == "official" and self.heads != "both":
            raise ValueError(
                f"panoptic.method=official needs heads=both, got {self.heads}; use panoptic.method=unified"
            )
        return self

    @property
    def tasks(self) -> frozenset[str]:
        """What the model predicts: `PanopticModel.tasks`."""
        return frozenset({"panoptic", "semantic", "instance"} if self.heads == "both" else {self.heads})

    @property
    def coarsest_stride(self) -> int:
        """Pixels of the network input per cell of the coarsest feature map."""
        return 64 if self.heads != "semantic" and len(self.rpn.shapes()) == 5 else 32
