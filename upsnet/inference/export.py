"""Exports a trained model for use elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from upsnet.engine.checkpoint import load_checkpoint, save_checkpoint


def export_checkpoint(source: Path, target: Path) -> None:
    """Writes weights, config, categories and metrics into one file, after checking that they make a model.

    Args:
        source: `model.pt` or `last.pt` of a run.
        target: the slim file, loadable by `PanopticPredictor.from_checkpoint`.

    Raises:
        FileNotFoundError, ValueError: no such file, not a checkpoint, or weights that do not fit its config.
    """
    checkpoint = load_checkpoint(source)
    checkpoint.build()
    save_checkpoint(target, replace(checkpoint, training=None))
