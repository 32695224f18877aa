"""A whole run config proposed from the data, with the reason for each value.

`propose` is a pure function. The values are a start: they follow from sizes and counts, and from no training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from upsnet.doctor.advice import advise
from upsnet.doctor.plan import CPU_MICROSECONDS, LARGE, MOST_CPUS, Device, Plan, make_plan, rounded_up
from upsnet.doctor.statistics import SplitStatistics
from upsnet.doctor.verdicts import Verdict, percent, printable, some
from upsnet.doctor.working_size import FILLED, VISIBLE

SELDOM = 0.05
"""Share of the images with a class, below which a run over a small data set shows it a few times only."""
REPEAT_THRESHOLD = 0.1
"""`data.repeat_threshold` then: an image of a class in 1 % of the images comes sqrt(10) = 3 times as often."""
FEW_IMAGES = 50
"""Training images below which the running statistics of batch norms describe single images."""
LONG_BOX = 3
"""Ratio of the sides from which the reason for the aspect ratios counts a box as long."""
SAME_DATA = (
    "The same images as in training, because there are no others: scores measure nothing but the training error. Hold "
    "images out: convert again with --split-val 0.2."
)

KEPT = {"value_range": "Black and white of the images of more than 8 bits: their values lie in this range."}
"""Reasons for keys that come with the data."""


class Value(NamedTuple):
    """A value of the config and the reason for it; an empty reason needs no comment."""

    key: str
    value: Any
    reason: str = ""


class ClassRow(NamedTuple):
    """A class and its objects (of stuff: images); `in_val` is None without a validation split."""

    name: str
    kind: str
    in_train: int
    in_val: int | None


@dataclass(frozen=True)
class Proposal:
    """A run config in the order in which it is written.

    Attributes:
        values: with full keys, such as `train.lr`.
        advice: what is wrong with the data and no config repairs.
        classes: of the training data.
        summary: the data and the device.
    """

    values: tuple[Value, ...]
    advice: tuple[Verdict, ...]
    classes: tuple[ClassRow, ...]
    summary: str

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, as `parse_config` takes them."""
        nested: dict[str, Any] = {}
        for key, value, _ in self.values:
            *sections, name = key.split(".")
            inner = nested
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[name] = value
        return nested


def propose(
    train: SplitStatistics,
    val: SplitStatistics | None,
    data: dict[str, Any],
    device: Device,
    *,
    source: str,
    has_timm: bool = False,
) -> Proposal:
    """Proposes a config.

    Args:
        train: the training split.
        val: the validation split; None: there is none, and `data` names the training split twice.
        data: the keys of the `data` section that name the data: `train`, `val`, and perhaps `classes` and others.
        device: what the training runs on.
        source: the data set, for the heading and for errors.
        has_timm: timm is installed; a small set of 8-bit images then gets a pretrained backbone of timm.

    Raises:
        ValueError: no image of a split can be used.
    """
    for name, split in (("train", train), ("val", val)):
        if split is not None and not split.names:
            raise ValueError(f"{source}: no image of {name} can be used, expected at least one; see the errors above")
    has_8bit_images = data["train"]["format"] != "shapes" and "value_range" not in data
    val_or_none = None if data["train"] == data["val"] else val
    plan = make_plan(train, val_or_none, device, may_be_pretrained=has_timm and has_8bit_images)
    values = [*_data_values(plan, data), *_model_values(plan), *_train_values(plan)]
    if plan.heads == "both":
        values.append(Value("evaluate.instance", "last", "AP takes longer, so that only the last evaluation has it."))
    in_val = plan.objects_in_val()
    classes = tuple(
        ClassRow(c.name, "thing" if c.is_thing else "stuff", count, None if in_val is None else in_val[c.name])
        for c, count in zip(train.categories.categories, train.objects_of_class().tolist(), strict=True)
    )
    counts = f"{len(train.names)} training and {0 if plan.is_same_data else len(plan.val.names)} validation images"
    return Proposal(tuple(values), tuple(advise(plan)), classes, f"{source}: {counts}, {device}")


def _data_values(plan: Plan, data: dict[str, Any]) -> list[Value]:
    view, cpus = plan.view, plan.device.cpus
    workers = max(1, min(12, cpus - 1)) if plan.is_on_gpu else 1 if cpus <= 4 else 2
    shrunk = int((view.scales * plan.train.short_sides < 0.95 * view.short_side).sum())
    side = f"{shrunk} long images shrink to this side." if shrunk else "No training image is longer at this size."
    return [
        Value("data.train", data["train"]),
        Value("data.val", data["val"], SAME_DATA if plan.is_same_data else ""),
        *(Value(f"data.{key}", value, KEPT.get(key, "")) for key, value in data.items() if key not in ("train", "val")),
        Value("data.num_workers", workers, f"Processes that read images, for {cpus} CPU core{'s' * (cpus > 1)}."),
        Value("data.augment.crop_size", [view.crop, view.crop], _crop_reason(plan)),
        Value(
            "data.augment.jitter_scale",
            list(view.jitter),
            "Relative to the scale at which an image fits into the crop. The middle is the scale of testing, so that "
            "objects have the same size in training and testing; then up to 4/3 larger or smaller at random.",
        ),
        Value(
            "data.augment.flip",
            "horizontal",
            "dihedral if the images have no up (microscopy, aerial); none if left and right differ (text).",
        ),
        Value("data.augment.photometric", 0.3, "Brightness, contrast and saturation vary by 30 %."),
        *_repeat_value(plan, data),
        Value("data.test_short_side", view.short_side, _size_reason(plan)),
        Value("data.test_max_side", view.max_side, side),
    ]


def _crop_reason(plan: Plan) -> str:
    view = plan.view
    if not view.is_cut.any():
        return "Pixels a side. Every object fits into a crop, or the whole image does."
    return (
        f"Most crops cut through {percent(view.is_cut.mean(), 1)} of the objects: those longer than {percent(FILLED)} "
        "of the crop, in images that do not fit into it."
    )


def _size_reason(plan: Plan) -> str:
    view = plan.view
    zoom = f"It is {np.median(view.scales):.2g} times the short side of a typical image."
    if not len(view.sides):
        return f"Pixels of the short side in the network. {zoom}"
    return (
        f"{percent((view.sides >= VISIBLE).mean())} of the objects are larger than {VISIBLE} pixels at this size, and "
        f"half are larger than {np.median(view.sides):.0f}. {zoom}"
    )


def _repeat_value(plan: Plan, data: dict[str, Any]) -> list[Value]:
    shares = plan.train.images_of_class() / len(plan.train.names)
    seldom = [
        f"{printable(category.name)} {percent(share, 1)}"
        for category, share in zip(plan.train.categories.categories, shares.tolist(), strict=True)
        if 0 < share < SELDOM
    ]
    if not seldom or data["train"]["format"] != "coco":
        return []
    reason = f"Images with rare classes come more often. Share of the images with them: {some(seldom)}."
    return [Value("data.repeat_threshold", REPEAT_THRESHOLD, reason)]


def _model_values(plan: Plan) -> list[Value]:
    values = [*_heads_value(plan), *_backbone_values(plan)]
    if plan.heads != "instance":
        values.append(Value("model.semantic", plan.model.semantic))
    if plan.heads != "semantic":
        values += [*_proposal_values(plan), *_instance_values(plan)]
    if plan.heads != "instance":
        values.append(_stuff_limit(plan))
    if plan.heads == "both":
        values += _panoptic_values(plan)
    return values


def _heads_value(plan: Plan) -> list[Value]:
    if plan.heads == "semantic":
        return [Value("model.heads", "semantic", "The data have no things.")]
    if plan.heads == "instance":
        hint = "Convert again with --background NAME to make the rest a stuff class, and to train both heads."
        return [Value("model.heads", "instance", f"The data have no stuff. {hint}")]
    return []


def _backbone_values(plan: Plan) -> list[Value]:
    model = plan.model
    size = f"For {plan.device.gpu_name}" if plan.is_on_gpu else "Small, for a CPU"
    channels = Value("model.fpn_channels", model.fpn_channels, "Channels here and below fit the backbone.")
    if model.width is None:
        return [
            Value(
                "model.backbone",
                {"name": model.backbone, "weights": "pretrained"},
                f"{size}. It starts from ImageNet weights, because {len(plan.train.names)} images are few for random "
                "weights. timm downloads them; without a network, set weights to a file with timm's parameter names.",
            ),
            channels,
        ]
    norm, why = "bn", f"batch norm takes its statistics from {plan.batch} images"
    if plan.batch < 4 or len(plan.train.names) < FEW_IMAGES:
        norm, why = "gn", "group norm, because there are few images for the statistics of a batch norm"
    return [
        Value(
            "model.backbone",
            {"name": model.backbone, "width": model.width, "norm": norm, "freeze_at": 0},
            f"{size}. The weights are random, so that nothing is frozen; {why}. If you have ImageNet weights and a "
            "GPU: {name: resnet50, norm: frozen_bn, freeze_at: 2, weights: IMAGENET1K_V1}.",
        ),
        channels,
    ]


def _proposal_values(plan: Plan) -> list[Value]:
    proposals = rounded_up(2.5 * plan.detections, 50, 100, 1000 if plan.is_on_gpu else 500)
    return [
        *_anchor_values(plan),
        Value("model.rpn.pre_nms", 2 * proposals, f"Proposals for up to {plan.detections} detections."),
        Value("model.rpn.post_nms", proposals),
        Value("model.rpn.pre_nms_train", max(500, 4 * plan.roi_samples), "Proposals for the RoIs that train."),
        Value("model.rpn.post_nms_train", 2 * plan.roi_samples),
        Value("model.rpn.samples", 256 if plan.per_crop > 16 or plan.is_on_gpu else 128),
    ]


def _anchor_values(plan: Plan) -> list[Value]:
    if plan.anchors is None or plan.coverage is None:
        return []
    sizes, sides = plan.anchors.sizes, plan.view.sides
    spans = plan.train.instances.boxes[:, 2:] - plan.train.instances.boxes[:, :2]
    long = float((spans.max(1) > LONG_BOX * spans.min(1)).mean())
    return [
        Value(
            "model.rpn.anchor_sizes",
            [list(row) for row in sizes],
            f"Pixels, a row for each pyramid level (strides 4 to {2 ** (1 + len(sizes))}). Objects have "
            f"{np.percentile(sides, 5):.0f} to {np.percentile(sides, 95):.0f} pixels (5th to 95th percentile). "
            f"{percent(plan.coverage.below_negative, 1)} of them have no anchor with IoU 0.3, "
            f"{percent(plan.coverage.below_positive)} none with IoU 0.7.",
        ),
        Value(
            "model.rpn.aspect_ratios",
            list(plan.anchors.ratios),
            f"Height over width. {percent(long)} of the boxes are more than {LONG_BOX} times as long as wide, or high.",
        ),
    ]


def _instance_values(plan: Plan) -> list[Value]:
    model = plan.model
    values = [
        Value(
            "model.instance.roi_samples",
            plan.roi_samples,
            f"A full crop shows about {plan.per_crop} instances, and a quarter of the RoIs are objects.",
        )
    ]
    if plan.anchors is not None:
        size = rounded_up(2 * float(np.mean(plan.anchors.sizes[2])), 16, 96, 224)
        reason = "Boxes of this size pool from the level of stride 16, smaller ones from finer levels."
        values.append(Value("model.instance.canonical_size", size, reason))
    return [
        *values,
        Value("model.instance.box_channels", model.box_channels),
        Value("model.instance.mask_channels", model.mask_channels),
        Value("model.instance.mask_layers", model.mask_layers),
        Value(
            "model.instance.max_detections", plan.detections, f"The fullest image has {plan.most_instances} instances."
        ),
    ]


def _stuff_limit(plan: Plan) -> Value:
    is_stuff = plan.train.channels < plan.train.categories.num_stuff
    small = float(np.percentile(plan.train.areas[is_stuff], 2)) if is_stuff.any() else 0.0
    return Value(
        "model.panoptic.stuff_area_limit",
        min(4096, int(small / 2)),
        f"Stuff of fewer pixels becomes void. 98 % of the annotated stuff has more than {small:.0f} pixels.",
    )


def _panoptic_values(plan: Plan) -> list[Value]:
    return [
        Value(
            "model.panoptic.train_slots",
            rounded_up(plan.per_crop, 4, 8, 64 if plan.is_on_gpu else 16),
            f"Instances of a crop in the panoptic loss. A full crop shows about {plan.per_crop}; each takes memory.",
        ),
        Value("model.panoptic.score_threshold", 0.5, "As in the configs of this project for small data."),
        Value("model.loss.semantic_roi", 0, "Left out, which saves time, as in these configs."),
    ]


def _train_values(plan: Plan) -> list[Value]:
    iterations = plan.iterations
    seen = iterations * plan.batch / len(plan.train.names)
    times = f"{seen:.0f}" if seen >= 10 else f"{seen:.1f}"
    if plan.model.width is None:
        lr, rule = 0.0005 * math.sqrt(plan.batch), "the rate of photos_lite0, scaled by the root of the batch size"
    elif plan.model is LARGE:
        lr, rule = 0.02 * plan.batch / 16, "the rate of coco_r50, in proportion to the batch"
    else:
        lr, rule = 0.02 * math.sqrt(plan.batch), "the rate of nuclei_r18, by the square root of the batch"
    values = [
        Value("train.iterations", iterations, f"Each image is seen {times} times. {_time_reason(plan)}"),
        Value("train.batch_size", plan.batch, _batch_reason(plan)),
        *([Value("train.optimizer", "adamw")] if plan.model.width is None else []),
        Value("train.lr", round(lr, 4), f"For {plan.batch} images: {rule}. Another batch_size scales it."),
        Value("train.reference_batch", plan.batch),
        Value("train.weight_decay", 0.05) if plan.model.width is None else Value("train.nesterov", True),
        Value("train.warmup_iterations", min(500, iterations // 10), "The rate rises to lr during these iterations."),
        Value("train.schedule", "cosine", "The rate falls to 0 until the end, so that there are no steps to place."),
        Value("train.clip_gradient", 5, "A rare large gradient does not spoil the run."),
    ]
    if plan.is_on_gpu and plan.view.jitter[0] >= float(np.max(plan.train.long_sides / plan.train.short_sides)):
        reason = "The GPU repeats a recorded step, because every crop has the same size."
        values.append(Value("train.cuda_graph", True, reason))
    images = f"{len(plan.val.names)} image{'s' * (len(plan.val.names) > 1)}"
    runs = f"{plan.evaluations} evaluation{'s' * (plan.evaluations > 1)}"
    return [
        *values,
        Value("train.evaluate_every", math.ceil(iterations / plan.evaluations), f"{runs} of {images}."),
        Value("train.checkpoint_every", min(1000, iterations // 10)),
    ]


def _time_reason(plan: Plan) -> str:
    measure = "`upsnet train --dry-run` measures time and memory."
    if plan.is_on_gpu:
        return measure
    cores = min(plan.device.cpus, MOST_CPUS)
    low, high = (one * plan.pixels / 1e6 / cores / 60 for one in CPU_MICROSECONDS)
    rate = " to ".join(map(str, CPU_MICROSECONDS))
    return (
        f"{plan.pixels / 1e6:.0f} million pixels take about {low:.0f} to {high:.0f} minutes without evaluations, if a "
        f"pixel takes {rate} CPU microseconds as on an Intel Xeon. {measure}"
    )


def _batch_reason(plan: Plan) -> str:
    pixels = f"{plan.batch * plan.view.crop**2 / 1e6:.2f} million pixels a step"
    if plan.is_on_gpu:
        return f"{pixels}, estimated for {plan.device.gpu_memory / 1e9:.0f} GB and not measured."
    return f"{pixels}."
