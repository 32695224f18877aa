"""The `model.backbone` section, which all architectures have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from upsnet.config.section import Layers, Section


class BackboneConfig(Section):
    """ResNet. `weights`: a torchvision name (IMAGENET1K_V1) or a file with torchvision's names; None: random."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    width: Annotated[int, Field(ge=16, le=512, multiple_of=16)] = 64
    """Of the stem. Below 16 channels oneDNN's gradient of a strided 1x1 convolution crashes (torch 2.15, CPU)."""
    norm: Literal["frozen_bn", "bn", "gn"] = "frozen_bn"
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 2
    """0: nothing is frozen; 1: the stem; n: also the stages up to res-n."""
    weights: Annotated[str, Field(max_length=4096)] | None = None
    norm_eps: Annotated[float, Field(gt=0, le=1)] | Literal[0] = 1e-5
    stride_in_1x1: bool = False
    """Bottlenecks stride in the first convolution (Caffe models) in place of the 3x3."""
    deformable_from: Annotated[int, Field(ge=2, le=5)] | None = None
    """Stages from res-n on use deformable 3x3 convolutions (Dai et al. 2017)."""
    checkpoint_activations: bool = False
    """Keeps only the inputs of residual blocks and computes the rest again for the backward pass: less memory, more
    time. Not with norm `bn`, whose statistics would count every batch twice."""
    stem: Literal["conv7", "deeplab"] = "conv7"
    """conv7: one 7x7 convolution. deeplab: three 3x3 convolutions, the last of twice the width."""
    output_stride: Literal[8, 16, 32] = 32
    """Pixels of the network input per cell of res5. With 16, res5 does not stride and is dilated; with 8, res4 too."""
    multi_grid: Annotated[tuple[Layers, ...], Field(min_length=1, max_length=64)] | None = None
    """Factors on the dilation of each block of res5 (Chen et al. 2017, sec. 3.2.1), such as [1, 2, 4]."""

    @model_validator(mode="after")
    def _check(self) -> BackboneConfig:
        if self.checkpoint_activations and self.norm == "bn":
            raise ValueError("checkpoint_activations=true needs norm frozen_bn or gn, got bn")
        if self.deformable_from is not None and (self.output_stride != 32 or self.multi_grid is not None):
            raise ValueError("deformable_from needs output_stride=32 and no multi_grid: its layers cannot be dilated")
        return self
