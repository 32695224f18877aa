"""Small blocks that several parts share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from upsnet.ops.backend import has_kernels


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics and affine parameters never change, whatever mode the model is in."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, torch.addcmul(self.bias, self.running_mean, scale, value=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same; in float32 `x` is not kept for the backward pass."""
        if x.dtype != torch.float32:
            return super().forward(x)
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None])


class Conv2d(nn.Conv2d):
    """A convolution that also applies what follows it: a norm, the addition of a shortcut, and ReLU.

    A frozen norm becomes part of the convolution, so it costs no pass over the features. On a GPU bias, shortcut and
    ReLU are one kernel. The convolution is called as a module, so its hooks fire; they see the result of all of it.
    """

    def forward(
        self, x: Tensor, norm: nn.Module | None = None, shortcut: Tensor | None = None, *, relu: bool = False
    ) -> Tensor:
        """Computes `relu(norm(conv(x)) + shortcut)`.

        Args:
            x: [B, inputs, H, W].
            norm: applied to the result of the convolution.
            shortcut: [B, outputs, H', W'], added.
            relu: apply ReLU.

        Returns:
            [B, outputs, H', W'].
        """
        folded = self._folded(norm, x)
        if folded is None and norm is not None:
            return add_and_relu(norm(super().forward(x)), shortcut, relu=relu)
        weight, bias = folded or (self.weight, self.bias)
        may_use_kernel = relu and (folded is not None or self.training) and not torch.compiler.is_compiling()
        if bias is not None and may_use_kernel and has_kernels(x):
            from upsnet.ops.bias_relu_triton import bias_relu

            return bias_relu(self._conv_forward(x, weight, None), bias, shortcut)
        return add_and_relu(self._conv_forward(x, weight, bias), shortcut, relu=relu)

    def _folded(self, norm: nn.Module | None, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of the convolution and the frozen norm behind it, if they are to be one."""
        if not isinstance(norm, FrozenBatchNorm2d):
            return None
        if x.dtype == torch.float32 and not torch.compiler.is_compiling():  # else there is a copy of the weights anyway
            pixels = x.shape[0] * x.shape[2] * x.shape[3] // (self.stride[0] * self.stride[1])
            if self.weight[0].numel() > pixels:  # the features are less than the weights
                return None
        scale, shift = norm.scale_and_shift()
        return self.weight * scale[:, None, None, None], shift


def add_and_relu(y: Tensor, shortcut: Tensor | None, *, relu: bool) -> Tensor:
    """Adds a shortcut to `y` and applies ReLU, both in place and if asked for."""
    if shortcut is not None:
        y = y.add_(shortcut)
    return F.relu_(y) if relu else y


def own_convolutions(module: nn.Module) -> None:
    """Replaces each plain convolution that is a child of `module` by a `Conv2d` with the same parameters."""
    for name, plain in list(module.named_children()):
        if type(plain) is nn.Conv2d:
            options = {key: getattr(plain, key) for key in ("stride", "padding", "dilation", "groups")}
            shape = (plain.in_channels, plain.out_channels, plain.kernel_size)
            made = nn.utils.skip_init(Conv2d, *shape, **options, bias=plain.bias is not None)
            made.weight, made.bias = plain.weight, plain.bias
            setattr(module, name, made)


class ConvReLU(nn.Sequential):
    """A convolution with bias, and ReLU."""

    def __init__(self, conv: Conv2d) -> None:
        super().__init__(conv, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H', W']."""
        result: Tensor = self[0](x, relu=True)
        return result


def keep_gradient_format(x: Tensor) -> Tensor:
    """`x`, whose gradient will come in the memory format of `x`, whatever its users make of it.

    Parts of a gradient that lie otherwise would decide for the sum, and what is before `x` would be slow.
    """
    if x.requires_grad and not torch.compiler.is_compiling() and x.is_contiguous(memory_format=torch.channels_last):
        x.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return x


def make_norm(kind: str, channels: int, eps: float = 1e-5) -> nn.Module:
    """A normalisation layer: `gn` (32 groups, fewer for odd widths), `bn` or `frozen_bn`."""
    if kind == "gn":
        return nn.GroupNorm(math.gcd(32, channels // 2), channels, eps)
    return {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d}[kind](channels, eps)


class DeformableConv(DeformConv2d):  # type: ignore[misc]
    """3x3 deformable convolution (Dai et al. 2017) that computes its offsets itself; they start at zero."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.offset = nn.Conv2d(inputs, 18, 3, stride, padding=1)
        init_normal(self.offset, std=0.0)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self, x: Tensor, norm: nn.Module | None = None, shortcut: Tensor | None = None, *, relu: bool = False
    ) -> Tensor:
        """As `Conv2d.forward`: [B, inputs, H, W] -> [B, outputs, H', W'], in float32 (the sampling needs it)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            y = super().forward(x, self.offset(x))
        return add_and_relu(y if norm is None else norm(y), shortcut, relu=relu)


def conv_block(inputs: int, outputs: int, *, dilation: int = 1) -> ConvReLU:
    """3x3 convolution and ReLU; He initialisation."""
    conv = Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
    init_conv(conv)
    return ConvReLU(conv)


class ConvNormReLU(nn.Module):
    """A convolution without bias that keeps the size, a norm, and ReLU; He initialisation.

    Args:
        inputs, outputs: channels.
        kernel: cells per side, odd.
        norm: as `make_norm` takes it.
        dilation: of the kernel.
        groups: of channels; `inputs` makes the convolution depthwise.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, norm: str, *, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
        self.norm = make_norm(norm, outputs)
        # By the inputs of a channel: of the outputs, torch counts those of all groups.
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        result: Tensor = self.conv(x, self.norm, relu=True)
        return result


def separable_conv(inputs: int, outputs: int, kernel: int, norm: str, *, dilation: int = 1) -> nn.Sequential:
    """A depthwise convolution and a 1x1 convolution, each with a norm and ReLU."""
    depthwise = ConvNormReLU(inputs, inputs, kernel, norm, dilation=dilation, groups=inputs)
    return nn.Sequential(depthwise, ConvNormReLU(inputs, outputs, 1, norm))


def init_conv(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He-normal weights for a layer followed by ReLU, zero bias."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def init_normal(layer: nn.Module, std: float) -> None:
    """Gaussian weights for a prediction layer, zero bias."""
    for name, parameter in layer.named_parameters():
        if name == "bias":
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=std)


def normalize_images(images: Tensor, image_sizes: Tensor, mean: Tensor, std: Tensor, first: nn.Conv2d) -> Tensor:
    """The input of the first convolution: normalised, zero in the padding, in the memory format of the weights.

    Args:
        images: [B, 3, H, W], values of 0..255.
        image_sizes: int64 [B, 2], (H, W) of the valid part of each image.
        mean, std: [1, 3, 1, 1].
        first: the convolution.
    """
    images = zero_padding((images.float() - mean) / std, image_sizes)
    is_last = first.weight.is_contiguous(memory_format=torch.channels_last)
    return images.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def zero_padding(images: Tensor, image_sizes: Tensor) -> Tensor:
    """Sets the pixels of [B, C, H, W] outside each image's (H, W), int64 [B, 2], to zero."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < image_sizes[:, :1]
    columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
    return images * (rows[:, None, :, None] & columns[:, None, None, :])
