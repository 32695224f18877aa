"""Converts weights of other programs into a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from upsnet.config import Config
from upsnet.data.loader import model_categories
from upsnet.models.build import build_model
from upsnet.models.checkpoint import Checkpoint, save_checkpoint
from upsnet.models.pretrained.weights import fill, read_weights


def convert_weights(source: Path, config: Config, target: Path) -> list[str]:
    """Fills the model of a config with the weights of a file, and writes a checkpoint.

    Args:
        source: file of any kind that `models.pretrained.weights.read_weights` knows.
        config: gives the architecture and the classes (`data.categories`, else those of the training data).
        target: checkpoint to write.

    Returns:
        One line for each group of parameters that was loaded, or that stays random.

    Raises:
        OSError, ValueError: a file is missing or cannot be used.
    """
    weights = read_weights(source)
    categories = model_categories(config.data)
    torch.manual_seed(config.seed)
    model = build_model(config, categories, pretrained=False)
    report = fill(model, weights, categories)
    report.require_same_architecture()
    save_checkpoint(target, Checkpoint(config, categories, model.state_dict()))
    return [*report.lines(), f"{target}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"]
