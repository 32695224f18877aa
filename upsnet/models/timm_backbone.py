"""Feature extractors from the package timm. timm is optional and imported only when such a model is built."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upsnet.config import TimmBackboneConfig
from upsnet.models.backbone import Backbone
from upsnet.text import first_line

EXAMPLES = "timm/convnext_tiny, timm/resnet50d or timm/tf_efficientnet_lite0"
"""Model names that error messages propose."""
PROBE_SIZE = (64, 96)
"""(H, W) of the image on which a new model is run once, to check the sizes of its feature maps."""


TAKE_ONE_SIZE = ("swin_", "swinv2_")
"""Prefixes of models that accept only the image size of their training, unless `strict_img_size` is False."""


class TimmBackbone(Backbone):
    """A hierarchical model of timm without its classifier.

    The weights are random until `models.pretrained.timm_weights` loads others. Dropout and stochastic depth are off,
    because a resumed run would draw other random numbers.

    Args:
        config: `model.backbone`; `weights` is not used here.
        remainder: 0 or 1; height and width of the images are 32 n + `remainder`.

    Attributes:
        name, output_stride: as in the config.
        net: timm's feature extractor. It returns maps of at least four strides.
        levels: indices of res2..res5 among the maps of `net`.

    Raises:
        ValueError: timm is not installed, timm has no model of this name, or the model does not return maps of the
            strides 4 to `output_stride`.
    """

    def __init__(self, config: TimmBackboneConfig, remainder: int = 0) -> None:
        super().__init__()
        self.name, self.output_stride = config.name, config.output_stride
        self.frozen = []
        self.exports_any_size = not config.name.startswith(tuple(config.prefix + name for name in TAKE_ONE_SIZE))
        self.net, self.levels = _build(config)
        self.channels = [self.net.feature_info.channels()[level] for level in self.levels]
        _remove_randomness(self.net)
        _fix_padding(self.net, remainder)
        self._require_maps(remainder)
        self._freeze(config)
        self.train()

    norm_without_batch = "frozen_bn"

    @property
    def first_conv(self) -> nn.Conv2d:
        """The first convolution."""
        return next(module for module in self.net.modules() if isinstance(module, nn.Conv2d))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> res2..res5 [B, C, H', W'], by default at strides 4, 8, 16, 32."""
        maps = self.net(images)
        features = [maps[level] for level in self.levels]
        if getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return features

    @torch.no_grad()
    def _require_maps(self, remainder: int) -> None:
        """Checks the sizes of the maps of a small image, because timm's description of a model may be wrong."""
        height, width = (side + remainder for side in PROBE_SIZE)
        where = f"model.backbone.name={self.name}: "
        was_training = self.training
        self.eval()  # in training mode, this image would change the statistics of batch norms
        try:
            maps = self(torch.zeros(1, 3, height, width))
        except Exception as error:  # timm's models raise exceptions of many types
            raise ValueError(
                f"{where}the model fails on an image of {height}x{width} ({first_line(error)}), expected a model that "
                f"accepts images of any size, such as {EXAMPLES}"
            ) from None
        self.train(was_training)
        expected = [tuple(side // stride + remainder for side in PROBE_SIZE) for stride in _strides(self.output_stride)]
        if [tuple(feature.shape[1:]) for feature in maps] != [
            (channels, *size) for channels, size in zip(self.channels, expected, strict=True)
        ]:
            found, wanted = (
                ", ".join(f"{rows}x{columns}" for rows, columns in sizes)
                for sizes in ([feature.shape[2:] for feature in maps], expected)
            )
            remedy = "set model.align_corners=false, or choose" if remainder else "choose"
            raise ValueError(
                f"{where}an image of {height}x{width} gives maps of {found}, expected {wanted}; {remedy} another "
                "model, such as timm/resnet50d"
            )

    def parts(self) -> list[list[nn.Parameter]]:
        """As `Backbone.parts`.

        Raises:
            ValueError: the parameters cannot be assigned to stages, because the model does not register the stages in
                their order.
        """
        parts: list[list[nn.Parameter]] = [[] for _ in range(5)]
        for parameter, part in zip(self.net.parameters(), self._part_of_parameters(), strict=True):
            parts[part].append(parameter)
        return parts

    def without_weight_decay(self) -> list[nn.Parameter]:
        """The parameters that `no_weight_decay` of timm's model lists, such as position embeddings."""
        full = full_model(self.name)
        names = full.no_weight_decay() if hasattr(full, "no_weight_decay") else ()
        wanted = {plain_name(name) for name in names}
        return [parameter for name, parameter in self.net.named_parameters() if plain_name(name) in wanted]

    def _part_of_parameters(self) -> list[int]:
        """Index of the part of each parameter of `net`: 0 before the first stage, n in stage n.

        timm gives the name of the last module of each stage, and registers modules in the order of their use.
        """
        names = [f"{plain_name(name)}_" for name, _ in self.net.named_parameters()]
        modules = [self.net.feature_info.module_name()[level] for level in self.levels]
        found = [[i for i, name in enumerate(names) if name.startswith(f"{plain_name(m)}_")] for m in modules]
        ends = [max(places, default=-1) for places in found]
        if min(ends) < 0 or ends != sorted(set(ends)):
            raise ValueError(
                f"model.backbone.name={self.name}: the parameters of this model cannot be assigned to stages; set "
                "model.backbone.freeze_at=0 and train.layer_decay=1"
            )
        start = min(found[0])
        return [0 if i < start else min(4, 1 + sum(i > end for end in ends)) for i in range(len(names))]

    def _freeze(self, config: TimmBackboneConfig) -> None:
        """Freezes the first parts, and batch norms with `frozen_bn`; lists all modules without training in `frozen`."""
        norms = [module for module in self.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        norms = norms if config.norm == "frozen_bn" else []
        for norm in norms:
            norm.requires_grad_(False)
        for part in self.parts()[: config.freeze_at] if config.freeze_at else []:
            for parameter in part:
                parameter.requires_grad_(False)
        with_weights = ((module, list(module.parameters())) for module in self.net.modules())
        unchanged = [module for module, own in with_weights if own and not any(p.requires_grad for p in own)]
        self.frozen = [*norms, *unchanged]


def import_timm() -> Any:
    """Imports timm and returns the module.

    Raises:
        ValueError: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"model.backbone.name: timm/... needs the package {error.name}: pip install 'upsnet[timm]'"
        ) from None
    return timm


def full_model(name: str, *, pretrained: bool = False) -> Any:
    """Creates timm's complete model, with its classifier and timm's parameter names.

    Args:
        name: `model.backbone.name`.
        pretrained: timm downloads and loads its weights; otherwise the weights are random.

    Raises:
        Exception: the download failed; timm raises exceptions of many types.
    """
    with torch.random.fork_rng(devices=[]):
        return import_timm().create_model(known_name(name), pretrained=pretrained)


def plain_name(name: str) -> str:
    """Returns a parameter name that is equal in timm's complete model and in its feature extractor.

    timm's feature extractors rename modules.
    """
    return name.removeprefix("model.").removeprefix("body.").replace(".", "_")


def known_name(name: str) -> str:
    """Checks a model name and returns it as timm knows it, without `timm/`.

    Args:
        name: `model.backbone.name`.

    Raises:
        ValueError: timm has no such model or no such pretrained weights; the message lists similar names.
    """
    timm = import_timm()
    own = name.removeprefix(TimmBackboneConfig.prefix)
    model, dot, _ = own.partition(".")
    if not timm.is_model(model):
        expected, names = "the name of a model of timm", timm.list_models()
    elif dot and own not in timm.list_models(f"{model}.*", pretrained=True):
        expected, names = f"weights of {model}", timm.list_models(f"{model}.*", pretrained=True)
    else:
        return own
    near = difflib.get_close_matches(own, names, n=3, cutoff=0.5) or names[:3]
    hint = f", such as {', '.join(TimmBackboneConfig.prefix + one for one in near)}" if near else ""
    raise ValueError(
        f"model.backbone.name={name}: timm {timm.__version__} has no such model, expected {expected}{hint}"
    )


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, RGB in 0..255, that the weights of a model of timm expect.

    Args:
        name: `model.backbone.name`.

    Raises:
        ValueError: as `known_name`.
    """
    about = import_timm().get_pretrained_cfg(known_name(name))
    mean, std = (tuple(round(255 * value, 4) for value in values) for values in (about.mean, about.std))
    return mean, std


def _build(config: TimmBackboneConfig) -> tuple[Any, list[int]]:
    """Creates timm's feature extractor, and finds the indices of res2..res5 among its maps."""
    name = known_name(config.name)
    options: dict[str, Any] = {"features_only": True}
    if config.output_stride != 32:
        options["output_stride"] = config.output_stride
    if name.startswith(TAKE_ONE_SIZE):
        options["strict_img_size"] = False
    remedy = f"choose a model whose maps have these strides, such as {EXAMPLES}"
    if config.output_stride != 32:
        remedy = "set model.backbone.output_stride=32, or choose a model that can be dilated, such as timm/resnet50d"
    strides = _strides(config.output_stride)
    where = f"model.backbone.name={config.name}"
    wanted = f"expected maps of strides {', '.join(map(str, strides))}"
    try:
        net = import_timm().create_model(name, **options)
        found = net.feature_info.reduction()
    except Exception as error:  # timm raises exceptions of many types
        raise ValueError(f"{where}: timm cannot create it ({first_line(error)}), {wanted}; {remedy}") from None
    levels = _levels(found, strides)
    if levels is None:
        raise ValueError(f"{where}: the model has maps of strides {', '.join(map(str, found))}, {wanted}; {remedy}")
    if levels[-1] != len(found) - 1:  # leaves out the layers after res5, because nothing uses their result
        net, levels = import_timm().create_model(name, **options, out_indices=levels), [0, 1, 2, 3]
    return net, levels


def _strides(output_stride: int) -> list[int]:
    return [min(stride, output_stride) for stride in (4, 8, 16, 32)]


def _levels(found: Sequence[int], wanted: Sequence[int]) -> list[int] | None:
    """Indices of the wanted strides in `found`, each the last possible one; None if a stride is missing."""
    levels: list[int] = []
    end = len(found)
    for stride in reversed(wanted):
        end = next((place for place in reversed(range(end)) if found[place] == stride), -1)
        if end < 0:
            return None
        levels.insert(0, end)
    return levels


def _remove_randomness(net: nn.Module) -> None:
    """Sets the rates of dropout and stochastic depth to 0."""
    module: Any
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


def _fix_padding(net: nn.Module, remainder: int) -> None:
    """Replaces TensorFlow's `same` padding by a constant padding.

    timm computes the padding from the size of each map, and `torch.export` cannot trace this in reasonable time. For
    image sizes of 32 n + `remainder` the padding is constant.

    Args:
        net: changed in place; the names of its parameters do not change.
        remainder: as for `TimmBackbone`.
    """
    from timm.layers import Conv2dSame
    from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame

    layer: Any
    for name, layer in list(net.named_modules()):
        fixed: Any = layer
        if isinstance(layer, Conv2dSame):
            shape = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride)
            options = {"dilation": layer.dilation, "groups": layer.groups, "bias": layer.bias is not None}
            fixed = nn.utils.skip_init(nn.Conv2d, *shape, **options)
            fixed.weight, fixed.bias = layer.weight, layer.bias
        elif isinstance(layer, AvgPool2dSame):
            options = {"ceil_mode": layer.ceil_mode, "count_include_pad": layer.count_include_pad}
            fixed = nn.AvgPool2d(layer.kernel_size, layer.stride, **options)
        elif isinstance(layer, MaxPool2dSame):
            fixed = nn.MaxPool2d(layer.kernel_size, layer.stride, dilation=layer.dilation, ceil_mode=layer.ceil_mode)
        elif getattr(layer, "same_pad", False):  # convolutions with standardised weights
            layer.same_pad = False
        else:
            continue
        dilation = getattr(layer, "dilation", (1, 1))
        padding: list[int] = []
        for kernel, stride, step in zip(layer.kernel_size, layer.stride, dilation, strict=True):
            total = max(0, (kernel - 1) * step + 1 - (1 if remainder else stride))
            padding = [total // 2, total - total // 2, *padding]  # F.pad takes the last dimension first
        value = -math.inf if isinstance(layer, MaxPool2dSame) else 0.0
        fixed.register_forward_pre_hook(partial(_pad, padding, value))
        net.set_submodule(name, fixed)


def _pad(padding: list[int], value: float, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Pads the input of a layer (a forward pre-hook)."""
    return F.pad(inputs[0], padding, value=value)
