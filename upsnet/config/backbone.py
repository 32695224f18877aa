"""The `model.backbone` section, which all architectures have: a ResNet of this project, or a model of timm."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from upsnet.config.section import Layers, Positive, Section

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
RESNETS: tuple[str, ...] = get_args(ResNetName)
PixelMean = tuple[float, float, float]
PixelStd = tuple[Positive, Positive, Positive]
"""RGB, for values of 0..255."""


class BackboneConfig(Section):
    """ResNet. `weights`: a torchvision name (IMAGENET1K_V1) or a file with torchvision's names; None: random."""

    tag: ClassVar[str] = "resnet"
    """Name of this section in errors of pydantic."""
    name: ResNetName = "resnet50"
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

    @property
    def freezes(self) -> bool:
        """Whether training keeps some weights constant."""
        return self.norm == "frozen_bn" or self.freeze_at > 0

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, name: Any) -> Any:
        if name not in RESNETS:
            raise ValueError(f"expected {', '.join(RESNETS)}, or timm/NAME for a model of the package timm")
        return name

    @model_validator(mode="after")
    def _check(self) -> BackboneConfig:
        if self.checkpoint_activations and self.norm == "bn":
            raise ValueError("checkpoint_activations=true needs norm frozen_bn or gn, got bn")
        if self.deformable_from is not None and (self.output_stride != 32 or self.multi_grid is not None):
            raise ValueError("deformable_from needs output_stride=32 and no multi_grid: its layers cannot be dilated")
        return self


class TimmBackboneConfig(Section):
    """A model of the package timm that has feature maps of strides 4, 8, 16 and 32."""

    tag: ClassVar[str] = "timm"
    prefix: ClassVar[str] = "timm/"
    """A `name` with this prefix selects this section."""
    name: Annotated[str, Field(pattern=r"^timm/[A-Za-z0-9_.-]+$", max_length=200)]
    """timm/ and timm's name, such as timm/resnet50d or timm/convnext_tiny.fb_in22k_ft_in1k. The tag after the dot
    selects pretrained weights of the model. With a tag, the default of `weights` is `pretrained`."""
    weights: Annotated[str, Field(max_length=4096)] | None = None
    """pretrained: timm downloads the weights. A path: a file (.pth or .safetensors) with timm's parameter names; the
    classifier is optional. None: random weights."""
    norm: Literal["own", "frozen_bn"] = "own"
    """own: all norms are trained. frozen_bn: batch norms keep statistics, scales and shifts; others are trained."""
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    """0: nothing is frozen; 1: the layers before the first stage; n: also the first n - 1 stages."""
    output_stride: Literal[8, 16, 32] = 32
    """Pixels of the network input per cell of the coarsest map. Some models of timm support only 32."""

    @property
    def freezes(self) -> bool:
        """Whether training keeps some weights constant."""
        return self.norm == "frozen_bn" or self.freeze_at > 0

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if foreign := [key for key in values if key in BackboneConfig.model_fields and key not in cls.model_fields]:
            raise ValueError(
                f"{', '.join(foreign)}: only the ResNets of this project ({', '.join(RESNETS)}) have this option, but "
                f"name is {values.get('name')}; remove the option, or replace the whole section: "
                f"model.backbone={{name: {values.get('name')}}}"
            )
        has_tag = "." in str(values.get("name"))
        return {**values, "weights": "pretrained"} if has_tag and values.get("weights") is None else values


def kind_of_backbone(values: Any) -> str:
    """The tag of a `model.backbone` section: `timm` if its name starts with `timm/`, otherwise `resnet`."""
    name = values.get("name") if isinstance(values, dict) else getattr(values, "name", None)
    is_timm = isinstance(name, str) and name.startswith(TimmBackboneConfig.prefix)
    return (TimmBackboneConfig if is_timm else BackboneConfig).tag


AnyBackboneConfig = Annotated[
    Annotated[BackboneConfig, Tag(BackboneConfig.tag)] | Annotated[TimmBackboneConfig, Tag(TimmBackboneConfig.tag)],
    Discriminator(kind_of_backbone),
]


def with_pixel_statistics(values: Any) -> Any:
    """Fills in mean and standard deviation of ImageNet, if the `model` section has none and its backbone is a ResNet.

    The values of timm's models differ from model to model. `models.build.resolve` reads them from timm.

    Args:
        values: the section, as parsed from YAML.
    """
    if not isinstance(values, dict) or kind_of_backbone(values.get("backbone")) == TimmBackboneConfig.tag:
        return values
    defaults = {"pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}
    return {**values, **{key: default for key, default in defaults.items() if values.get(key) is None}}
