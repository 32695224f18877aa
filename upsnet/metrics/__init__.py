"""Metrics of panoptic segmentation, for this package and for other programs.

| name | use |
| --- | --- |
| `pq_compute` | PQ of COCO-panoptic files, with the signature and the result of panopticapi |
| `evaluate_files` | everything that `upsnet evaluate --gt --pred` computes |
| `PanopticQuality`, `SegmentTable`, `dense_segments` | PQ of maps in memory (example in `metrics.panoptic_quality`) |
| `flat_metrics` | the contents of `metrics.json` as a flat dictionary, for loggers |
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upsnet.metrics.document import flat_metrics
    from upsnet.metrics.panoptic_quality import PanopticQuality, SegmentTable, dense_segments
    from upsnet.metrics.panopticapi import pq_compute
    from upsnet.metrics.score_files import evaluate_files

__all__ = ["PanopticQuality", "SegmentTable", "dense_segments", "evaluate_files", "flat_metrics", "pq_compute"]

_HOMES = {
    "upsnet.metrics.document": ("flat_metrics",),
    "upsnet.metrics.panoptic_quality": ("PanopticQuality", "SegmentTable", "dense_segments"),
    "upsnet.metrics.panopticapi": ("pq_compute",),
    "upsnet.metrics.score_files": ("evaluate_files",),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that modules can import one metric alone."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'upsnet.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion in notebooks."""
    return __all__
