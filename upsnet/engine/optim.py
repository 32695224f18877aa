"""Optimiser, learning-rate schedule and precision of a training run."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from upsnet.config import TrainConfig
from upsnet.models.backbone import backbone_of
from upsnet.ops.backend import autocast
from upsnet.structures import PanopticBatch


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Creates SGD or AdamW. `set_learning_rate` must be called before each step."""
    groups = _parameter_groups(model, config)
    # A fused optimiser decides on the device whether a step overflowed, and its first momentum is then left unset.
    fused = config.precision != "fp16"
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.peak_lr, fused=fused)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.peak_lr, momentum=config.momentum, nesterov=nesterov, fused=fused)


def _parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Groups the trained parameters by learning rate, and for each rate by whether they have weight decay.

    The rate of a group is the rate of the schedule times `lr_factor`, which is 1 in the first two groups. Biases, norms
    and `Backbone.without_weight_decay` have no weight decay.
    """
    backbone = backbone_of(model)
    without_decay = {id(p) for p in backbone.without_weight_decay()} if backbone is not None else set()
    depths: dict[int, int] = {}
    if backbone is not None and config.layer_decay < 1:
        depths = {id(p): depth for depth, part in enumerate(reversed(backbone.parts()), 1) for p in part}
    groups = []
    for depth in range(1 + max(depths.values(), default=0)):
        own = [p for p in model.parameters() if p.requires_grad and depths.get(id(p), 0) == depth]
        decays = [p.ndim > 1 and id(p) not in without_decay for p in own]
        for flag, weight_decay in ((True, config.weight_decay), (False, 0.0)):
            params = [p for p, decay in zip(own, decays, strict=True) if decay == flag]
            if params or depth == 0:
                factor = config.layer_decay**depth
                groups.append({"params": params, "weight_decay": weight_decay, "lr_factor": factor})
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, iteration: int) -> None:
    """Sets the learning rate of each group of parameters for an iteration."""
    rate = learning_rate(config, iteration)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)  # states of older checkpoints have no factor


def require_schedule(config: TrainConfig) -> None:
    """Checks that the warm-up and the decay happen within the run.

    Training checks it, and not the config: a finished checkpoint of any schedule predicts.

    Raises:
        ValueError: they do not; the message names the key and a value that fits.
    """
    if config.warmup_iterations > config.iterations:
        raise ValueError(
            f"train.warmup_iterations={config.warmup_iterations} is longer than train.iterations={config.iterations}, "
            "so the rate never reaches train.lr; "
            f"set train.warmup_iterations={config.iterations // 10}, or train longer"
        )
    within = [step for step in config.steps if step < config.iterations]
    if config.schedule == "step" and len(within) < len(config.steps):
        raise ValueError(
            f"train.steps={list(config.steps)} are not all within train.iterations={config.iterations}, so the rate "
            f"does not decay as planned; set train.steps={within}, or train longer"
        )


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """The rate of one iteration: linear warm-up, then step, poly (power 0.9) or cosine decay to 0."""
    rate = config.peak_lr
    progress = iteration / config.iterations
    if config.schedule == "step":
        rate *= config.gamma ** bisect_right(config.steps, iteration)
    elif config.schedule == "poly":
        rate *= (1 - progress) ** 0.9
    else:
        rate *= (1 + math.cos(math.pi * progress)) / 2
    if iteration < config.warmup_iterations:
        done = iteration / config.warmup_iterations
        rate *= config.warmup_factor * (1 - done) + done
    return rate


def add_gradients(
    model: nn.Module,
    weights: dict[str, float],
    precision: str,
    share: float,
    batch: PanopticBatch,
    *,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The losses of a batch, detached; the gradient of `share` of their weighted sum is added to the gradients.

    Args:
        model: a `PanopticModel` while training, maybe wrapped for several processes.
        precision: as `ops.backend.autocast` takes it.
        scale: scales the sum before the backward pass (`gradient_scaler`).
    """
    with autocast(precision, batch.images.device):
        losses: dict[str, Tensor] = model(batch)
    total = weighted_total(losses, weights) * share
    (total if scale is None else scale(total)).backward()
    return {name: loss.detach() for name, loss in losses.items()}


def copy_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The losses in memory of their own."""
    return dict(zip(losses, torch.stack(list(losses.values())).unbind(), strict=True))


def weighted_total(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum that is minimised."""
    return torch.stack([weights[name] * value for name, value in losses.items()]).sum()


def clip_gradient(model: nn.Module, limit: float | None) -> Tensor:
    """The norm of the whole gradient, before it is scaled to `limit` if it is larger; the host does not wait for it."""
    learnt = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in learnt if p.grad is not None])
    if limit is not None:
        nn.utils.clip_grads_with_norm_(learnt, limit, norm)
    return norm


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Scales losses of fp16, whose small gradients would become 0; None for other precisions, which need none."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None
