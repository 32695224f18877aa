"""Unified panoptic segmentation in PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from upsnet.version import __version__

if TYPE_CHECKING:
    from upsnet.categories import Category, CategorySet
    from upsnet.inference.predictor import PanopticPredictor
    from upsnet.structures import PanopticPrediction, Segment

__all__ = ["Category", "CategorySet", "PanopticPrediction", "PanopticPredictor", "Segment", "__version__"]

_HOMES = {
    "Category": "upsnet.categories",
    "CategorySet": "upsnet.categories",
    "PanopticPrediction": "upsnet.structures",
    "PanopticPredictor": "upsnet.inference.predictor",
    "Segment": "upsnet.structures",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import upsnet` and the command start without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'upsnet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
