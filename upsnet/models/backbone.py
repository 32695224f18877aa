"""ResNet feature extractor (He et al. 2016) of torchvision's blocks, under torchvision's state-dict names."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from upsnet.models.layers import make_norm

_DEPTHS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """The stem and the four stages res2..res5, without the classifier.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101.
        width: channels of the stem (64 in the paper); each stage doubles them.
        norm: frozen_bn, bn or gn.
        freeze_at: 0 trains everything, 1 freezes the stem, n also the stages up to res-n.

    Attributes:
        channels: of the four outputs.
    """

    def __init__(self, name: str, *, width: int = 64, norm: str = "frozen_bn", freeze_at: int = 2) -> None:
        super().__init__()
        block, depths = _DEPTHS[name]
        norm_layer = partial(make_norm, norm)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
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
                    shortcut = nn.Sequential(
                        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm_layer(outputs)
                    )
                blocks.append(block(inputs, planes, stride, shortcut, norm_layer=norm_layer))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = [width * 2**n * block.expansion for n in range(4)]
        self._init_weights()
        self.frozen = [self.conv1, self.bn1, *stages][: 0 if freeze_at == 0 else freeze_at + 1]
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
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


def load_backbone_weights(backbone: ResNet, name: str, weights: str) -> None:
    """Fills a backbone with pretrained weights.

    Args:
        backbone: the network.
        name: resnet18, ...
        weights: torchvision's name of the weights (`IMAGENET1K_V1`), or a file with torchvision's parameter names.

    Raises:
        FileNotFoundError, ValueError: no such name or file, the download failed, or the parameters do not fit.
    """
    names = list(get_model_weights(name).__members__)
    if weights in names:
        try:
            state = get_model_weights(name)[weights].get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"model.backbone.weights={weights}: the download of {name} failed ({error}); "
                "give a local file instead, or null to start from random weights"
            ) from None
    else:
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"model.backbone.weights={weights}: no such file, and not one of {', '.join(names)}"
            )
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds; all mean the file is not a plain state dict
            raise ValueError(f"{weights}: not a PyTorch state dict ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{weights}: holds a {type(state).__name__}, expected a state dict")
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    expected = backbone.state_dict()
    wrong = sorted(
        key
        for key in expected.keys() | state.keys()
        if not key.endswith("num_batches_tracked")
        and (key not in state or key not in expected or state[key].shape != expected[key].shape)
    )
    if wrong:
        raise ValueError(
            f"{weights}: does not fit {name} of this width ({len(wrong)} parameters, the first is {wrong[0]})"
        )
    backbone.load_state_dict(state, strict=False)
