"""Feature extractors: their interface, and the ResNet (He et al. 2016) with torchvision's blocks and names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet as torchvision_resnet

from upsnet.config import BackboneConfig
from upsnet.models.layers import Conv2d, DeformableConv, make_norm, own_convolutions


class Backbone(nn.Module, ABC):
    """Interface of a feature extractor of four stages, for the architectures and the optimiser.

    Attributes:
        channels: of the four outputs.
        frozen: modules that training does not change; they stay in evaluation mode.
    """

    channels: list[int]
    frozen: list[nn.Module]
    norm_without_batch: str = "gn"
    """Value of `model.backbone.norm` that uses no batch statistics, for error messages."""

    exports_any_size: bool = True
    """Whether `torch.export` can trace it for images of any size in reasonable time."""

    @property
    @abstractmethod
    def first_conv(self) -> nn.Conv2d:
        """The first convolution. Images are converted to the memory format of its weights."""

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> res2..res5 [B, C, H', W'], by default at strides 4, 8, 16, 32."""

    @abstractmethod
    def parts(self) -> list[list[nn.Parameter]]:
        """All parameters in five lists: those before the first stage, and those of each stage."""

    def without_weight_decay(self) -> list[nn.Parameter]:
        """Parameters of more than one dimension that have no weight decay, such as position embeddings."""
        return []

    def train(self, mode: bool = True) -> Self:
        """Sets the mode. Frozen modules stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.train(False)
        return self


def backbone_of(model: nn.Module) -> Backbone | None:
    """Finds the `Backbone` in a model; None if there is none."""
    return next((module for module in model.modules() if isinstance(module, Backbone)), None)


class BasicBlock(torchvision_resnet.BasicBlock):  # type: ignore[misc]
    """torchvision's, with frozen norms inside the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = self.conv1(x, self.bn1, relu=True)
        result: Tensor = self.conv2(y, self.bn2, _shortcut(self, x), relu=True)
        return result


class Bottleneck(torchvision_resnet.Bottleneck):  # type: ignore[misc]
    """torchvision's, with frozen norms inside the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        y = self.conv1(x, self.bn1, relu=True)
        y = self.conv2(y, self.bn2, relu=True)
        result: Tensor = self.conv3(y, self.bn3, _shortcut(self, x), relu=True)
        return result


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    conv, norm = block.downsample
    result: Tensor = conv(x, norm)
    return result


_DEPTHS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


@dataclass(frozen=True)
class _Stage:
    """The first stride of a stage, and the dilations of the first and the second half of each of its blocks."""

    stride: int
    dilations: list[tuple[int, int]]


def _plan_stages(config: BackboneConfig, depths: Sequence[int]) -> list[_Stage]:
    """Strides and dilations of res2..res5.

    A stage that does not stride is dilated instead, so that pretrained weights compute the same features on a finer
    grid. The convolution that would have had the stride still has the dilation of the stage before.
    """
    stages, dilation = [], 1
    for number, depth in enumerate(depths):
        is_dilated = 4 * 2**number > config.output_stride
        before, dilation = dilation, dilation * (2 if is_dilated else 1)
        dilations = [(before, dilation), *[(dilation, dilation)] * (depth - 1)]
        if number == len(depths) - 1 and config.multi_grid is not None:
            dilations = [(dilation * factor, dilation * factor) for factor in config.multi_grid]
        stages.append(_Stage(1 if number == 0 or is_dilated else 2, dilations))
    return stages


class ResNet(Backbone):
    """The stem and the four stages res2..res5, without the classifier.

    Args:
        config: `model.backbone`; `weights` is not used here.

    Attributes:
        channels: of the four outputs.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.checkpoint_activations = config.checkpoint_activations
        block, depths = _DEPTHS[config.name]
        if config.stride_in_1x1 and block is BasicBlock:
            raise ValueError(
                f"model.backbone.stride_in_1x1: {config.name} has no 1x1 convolutions, expected a bottleneck ResNet"
            )
        if config.multi_grid is not None and len(config.multi_grid) != depths[-1]:
            raise ValueError(
                f"model.backbone.multi_grid={list(config.multi_grid)}: expected {depths[-1]} values, one for each "
                f"block of res5 in {config.name}"
            )
        width, norm_layer = config.width, partial(make_norm, config.norm, eps=config.norm_eps)
        self.has_deep_stem = config.stem == "deeplab"
        self.conv1 = Conv2d(3, width, 3 if self.has_deep_stem else 7, 2, 1 if self.has_deep_stem else 3, bias=False)
        self.bn1 = norm_layer(width)
        inputs = width
        if self.has_deep_stem:
            inputs = 2 * width
            self.conv2, self.bn2 = Conv2d(width, width, 3, padding=1, bias=False), norm_layer(width)
            self.conv3, self.bn3 = Conv2d(width, inputs, 3, padding=1, bias=False), norm_layer(inputs)
        stem = list(self.children())
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for number, plan in enumerate(_plan_stages(config, depths)):
            planes, stride = width * 2**number, plan.stride
            outputs = planes * block.expansion
            blocks: list[nn.Module] = []
            for dilations in plan.dilations:
                shortcut = None
                if stride != 1 or inputs != outputs:
                    shortcut = nn.Sequential(Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm_layer(outputs))
                made = block(inputs, planes, stride, shortcut, norm_layer=norm_layer)
                own_convolutions(made)
                if config.stride_in_1x1 and isinstance(made, Bottleneck):
                    made.conv1.stride, made.conv2.stride = made.conv2.stride, made.conv1.stride
                _dilate(made, dilations)
                blocks.append(made)
                inputs, stride = outputs, 1
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = [width * 2**n * block.expansion for n in range(4)]
        self._init_weights()
        deformable_from = 6 if config.deformable_from is None else config.deformable_from
        for stage in stages[deformable_from - 2 :]:
            for one in stage:
                one.conv2 = _deformable(one.conv2)  # type: ignore[arg-type]
        self.frozen = [] if config.freeze_at == 0 else [*stem, *stages[: config.freeze_at - 1]]
        for module in self.frozen:
            module.requires_grad_(False)
        self.train()

    def _init_weights(self) -> None:
        """He initialisation; each residual branch starts at zero where its norm can be trained."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock | Bottleneck):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                if last.weight.requires_grad:
                    nn.init.zeros_(last.weight)

    @property
    def first_conv(self) -> nn.Conv2d:
        """The first convolution."""
        return self.conv1

    def parts(self) -> list[list[nn.Parameter]]:
        """As `Backbone.parts`: the stem, and layer1..layer4."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        staged = {id(parameter) for stage in stages for parameter in stage.parameters()}
        stem = [parameter for parameter in self.parameters() if id(parameter) not in staged]
        return [stem, *(list(stage.parameters()) for stage in stages)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> res2..res5, by default at strides 4, 8, 16, 32."""
        x = self.conv1(images, self.bn1, relu=True)
        if self.has_deep_stem:
            x = self.conv3(self.conv2(x, self.bn2, relu=True), self.bn3, relu=True)
        x = self.maxpool(x)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                if self.checkpoint_activations and block.training:
                    x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
                else:
                    x = block(x)
            features.append(x)
        return features


def _dilate(block: BasicBlock | Bottleneck, dilations: tuple[int, int]) -> None:
    """Dilates the 3x3 convolutions of a block: both of a basic block; of a bottleneck its only one, by the first."""
    convolutions = (block.conv1, block.conv2) if isinstance(block, BasicBlock) else (block.conv2,)
    for conv, dilation in zip(convolutions, dilations, strict=False):
        conv.dilation = conv.padding = (dilation, dilation)


def _deformable(plain: nn.Module) -> DeformableConv:
    """A deformable convolution in the place of a plain one."""
    assert isinstance(plain, nn.Conv2d)
    return DeformableConv(plain.in_channels, plain.out_channels, stride=plain.stride[0], bias=False)
