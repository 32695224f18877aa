"""The schema of a run: every key, its default and its limits. A YAML file lists what differs.

config = load_config("configs/shapes_r18.yaml", ["train.iterations=100"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from upsnet.config_errors import explain

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Size = tuple[PositiveInt, PositiveInt]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CocoConfig(_Section):
    """A data set in COCO panoptic layout. Paths are relative to $UPSNET_DATASETS (default `datasets/`)."""

    format: Literal["coco"]
    image_dir: str
    annotation_file: str
    panoptic_dir: str | None = None
    """By default `annotation_file` without `.json`."""


class ShapesConfig(_Section):
    """The generated data set."""

    format: Literal["shapes"]
    num_images: PositiveInt
    image_size: Size = (128, 128)
    seed: Annotated[int, Field(ge=0)] = 0


Source = Annotated[CocoConfig | ShapesConfig, Field(discriminator="format")]


class CategoryConfig(_Section):
    """A class, as in a COCO-panoptic JSON; other fields of the row are left aside."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: int
    name: str
    isthing: Literal[0, 1]
    color: tuple[int, int, int] | None = None


class AugmentConfig(_Section):
    """Training augmentation; `crop_size` chooses large-scale jitter in place of the short-side resize."""

    short_sides: tuple[PositiveInt, ...] = ()
    max_side: PositiveInt = 1333
    crop_size: Size | None = None
    jitter_scale: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    flip: Literal["none", "horizontal", "dihedral"] = "horizontal"
    photometric: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class DataConfig(_Section):
    """Data sets, augmentation, and the size at which images are tested."""

    train: Source
    val: Source
    categories: tuple[CategoryConfig, ...] | None = None
    """The classes that the data must have; by default those of the training JSON."""
    augment: AugmentConfig = AugmentConfig()
    test_short_side: PositiveInt | None = None
    """None: the images' own size."""
    test_max_side: PositiveInt = 1333
    size_divisor: Annotated[int, Field(ge=32, multiple_of=32)] = 32
    num_workers: Annotated[int, Field(ge=0)] = 2


class BackboneConfig(_Section):
    """ResNet. `weights`: a torchvision name (IMAGENET1K_V1) or a file with torchvision's names; None: random."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    width: Annotated[int, Field(ge=16, multiple_of=16)] = 64
    """Of the stem. Below 16 channels oneDNN's gradient of a strided 1x1 convolution crashes (torch 2.15, CPU)."""
    norm: Literal["frozen_bn", "bn", "gn"] = "frozen_bn"
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 2
    """0: nothing is frozen; 1: the stem; n: also the stages up to res-n."""
    weights: str | None = None


class SemanticConfig(_Section):
    """The semantic head: convolutions shared by P2-P5."""

    conv: Literal["dilated", "deformable"] = "dilated"
    num_layers: Annotated[int, Field(ge=1)] = 3
    channels: PositiveInt = 128
    dilation: PositiveInt = 2
    norm: Literal["none", "gn"] = "none"


class RPNConfig(_Section):
    """Region proposals. `anchor_sizes` has one row per level from P2 on (5 rows: up to P6)."""

    anchor_sizes: tuple[tuple[PositiveFloat, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    aspect_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    pre_nms: PositiveInt = 1000
    post_nms: PositiveInt = 1000
    pre_nms_train: PositiveInt = 2000
    post_nms_train: PositiveInt = 2000
    nms_iou: Fraction = 0.7
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    samples: PositiveInt = 256
    positive_fraction: Fraction = 0.5

    @model_validator(mode="after")
    def _check(self) -> RPNConfig:
        if not 1 <= len(self.anchor_sizes) <= 5 or len({len(row) for row in self.anchor_sizes}) != 1:
            raise ValueError("anchor_sizes needs 1 to 5 rows (P2..P6) of equal length")
        return self


class InstanceConfig(_Section):
    """Boxes, classes and masks of the proposals, and the two detection lists."""

    roi_samples: PositiveInt = 512
    positive_fraction: Fraction = 0.25
    positive_iou: Fraction = 0.5
    canonical_size: PositiveFloat = 224
    """Boxes of this size (square root of the area) pool from P4."""
    box_channels: PositiveInt = 1024
    box_pool: PositiveInt = 7
    mask_channels: PositiveInt = 256
    mask_layers: Annotated[int, Field(ge=0)] = 4
    mask_pool: PositiveInt = 14
    mask_norm: Literal["none", "gn"] = "none"
    max_detections: PositiveInt = 100
    """K, the slots of each list."""
    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.5


class PanopticConfig(_Section):
    """How the two heads become one map."""

    method: Literal["unified", "official", "heuristic"] = "unified"
    """UPSNet's head; the same with the official program's rounding; or Kirillov's merge (usual: score, overlap 0.5)."""
    score_threshold: Fraction = 0.6
    nms_iou: Fraction = 0.5
    overlap_threshold: Fraction = 0.3
    """An instance with more of its mask already taken by its own class (heuristic: by any) is dropped."""
    stuff_area_limit: Annotated[int, Field(ge=0)] = 4096
    """Stuff classes with fewer pixels in the image become void."""
    train_slots: PositiveInt = 100
    """Ground-truth instances that enter the panoptic loss, per image."""
    keep_fraction: Fraction = 0.7
    """Share of them that is kept; the rest teaches the unknown channel."""


class ModelConfig(_Section):
    """UPSNet."""

    heads: Literal["both", "semantic", "instance"] = "both"
    backbone: BackboneConfig = BackboneConfig()
    fpn_channels: PositiveInt = 256
    semantic: SemanticConfig = SemanticConfig()
    rpn: RPNConfig = RPNConfig()
    instance: InstanceConfig = InstanceConfig()
    panoptic: PanopticConfig = PanopticConfig()
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)


class LossConfig(_Section):
    """Weight of each loss; 0 skips its computation where that saves time."""

    rpn_objectness: Weight = 1.0
    rpn_box: Weight = 1.0
    class_: Annotated[Weight, Field(alias="class")] = 1.0
    box: Weight = 1.0
    mask: Weight = 1.0
    semantic: Weight = 1.0
    semantic_roi: Weight = 0.2
    panoptic: Weight = 1.0

    def weights(self) -> dict[str, float]:
        """Loss name (`loss_class`, ...) -> weight."""
        return {f"loss_{name}": value for name, value in self.model_dump(by_alias=True).items()}


class TrainConfig(_Section):
    """Optimiser and schedule, in iterations; `batch_size` is images per step over all processes."""

    iterations: PositiveInt
    batch_size: PositiveInt = 16
    accumulate: PositiveInt = 1
    """Steps of `batch_size` images that share one update."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.02
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Weight = 1e-4
    warmup_iterations: Annotated[int, Field(ge=0)] = 1500
    warmup_factor: Fraction = 0.1
    schedule: Literal["step", "poly", "cosine"] = "step"
    steps: tuple[PositiveInt, ...] = ()
    gamma: Fraction = 0.1
    clip_gradient: PositiveFloat | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the device computes it natively."""
    log_every: PositiveInt = 20
    checkpoint_every: PositiveInt = 1000
    evaluate_every: PositiveInt = 5000

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if list(self.steps) != sorted(self.steps):
            raise ValueError(f"steps {self.steps} must increase")
        return self


class EvaluateConfig(_Section):
    """How the model is judged."""

    batch_size: PositiveInt = 1
    instance: bool = True
    """Also COCO's instance AP (slower: it needs the second detection list)."""
    panels: Annotated[int, Field(ge=0)] = 4
    """Images shown in TensorBoard and written as overlays beside the truth."""


class Config(_Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.model.heads == "instance" and not self.evaluate.instance:
            raise ValueError("model.heads=instance can only be judged by AP: it needs evaluate.instance=true")
        return self

    def dump(self) -> dict[str, Any]:
        """Plain values, every default filled in; `parse_config` takes them back."""
        return self.model_dump(mode="json", by_alias=True)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies `key=value` overrides (`model.backbone.width=32`, values in YAML).

    Raises:
        FileNotFoundError, ValueError: one line that names the file, the key, what it may be, and what came.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such config file") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected keys {', '.join(Config.model_fields)}")
    return parse_config(values, overrides, source=str(path))


def parse_config(values: dict[str, Any], overrides: Sequence[str] = (), *, source: str) -> Config:
    """Validates plain values; `source` is named in errors (see `load_config`)."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: expected key=value, for example train.iterations=100")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"override {override!r}: the value is not valid YAML") from None
        values = _with(values, key.strip().split("."), value)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{source}: {explain(error, Config)}") from None


def _with(values: Any, keys: list[str], value: Any) -> Any:
    """A copy of nested dictionaries with one value replaced."""
    if not keys:
        return value
    base = values if isinstance(values, dict) else {}
    return {**base, keys[0]: _with(base.get(keys[0]), keys[1:], value)}
