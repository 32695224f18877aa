"""The numbers of a proposed run: image size, model, batch, length. They follow from the data and the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from upsnet.data.transforms import fit_size
from upsnet.doctor.anchor_choice import AnchorChoice, Coverage, Floats, choose_anchors, limits_of, measure_coverage
from upsnet.doctor.statistics import SplitStatistics
from upsnet.doctor.working_size import SizeLimits, View, choose_view, network_scales
from upsnet.io.parallel import available_cpus
from upsnet.ops.sizes import Size

MEASURED_IMAGES = 500
"""Images on which the coverage of the anchors is measured."""

CPU_MICROSECONDS = (2, 4)
"""CPU time of the small model for a pixel of a step, least and most. On an Intel Xeon `fruits_r18` takes 2.0 in bf16,
and `nuclei_r18`, `shapes_r18` and proposed configs take 2.4 to 3.8 in fp32."""
CPU_PIXELS = 350_000_000
"""Training pixels for each core: 12 to 23 minutes on two cores, and less than half an hour with the evaluations."""
MOST_CPUS = 8
"""Cores that the small model can use."""
CPU_STEP_PIXELS = 4 * 256 * 256
"""Pixels of a step on a CPU, as in `nuclei_r18`."""

EVALUATION_COST = 0.3
"""Time of a pixel in an evaluation over that of a pixel in training. 0.2 to 0.35 were measured on a CPU."""
EVALUATION_SHARE = 0.15
"""Time of all evaluations over that of training, if there are several."""
MOST_EVALUATIONS = 5
MOST_BATCH = 16
"""Images of a step, as in the configs for COCO."""

GPU_MEMORY_USED, GPU_BASE_BYTES = 0.6, 2e9
"""Share of the memory that a step may need by the estimate, and bytes that CUDA and the weights take."""
MANY_IMAGES = 2000
"""Training images from which ResNet-50 is proposed. It overfits smaller sets if it begins with random weights."""
LARGE_GPU = 12e9
"""Bytes of memory from which ResNet-50 trains on crops of 512 pixels."""


@dataclass(frozen=True)
class Device:
    """What a training runs on.

    Attributes:
        cpus: cores that this process may use.
        gpu_memory: bytes of the first GPU; 0: there is none.
        gpu_name: of it.
    """

    cpus: int
    gpu_memory: int = 0
    gpu_name: str = ""

    def __str__(self) -> str:
        cores = f"{self.cpus} CPU core{'s' * (self.cpus != 1)}"
        return f"{self.gpu_name} with {self.gpu_memory / 1e9:.0f} GB, {cores}" if self.gpu_memory else cores


def this_device() -> Device:
    """The device on which `upsnet train` would run here."""
    if not torch.cuda.is_available():
        return Device(available_cpus())
    properties = torch.cuda.get_device_properties(0)
    return Device(available_cpus(), properties.total_memory, properties.name)


@dataclass(frozen=True)
class ModelSize:
    """Widths of a model, as in the `model` section.

    Attributes:
        width: width of the ResNet; None: the backbone is a model of timm with pretrained weights.
        bytes_per_pixel: memory of a step on a GPU for each pixel of network input, an upper estimate.
    """

    backbone: str
    width: int | None
    fpn_channels: int
    semantic: dict[str, int]
    box_channels: int
    mask_channels: int
    mask_layers: int
    bytes_per_pixel: float


SMALL = ModelSize("resnet18", 32, 64, {"channels": 64, "num_layers": 2}, 256, 64, 3, 2500)
MEDIUM = ModelSize("resnet18", 64, 128, {"channels": 128, "num_layers": 2}, 512, 128, 4, 3500)
LARGE = ModelSize("resnet50", 64, 256, {"channels": 128, "num_layers": 3}, 1024, 256, 4, 5000)
"""`LARGE` with its first stages frozen takes 1500 bytes in bf16, 2400 in fp32 (`cityscapes_r50_crop_24gb.yaml`)."""
PRETRAINED = "timm/tf_efficientnet_lite0"
"""Proposed backbone for fewer than `MANY_IMAGES` images if timm is installed, as in `photos_lite0`."""


@dataclass(frozen=True)
class Plan:
    """Everything that several values of a proposed config depend on.

    Attributes:
        train, val: the splits; `val` is the training split if there is no other (`is_same_data`).
        heads: as `model.heads`.
        view: how large the network sees the training images.
        batch: images of a step; iterations: steps; evaluations: how many.
        evaluation_pixels: an evaluation's time, in pixels of training that take as long.
        anchors, coverage: None without instances.
        per_crop: instances of a full crop (95th percentile of the images).
    """

    train: SplitStatistics
    val: SplitStatistics
    is_same_data: bool
    device: Device
    heads: Literal["both", "semantic", "instance"]
    model: ModelSize
    view: View
    batch: int
    iterations: int
    evaluations: int
    evaluation_pixels: float
    anchors: AnchorChoice | None
    coverage: Coverage | None
    per_crop: int

    @property
    def is_on_gpu(self) -> bool:
        """Whether the device has a GPU."""
        return self.device.gpu_memory > 0

    @property
    def pixels(self) -> int:
        """Pixels of all crops of the run."""
        return self.iterations * self.batch * self.view.crop**2

    @property
    def most_instances(self) -> int:
        """Instances of the fullest image."""
        counts = [np.bincount(split.instances.image, minlength=1).max() for split in (self.train, self.val)]
        return int(max(counts))

    @property
    def detections(self) -> int:
        """`model.instance.max_detections`: a quarter more than the fullest image has, as far as time allows."""
        return rounded_up(1.25 * self.most_instances, 10, 20, 500 if self.is_on_gpu else 300)

    @property
    def roi_samples(self) -> int:
        """`model.instance.roi_samples`: four for each instance of a crop, because a quarter of them are objects."""
        return rounded_up(4 * self.per_crop, 16, *((128, 512) if self.is_on_gpu else (48, 128)))

    def objects_in_val(self) -> dict[str, int] | None:
        """Objects in val by the name of each class of train; None if there is no val."""
        if self.is_same_data:
            return None
        names = [category.name for category in self.val.categories.categories]
        counts = dict(zip(names, self.val.objects_of_class().tolist(), strict=True))
        return {category.name: counts.get(category.name, 0) for category in self.train.categories.categories}


def make_plan(
    train: SplitStatistics, val: SplitStatistics | None, device: Device, *, may_be_pretrained: bool = False
) -> Plan:
    """Chooses the numbers.

    Args:
        train: the training split, of at least one image.
        val: the validation split; None: there is no other.
        device: what the training runs on.
        may_be_pretrained: propose a backbone of timm with pretrained weights for a small data set.
    """
    kinds = train.categories.num_stuff > 0, train.categories.num_things > 0
    model = SMALL
    if device.gpu_memory:
        model = LARGE if len(train.names) >= MANY_IMAGES and device.gpu_memory >= LARGE_GPU else MEDIUM
    if may_be_pretrained and len(train.names) < MANY_IMAGES:
        model = replace(model, backbone=PRETRAINED, width=None)
    step_pixels = _step_pixels(model, device)
    view = choose_view(train, _size_limits(train, device, step_pixels))
    batch = max(2, min(MOST_BATCH, 2 ** int(math.log2(max(1, step_pixels / view.crop**2)))))
    evaluation = EVALUATION_COST * _network_pixels(train if val is None else val, view)
    iterations = _iterations(len(train.names), batch * view.crop**2, batch, device, evaluation)
    affordable = EVALUATION_SHARE * iterations * batch * view.crop**2 / evaluation
    images = _network_boxes(train, view)
    anchors = coverage = None
    if images:
        largest = max(size[0] for _, size in images), max(size[1] for _, size in images)
        anchors = choose_anchors(np.concatenate([boxes for boxes, _ in images]), largest)
        coverage = measure_coverage(limits_of(anchors.sizes, anchors.ratios), images)
    return Plan(
        train=train,
        val=train if val is None else val,
        is_same_data=val is None,
        device=device,
        heads="both" if all(kinds) else "semantic" if kinds[0] else "instance",
        model=model,
        view=view,
        batch=batch,
        iterations=iterations,
        evaluations=max(1, min(MOST_EVALUATIONS, int(affordable))),
        evaluation_pixels=evaluation,
        anchors=anchors,
        coverage=coverage,
        per_crop=_instances_per_crop(train, view),
    )


def rounded_up(count: float, step: int, low: int, high: int) -> int:
    """The next multiple of `step`, within the limits."""
    return max(low, min(high, math.ceil(count / step) * step))


def _step_pixels(model: ModelSize, device: Device) -> float:
    """Pixels of network input in a step."""
    if not device.gpu_memory:
        return CPU_STEP_PIXELS
    return max(0.0, GPU_MEMORY_USED * device.gpu_memory - GPU_BASE_BYTES) / model.bytes_per_pixel


def _size_limits(train: SplitStatistics, device: Device, step_pixels: float) -> SizeLimits:
    """On a GPU images keep their size, and at least four crops fit into a step."""
    if not device.gpu_memory:
        return SizeLimits(256, 800, 256, 512)
    own = int(np.median(train.short_sides))
    most_crop = max(256, min(1024, int(math.sqrt(step_pixels / 4)) // 32 * 32))
    return SizeLimits(max(256, min(own, 800)), 1024, min(512, most_crop), most_crop)


def _iterations(images: int, step_pixels: int, batch: int, device: Device, evaluation: float) -> int:
    """The length of the run, rounded down to two digits.

    Small sets are seen 200 times (`fruits_r18`: 185), large ones 36 times (`coco_r50_3x`). A CPU trains as long as a
    person waits; an evaluation takes its part of that time, at most half.
    """
    wanted = min(200 * images, 20_000 + 36 * images) / batch
    if device.gpu_memory:
        count = min(90_000, max(1000, wanted))
    else:
        budget = CPU_PIXELS * min(device.cpus, MOST_CPUS)
        count = min(max(budget / 2, budget - evaluation) / step_pixels, max(300, wanted))
    unit = 10 ** (math.floor(math.log10(count)) - 1)
    return int(count // unit * unit)


def _network_pixels(split: SplitStatistics, view: View) -> float:
    """Pixels of network input of all images of a split in an evaluation."""
    scales = network_scales(split, view.short_side, view.max_side)
    return max(1.0, float((split.sizes.prod(1) * scales**2).sum()))


def _network_boxes(split: SplitStatistics, view: View) -> list[tuple[Floats, Size]]:
    """The instances of some images as boxes float32 [n, 4] in network pixels, and the (H, W) of each image there."""
    things = split.instances
    with_things = np.unique(things.image)
    chosen = with_things[np.linspace(0, len(with_things) - 1, min(MEASURED_IMAGES, len(with_things))).astype(int)]
    found = []
    for image in chosen.tolist():
        height, width = split.sizes[image].tolist()
        size = fit_size((height, width), view.short_side, view.max_side)
        factors = np.array([size[1] / width, size[0] / height] * 2)
        found.append(((things.boxes[things.image == image] * factors).astype(np.float32), size))
    return found


def _instances_per_crop(split: SplitStatistics, view: View) -> int:
    """The 95th percentile over the images, by the share of an image that a crop shows."""
    counts = np.bincount(split.instances.image, minlength=len(split.sizes))
    shares = np.minimum(1, view.crop / (split.sizes * view.scales[:, None])).prod(1)
    return math.ceil(float(np.percentile(counts * shares, 95)))
