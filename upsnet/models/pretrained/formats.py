"""What foreign files of weights call things, and how their conventions become numbers of this project's model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upsnet.categories import known_categories
from upsnet.models.pretrained.rows import UNKNOWN_ROWS, Names, Rows, class_names

RESNET = "torchvision ResNet"
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CAFFE_MEAN = (122.7717, 115.9465, 102.9801)


@dataclass(frozen=True)
class Weights:
    """Weights under this project's names.

    Attributes:
        kind: what the file was.
        tensors: by parameter or buffer name.
        rows: what the rows of the layers stand for, as far as the file tells.
        source: the file, for errors.
    """

    kind: str
    tensors: dict[str, Tensor]
    rows: Rows = UNKNOWN_ROWS
    source: str = "weights"


def from_official(tensors: dict[str, Tensor]) -> Weights:
    """The official UPSNet: BGR, class 0 unused in boxes and masks, one score convolution over four levels joined."""
    found = _renamed(tensors, _OFFICIAL, {".conv2_offset.": ".conv2.offset.", ".conv_offset.": ".conv.offset."})
    _expect_pixels(found, CAFFE_MEAN, (1.0, 1.0, 1.0), bgr=True)
    _drop_background(found, ("bbox_pred", "mask_score"))
    public = None
    if "semantic_head.score.weight" in found and "semantic_head.score.bias" in found:
        score = found.pop("semantic_head.score.weight")
        found |= {f"semantic_head.score.{i}.weight": part for i, part in enumerate(score.chunk(4, dim=1))}
        found["semantic_head.score.0.bias"] = found.pop("semantic_head.score.bias")
        public = {133: "coco", 19: "cityscapes"}.get(len(score))
    return Weights("official UPSNet", found, Rows(_public(public), _public(public, things=True)))


def from_torchvision(tensors: dict[str, Tensor]) -> Weights:
    """torchvision's Mask R-CNN: class 0 unused in boxes and masks; of 91 rows (COCO), row i is category id i."""
    if "backbone.fpn.inner_blocks.0.1.weight" in tensors:
        raise ValueError("torchvision's Mask R-CNN v2 has another architecture, expected v1 (maskrcnn_resnet50_fpn)")
    found = _renamed(tensors, _TORCHVISION, {})
    _expect_pixels(found, IMAGENET_MEAN, IMAGENET_STD)
    _drop_background(found, ("bbox_pred", "mask_score"))
    things: Names | None = None
    if len(found.get("instance_head.cls_score.bias", ())) == 91:
        by_id = {c.id: c.name for c in known_categories("coco").categories}
        things = [by_id.get(number) for number in range(1, 91)]
    return Weights("torchvision Mask R-CNN", found, Rows(things=things))


def from_detectron2(tensors: dict[str, Tensor]) -> Weights:
    """detectron2's R-CNNs: BGR without division, and the background is the last class."""
    inner = {".shortcut.norm.": ".downsample.1.", ".shortcut.": ".downsample.0."}
    inner |= {f".conv{n}.norm.": f".bn{n}." for n in (1, 2, 3)}
    found = _renamed(tensors, _DETECTRON2, inner)
    own = {name: found[name].flatten().flip(0).tolist() for name in ("pixel_mean", "pixel_std") if name in found}
    mean, std = own.get("pixel_mean", IMAGENET_MEAN), own.get("pixel_std", (1.0, 1.0, 1.0))
    _expect_pixels(found, mean, std, bgr=True)
    things: Names | None = None
    if "instance_head.cls_score.bias" in found:
        for key in ("instance_head.cls_score.weight", "instance_head.cls_score.bias"):
            found[key] = found[key].roll(1, 0)
        public = {81: "coco", 9: "cityscapes"}.get(len(found["instance_head.cls_score.bias"]))
        things = _public(public, things=True)
    return Weights("detectron2", found, Rows(things=things))


def from_panoptic_deeplab(tensors: dict[str, Tensor]) -> Weights:
    """The original Panoptic-DeepLab in PyTorch: RGB; of 133 classes (COCO), the things come first."""
    found = {_rewritten(name, _PANOPTIC_DEEPLAB): value for name, value in tensors.items()}
    _expect_pixels(found, IMAGENET_MEAN, IMAGENET_STD)
    return Weights("Panoptic-DeepLab", found, Rows(_things_first(found)))


def from_detectron2_deeplab(tensors: dict[str, Tensor]) -> Weights:
    """detectron2's Panoptic-DeepLab: RGB; of 133 classes (COCO), the things come first."""
    coarsest = 4 if any(".decoder.res4." in name for name in tensors) else 3
    stages = [(rf"_decoder\.res{coarsest - n}\.(project|fuse)_conv\.", rf"_decoder.stages.{n}.\1.") for n in range(3)]
    rules = [*_DETECTRON2_DEEPLAB, *stages, *_DETECTRON2_LAYERS]
    found = {_rewritten(name, rules): value for name, value in tensors.items()}
    _expect_pixels(found, IMAGENET_MEAN, IMAGENET_STD)
    return Weights("detectron2 Panoptic-DeepLab", found, Rows(_things_first(found)))


def from_resnet(tensors: dict[str, Tensor]) -> Weights:
    """torchvision's ResNet for ImageNet, without its classifier."""
    found = {f"backbone.{name}": value for name, value in tensors.items() if not name.startswith("fc.")}
    _expect_pixels(found, IMAGENET_MEAN, IMAGENET_STD)
    return Weights(RESNET, found)


TRANSLATORS: dict[str, Callable[[dict[str, Tensor]], Weights]] = {
    "resnet_backbone.conv1.conv1.weight": from_official,
    "backbone.body.conv1.weight": from_torchvision,
    "backbone.bottom_up.stem.conv1.weight": from_detectron2,
    "decoder.semantic_decoder.aspp.convs.0.0.weight": from_panoptic_deeplab,
    "sem_seg_head.decoder.res5.project_conv.convs.0.weight": from_detectron2_deeplab,
    "layer1.0.conv1.weight": from_resnet,
}
"""A name that only such a file has -> its translation."""

_LEVELS = (2, 3, 4, 5)
_OFFICIAL = {
    "resnet_backbone.conv1.": "backbone.",
    **{f"resnet_backbone.res{n}.layers.": f"backbone.layer{n - 1}." for n in _LEVELS},
    "fpn.fpn_gap.": "fpn.gap.",
    **{f"fpn.fpn_p{n}_1x1.": f"fpn.inner_blocks.{n - 2}." for n in _LEVELS},
    **{f"fpn.fpn_p{n}.": f"fpn.layer_blocks.{n - 2}." for n in _LEVELS},
    "rpn.conv_proposal.0.": "rpn.conv.",
    "rpn.cls_score.": "rpn.cls_logits.",
    **{f"rcnn.{name}.0.": f"instance_head.{name}." for name in ("fc6", "fc7")},
    **{f"rcnn.{name}.": f"instance_head.{name}." for name in ("cls_score", "bbox_pred")},
    **{f"mask_branch.mask_conv{n + 1}.": f"instance_head.mask_layers.{n}." for n in range(4)},
    "mask_branch.mask_deconv1.0.": "instance_head.mask_deconv.",
    "mask_branch.mask_score.": "instance_head.mask_score.",
    **{f"fcn_head.fcn_subnet.conv.{n}.0.": f"semantic_head.layers.{n}." for n in range(8)},
    "fcn_head.score.": "semantic_head.score.",
}
_TORCHVISION = {
    "backbone.body.": "backbone.",
    **{f"backbone.fpn.{kind}.{n}.": f"fpn.{kind}.{n}." for kind in ("inner_blocks", "layer_blocks") for n in range(4)},
    **{
        f"backbone.fpn.{kind}.{n}.0.": f"fpn.{kind}.{n}." for kind in ("inner_blocks", "layer_blocks") for n in range(4)
    },
    "rpn.head.": "rpn.",
    "rpn.head.conv.0.0.": "rpn.conv.",
    "roi_heads.box_head.": "instance_head.",
    "roi_heads.box_predictor.": "instance_head.",
    **{f"roi_heads.mask_head.{n}.": f"instance_head.mask_layers.{n}." for n in range(4)},
    **{f"roi_heads.mask_head.mask_fcn{n + 1}.": f"instance_head.mask_layers.{n}.0." for n in range(4)},
    "roi_heads.mask_predictor.conv5_mask.": "instance_head.mask_deconv.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "instance_head.mask_score.",
}
_DETECTRON2 = {
    "backbone.bottom_up.stem.conv1.": "backbone.conv1.",
    "backbone.bottom_up.stem.conv1.norm.": "backbone.bn1.",
    **{f"backbone.bottom_up.res{n}.": f"backbone.layer{n - 1}." for n in _LEVELS},
    **{f"backbone.fpn_lateral{n}.": f"fpn.inner_blocks.{n - 2}." for n in _LEVELS},
    **{f"backbone.fpn_output{n}.": f"fpn.layer_blocks.{n - 2}." for n in _LEVELS},
    "proposal_generator.rpn_head.conv.": "rpn.conv.",
    "proposal_generator.rpn_head.objectness_logits.": "rpn.cls_logits.",
    "proposal_generator.rpn_head.anchor_deltas.": "rpn.bbox_pred.",
    "roi_heads.box_head.fc1.": "instance_head.fc6.",
    "roi_heads.box_head.fc2.": "instance_head.fc7.",
    "roi_heads.box_predictor.": "instance_head.",
    **{f"roi_heads.mask_head.mask_fcn{n + 1}.": f"instance_head.mask_layers.{n}.0." for n in range(4)},
    "roi_heads.mask_head.deconv.": "instance_head.mask_deconv.",
    "roi_heads.mask_head.predictor.": "instance_head.mask_score.",
}

_PANOPTIC_DEEPLAB = [
    (r"^decoder\.(semantic|instance)_decoder\.aspp\.convs\.\d+\.aspp_pooling\.1\.", r"\1_decoder.aspp.pool.conv."),
    (r"^decoder\.(semantic|instance)_decoder\.aspp\.convs\.", r"\1_decoder.aspp.branches."),
    (r"^decoder\.(semantic|instance)_decoder\.aspp\.project\.", r"\1_decoder.aspp.project."),
    (r"^decoder\.(semantic|instance)_decoder\.(project|fuse)\.(\d+)\.", r"\1_decoder.stages.\3.\2."),
    (r"^decoder\.\w+_head\.classifier\.(semantic|center|offset)\.0\.", r"\1_head.layers."),
    (r"^decoder\.\w+_head\.classifier\.(semantic|center|offset)\.1\.", r"\1_head.predictor."),
    (r"\.(branches\.\d+|project)\.0\.", r".\1.conv."),
    (r"\.(branches\.\d+|project)\.1\.", r".\1.norm."),
    (r"\.(fuse|layers)\.0\.0\.0\.", r".\1.0.conv."),
    (r"\.(fuse|layers)\.0\.0\.1\.", r".\1.0.norm."),
    (r"\.(fuse|layers)\.0\.1\.", r".\1.1.conv."),
    (r"\.(fuse|layers)\.0\.2\.", r".\1.1.norm."),
]
"""Patterns in names and what replaces them, one after the other."""
_DETECTRON2_DEEPLAB = [
    (r"^backbone\.stem\.conv(\d)\.norm\.", r"backbone.bn\1."),
    (r"^backbone\.stem\.", "backbone."),
    *((rf"^backbone\.res{n}\.", f"backbone.layer{n - 1}.") for n in _LEVELS),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^(backbone\..*)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"^sem_seg_head\.decoder\.", "semantic_decoder."),
    (r"^ins_embed_head\.decoder\.", "instance_decoder."),
    (r"_decoder\.res5\.project_conv\.convs\.(\d+)\.1\.", "_decoder.aspp.pool.conv."),
    (r"_decoder\.res5\.project_conv\.convs\.", "_decoder.aspp.branches."),
    (r"_decoder\.res5\.project_conv\.project\.", "_decoder.aspp.project."),
    (r"^sem_seg_head\.(head|predictor)\.", r"semantic_head.\1."),
    (r"^ins_embed_head\.(center|offset)_(head|predictor)\.", r"\1_head.\2."),
    (r"^(semantic|center|offset)_head\.head\.", r"\1_head.layers."),
]
_DETECTRON2_LAYERS = [
    (r"\.depthwise\.", ".0."),
    (r"\.pointwise\.", ".1."),
    (r"\.((?:branches|layers|fuse|project)(?:\.\d+)*)\.weight$", r".\1.conv.weight"),
]


def official_name(name: str) -> str:
    """What the official program calls a parameter of this project's model."""
    if name.startswith("semantic_head.score."):
        return f"fcn_head.score.{name.rsplit('.', 1)[1]}"
    ours = {new: old for old, new in _OFFICIAL.items()}
    prefix = max((p for p in ours if name.startswith(p)), key=len, default="")
    rest = name.removeprefix(prefix).replace("conv2.offset.", "conv2_offset.").replace("conv.offset.", "conv_offset.")
    return ours.get(prefix, "") + rest


def _renamed(tensors: dict[str, Tensor], prefixes: dict[str, str], inner: dict[str, str]) -> dict[str, Tensor]:
    """Replaces the longest known prefix of each name, then what stands inside; names without one stay."""
    by_length = sorted(prefixes, key=len, reverse=True)
    found = {}
    for name, value in tensors.items():
        prefix = next((p for p in by_length if name.startswith(p)), None)
        if prefix is not None:
            name = prefixes[prefix] + name.removeprefix(prefix)
            for old, new in inner.items():
                name = name.replace(old, new)
        found[name] = value
    return found


def _rewritten(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _expect_pixels(
    tensors: dict[str, Tensor], mean: Sequence[float], std: Sequence[float], *, bgr: bool = False
) -> None:
    """Notes what pixels the weights expect; a first convolution over BGR becomes one over RGB."""
    tensors["pixel_mean"], tensors["pixel_std"] = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    if bgr:
        tensors["backbone.conv1.weight"] = tensors["backbone.conv1.weight"].flip(1)


def _drop_background(tensors: dict[str, Tensor], layers: Sequence[str]) -> None:
    """Removes the rows of class 0 from layers that never use them."""
    for layer in layers:
        for key in (f"instance_head.{layer}.weight", f"instance_head.{layer}.bias"):
            if key in tensors:
                tensors[key] = tensors[key][4 if layer == "bbox_pred" else 1 :]


def _public(name: str | None, *, things: bool = False) -> Names | None:
    return None if name is None else class_names(known_categories(name), things=things)


def _things_first(tensors: dict[str, Tensor]) -> Names | None:
    """The classes of the rows of the semantic predictor of Panoptic-DeepLab, by their number."""
    public = {133: "coco", 19: "cityscapes"}.get(len(tensors.get("semantic_head.predictor.bias", ())))
    if public is None:
        return None
    categories = known_categories(public)
    names = class_names(categories)
    # Cityscapes is in the order of trainIds: stuff first, as here.
    return names if public == "cityscapes" else names[categories.num_stuff :] + names[: categories.num_stuff]
