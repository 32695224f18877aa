"""Unified panoptic segmentation in PyTorch."""

from upsnet.data.categories import Category, CategorySet
from upsnet.inference.predictor import PanopticPredictor
from upsnet.structures import PanopticPrediction, Segment
from upsnet.version import __version__

__all__ = ["Category", "CategorySet", "PanopticPrediction", "PanopticPredictor", "Segment", "__version__"]
