"""Panoptic segmentation in PyTorch: train, evaluate, export, predict.

    import upsnet

    config = upsnet.load_config("shapes_r18", ["train.iterations=500"])
    upsnet.train(config, "runs/demo", tell=print)
    metrics = upsnet.evaluate_checkpoint("runs/demo/model.pt", "runs/demo/evaluation")
    upsnet.export_graph("runs/demo/model.pt", "model.onnx", size=(128, 128))
    prediction = upsnet.PanopticPredictor.from_checkpoint("runs/demo/model.pt")("image.png")

Each function has the options of the command of the same name (`upsnet train --help`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from upsnet.version import __version__

if TYPE_CHECKING:
    from upsnet.categories import Category, CategorySet
    from upsnet.config import load_config
    from upsnet.engine.compare import compare_evaluations
    from upsnet.engine.score import evaluate_checkpoint, evaluate_predictions
    from upsnet.engine.train import train
    from upsnet.export.exporter import export_checkpoint, export_graph
    from upsnet.inference.predictor import PanopticPredictor
    from upsnet.structures import PanopticPrediction, Segment

__all__ = [
    "Category",
    "CategorySet",
    "PanopticPrediction",
    "PanopticPredictor",
    "Segment",
    "__version__",
    "compare_evaluations",
    "evaluate_checkpoint",
    "evaluate_predictions",
    "export_checkpoint",
    "export_graph",
    "load_config",
    "train",
]

_HOMES = {
    "upsnet.categories": ("Category", "CategorySet"),
    "upsnet.config": ("load_config",),
    "upsnet.engine.compare": ("compare_evaluations",),
    "upsnet.engine.score": ("evaluate_checkpoint", "evaluate_predictions"),
    "upsnet.engine.train": ("train",),
    "upsnet.export.exporter": ("export_checkpoint", "export_graph"),
    "upsnet.inference.predictor": ("PanopticPredictor",),
    "upsnet.structures": ("PanopticPrediction", "Segment"),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import upsnet` and the command start without torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'upsnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion in notebooks."""
    return __all__
