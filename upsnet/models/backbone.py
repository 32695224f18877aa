"""ResNet feature extractor (He et al. 2016) of torchvision's blocks, under torchvision's state-dict names."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet as torchvision_resnet

from upsnet.config import BackboneConfig
from upsnet.models.layers import Conv2d, DeformableConv, make_norm, own_convolutions


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


class ResNet(nn.Module):
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
        width, norm_layer = config.width, partial(make_norm, config.norm, eps=config.norm_eps)
        self.conv1 = Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, inputs = [], width
        for number, depth in enumerate(depths):
            planes = width * 2**number
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if number > 0 and position == 0 else 1
                outputs = planes * block.expansion
                shortcut = None
                if stride != 1 or inputs != outputs:
                    shortcut = nn.Sequential(Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm_layer(outputs))
                made = block(inputs, planes, stride, shortcut, norm_layer=norm_layer)
                own_convolutions(made)
                if config.stride_in_1x1 and isinstance(made, Bottleneck):
                    made.conv1.stride, made.conv2.stride = made.conv2.stride, made.conv1.stride
                blocks.append(made)
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = [width * 2**n * block.expansion for n in range(4)]
        self._init_weights()
        deformable_from = 6 if config.deformable_from is None else config.deformable_from
        for stage in stages[deformable_from - 2 :]:
            for one in stage:
                one.conv2 = _deformable(one.conv2)  # type: ignore[arg-type]
        self.frozen = [self.conv1, self.bn1, *stages][: 0 if config.freeze_at == 0 else config.freeze_at + 1]
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

    def train(self, mode: bool = True) -> ResNet:
        """Sets the mode, with frozen parts kept in evaluation mode."""
        super().train(mode)
        for module in self.frozen:
            module.train(False)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> res2..res5 at strides 4, 8, 16, 32."""
        x = self.maxpool(self.conv1(images, self.bn1, relu=True))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                if self.checkpoint_activations and block.training:
                    x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
                else:
                    x = block(x)
            features.append(x)
        return features


def _deformable(plain: nn.Module) -> DeformableConv:
    """A deformable convolution in the place of a plain one."""
    assert isinstance(plain, nn.Conv2d)
    return DeformableConv(plain.in_channels, plain.out_channels, stride=plain.stride[0], bias=False)
