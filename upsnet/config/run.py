"""The schema of a run: every key, its default and its limits. A YAML file lists what differs from the defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from upsnet.class_edits import ClassEdits
from upsnet.config.panoptic_deeplab import PanopticDeepLabConfig
from upsnet.config.section import Count, Fraction, Positive, Precision, Section, Side, Size, Small, Weight
from upsnet.config.upsnet import UPSNetConfig


def _with_architecture(values: Any) -> Any:
    """The `model` section with its architecture, which is UPSNet if it does not say."""
    return {"architecture": "upsnet", **values} if isinstance(values, dict) else values


ModelConfig = Annotated[
    UPSNetConfig | PanopticDeepLabConfig, Field(discriminator="architecture"), BeforeValidator(_with_architecture)
]
"""The `model` section; `model.architecture` says of which architecture."""


class CityscapesConfig(Section):
    """Cityscapes as its archives unpack. `root` is relative to $UPSNET_DATASETS (default `./datasets`)."""

    format: Literal["cityscapes"]
    root: str = "cityscapes"
    split: Literal["train", "val"]


class CocoConfig(Section):
    """A data set in COCO panoptic layout. Paths are relative to $UPSNET_DATASETS (default `./datasets`)."""

    format: Literal["coco"]
    image_dir: str
    annotation_file: str
    panoptic_dir: str | None = None
    """By default `annotation_file` without `.json`."""


class ShapesConfig(Section):
    """The generated data set."""

    format: Literal["shapes"]
    num_images: Count
    image_size: Size = (128, 128)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


Source = Annotated[CityscapesConfig | CocoConfig | ShapesConfig, Field(discriminator="format")]


class CategoryConfig(Section):
    """A class, as in a COCO-panoptic JSON; other fields of the row are left aside."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: int
    name: str
    isthing: Literal[0, 1]
    color: tuple[int, int, int] | None = None


Scale = Annotated[float, Field(gt=0, le=100)]
"""Factor between sizes."""


class AugmentConfig(Section):
    """Training augmentation; `crop_size` chooses large-scale jitter in place of the short-side resize."""

    short_sides: Annotated[tuple[Side, ...], Field(max_length=1000)] = ()
    max_side: Side = 1333
    crop_size: Size | None = None
    jitter_scale: tuple[Scale, Scale] = (0.1, 2.0)
    flip: Literal["none", "horizontal", "dihedral"] = "horizontal"
    photometric: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    copy_paste: Fraction = 0.0
    """Chance that things of another training image are pasted in (Ghiasi et al. 2021)."""


def _require_rising(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] >= limits[1]:
        raise ValueError("must be [low, high] with low < high")
    return limits


Limit = Annotated[float, Field(ge=-1e12, le=1e12)]
ValueRange = Annotated[tuple[Limit, Limit], AfterValidator(_require_rising)]
"""The pixel values [low, high] that become black and white."""


Names = Annotated[tuple[str, ...], Field(max_length=1000)]
"""Names of classes."""


class ClassesConfig(Section):
    """Changes to the classes, applied when data are read; the files stay as they are. Merging comes first."""

    merge: dict[str, Names] = Field(default_factory=dict, max_length=1000)
    """New name: names that it replaces, as in `{vehicle: [car, truck]}`. One name renames a class."""
    keep: Names | None = None
    """The classes of the model; pixels of others are void. None: all."""
    drop: Names = ()
    """Classes whose pixels are void: no loss and no metric counts them."""
    stuff: Names = ()
    """Classes that become stuff."""
    things: Names = ()
    """Classes that become things. A stuff segment becomes one object."""
    background: str | None = None
    """Stuff that fills the pixels without a segment. It may be a new class."""

    def edits(self) -> ClassEdits:
        """The same as a record of `categories`.

        Raises:
            ValueError: the changes contradict each other.
        """
        return ClassEdits(self.merge, self.keep, self.drop, self.stuff, self.things, self.background)

    @model_validator(mode="after")
    def _check(self) -> ClassesConfig:
        self.edits()
        return self


class DataConfig(Section):
    """Data sets, augmentation, and the size at which images are tested."""

    train: Source
    val: Source
    categories: Annotated[tuple[CategoryConfig, ...], Field(max_length=254)] | Literal["coco", "cityscapes"] | None = (
        None
    )
    """The classes that the data must have: rows, or a public set's name; by default those of the training JSON."""
    classes: ClassesConfig = ClassesConfig()
    """Changes to these classes."""
    augment: AugmentConfig = AugmentConfig()
    value_range: ValueRange | None = None
    """The values [low, high] of images of more than 8 bits that become 0..255; values outside are clipped. None: if no
    value is above 255, they are taken as they are; otherwise the upper 8 bits of 0..65535. 8-bit images stay as they
    are."""
    repeat_threshold: Fraction = 0.0
    """Images with a class that fewer than this share of them show come more often (Gupta et al. 2019: 0.001)."""
    test_short_side: Side | None = None
    """None: the images' own size."""
    test_max_side: Side = 1333
    max_network_pixels: Annotated[int, Field(ge=1024, le=2**40)] = 2**25
    """Pixels of the network input of an image at most, in a prediction. At the limit, ResNet-50 takes about 10 GB."""
    size_divisor: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] = 32
    num_workers: Annotated[int, Field(ge=0, le=512)] = 2
    max_unreadable: Annotated[int, Field(ge=0, le=10**9)] = 10
    """How many training images a process may find unreadable, and replace by others, before training stops."""


class TrainConfig(Section):
    """Optimiser and schedule, in iterations; `batch_size` is images per step over all processes."""

    iterations: Count
    batch_size: Small = 16
    accumulate: Small = 1
    """Steps of `batch_size` images that share one update."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.02
    reference_batch: Count | None = None
    """Images per update that `lr` is for; it is scaled in proportion to `batch_size * accumulate`. None: as it is."""
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Weight = 1e-4
    """For weights; biases, norms and position embeddings have no weight decay."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each stage of the backbone has d times the learning rate of the next stage: res5 d * lr, res4 d^2 * lr, res2
    d^4 * lr, and the layers before res2 d^5 * lr. All other parts of the model have lr. Usual values with AdamW and
    pretrained weights: 0.7 to 0.9."""
    warmup_iterations: Annotated[int, Field(ge=0, le=10**9)] = 1500
    warmup_factor: Fraction = 0.1
    schedule: Literal["step", "poly", "cosine"] = "step"
    steps: Annotated[tuple[Count, ...], Field(max_length=1000)] = ()
    gamma: Fraction = 0.1
    clip_gradient: Positive | None = None
    precision: Precision = "auto"
    """auto: bf16 autocast where the device computes it natively, else fp32. fp16: autocast with a scaled loss, for GPUs
    without bf16 (V100, T4); a step whose gradient overflows is left out."""
    cuda_graph: bool = False
    """Record forward and backward of each size of batch once and replay them, without Python. For GPUs. Several
    processes then exchange gradients after the backward pass instead of within it, on CPUs too."""
    sync_batch_norm: bool = False
    """Batch norms that learn see the images of all processes (GPUs only)."""
    log_every: Count = 20
    checkpoint_every: Count = 1000
    keep_checkpoints: Small = 2
    """How many `last*.pt` there are: the newest, and those before it in case it cannot be read."""
    evaluate_every: Count = 5000
    wandb_project: Annotated[str, Field(max_length=128)] | None = None
    """Also log to this project of Weights & Biases (needs the package wandb)."""
    histograms_every: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Parameter histograms in TensorBoard; 0: none."""

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up, for the batch that there is."""
        scale = self.batch_size * self.accumulate / self.reference_batch if self.reference_batch else 1
        return self.lr * scale

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if list(self.steps) != sorted(self.steps):
            raise ValueError(f"steps {self.steps} must increase")
        return self


class EvaluateConfig(Section):
    """How the model is judged."""

    batch_size: Small = 1
    precision: Precision = "fp32"
    """Of convolutions and linear layers, as `train.precision`; the fusion computes in float32."""
    instance: bool | Literal["last"] = True
    """Also COCO's instance AP (slower: it needs the second detection list). last: only in the last evaluation of a
    training."""
    panels: Annotated[int, Field(ge=0, le=1000)] = 4
    """Images shown in TensorBoard and written as overlays beside the truth."""


class Config(Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: DataConfig
    model: ModelConfig = UPSNetConfig()
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.model.tasks == {"instance"} and self.evaluate.instance is not True:
            raise ValueError("model.heads=instance can only be judged by AP: it needs evaluate.instance=true")
        return self

    def dump(self) -> dict[str, Any]:
        """Plain values, every default filled in; `parse_config` takes them back."""
        return self.model_dump(mode="json", by_alias=True)
