"""Predictions for one's own pictures.

predictor = PanopticPredictor.from_checkpoint("model.pt", device="cuda")
prediction = predictor("street.jpg")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from upsnet.categories import CategorySet
from upsnet.data.loader import InferenceInput
from upsnet.export.exported_model import ExportedModel, load_graph
from upsnet.inference.cuda_graph import GraphedModel
from upsnet.io.images import read_reduced, to_rgb, upright
from upsnet.io.predictions import to_prediction
from upsnet.models.base import PanopticModel
from upsnet.models.checkpoint import Checkpoint, load_checkpoint
from upsnet.models.inference_form import fold_norms
from upsnet.ops.backend import autocast, has_kernels, usable_device
from upsnet.structures import PanopticPrediction

Picture = str | Path | Image.Image | npt.NDArray[np.uint8]


class PanopticPredictor:
    """Segments pictures of any size.

    Args:
        model: `PanopticModel`, or an exported one.
        categories: its classes.
        make_input: the preprocessing it was trained with.
        device: where it runs.
        cuda_graph: record the model once for each combination of sizes, and replay it from then on: the GPU no longer
            waits for Python. Pays where many pictures have the same size.
        precision: of convolutions and linear layers: `fp32`, `bf16`, `fp16`, or `auto` (bf16 where the device computes
            it natively). The fusion computes in float32. An exported graph has the precision it was exported with.

    Raises:
        ValueError: there is no such device, nothing to record, or a precision for an exported graph.
    """

    def __init__(
        self,
        model: PanopticModel | ExportedModel,
        categories: CategorySet,
        make_input: InferenceInput,
        device: torch.device | str = "cpu",
        *,
        cuda_graph: bool = False,
        precision: str = "fp32",
    ) -> None:
        if precision != "fp32" and not isinstance(model, PanopticModel):
            raise ValueError(
                f"precision={precision} with an exported graph, whose precision is fixed; "
                "export it again with --precision, or give the checkpoint"
            )
        self.device, self.precision = usable_device(device), precision
        self.model: PanopticModel | ExportedModel | GraphedModel = model
        if isinstance(model, PanopticModel):
            model.eval().to(self.device)
        if cuda_graph:
            if not has_kernels(torch.empty(0, device=self.device)) or not isinstance(model, PanopticModel):
                raise ValueError(
                    f"cuda_graph=True with {type(model).__name__} on {self.device}, "
                    "expected a checkpoint on a GPU, and Triton"
                )
            self.model = GraphedModel(model, self.device, precision)
        self.categories = categories
        self.make_input = make_input

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: torch.device | str | None = None,
        *,
        cuda_graph: bool = False,
        trust: bool = False,
        precision: str = "fp32",
    ) -> PanopticPredictor:
        """Loads a checkpoint or an exported graph.

        Checkpoints and `.onnx` files run no code. A `.pt2` can: load only those of people you trust.

        Args:
            path: `model.pt` of a run, an exported checkpoint, or an exported graph (`.pt2`, `.onnx`).
            device: by default the GPU if there is one (and the file can use it).
            cuda_graph: see the class.
            trust: also load a compiled `.pt2`, which is machine code.
            precision: see the class.

        Raises:
            FileNotFoundError, ValueError: no such file, not a checkpoint, or not for this device.
        """
        if Path(path).suffix in (".pt2", ".onnx"):
            model, categories, make_input = load_graph(Path(path), device, trust=trust)
            return cls(model, categories, make_input, model.device, cuda_graph=cuda_graph, precision=precision)
        return cls.of(load_checkpoint(Path(path)), device, cuda_graph=cuda_graph, precision=precision)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str | None = None,
        *,
        cuda_graph: bool = False,
        precision: str = "fp32",
    ) -> PanopticPredictor:
        """A predictor for a loaded checkpoint; norms are folded into the convolutions, which lie channels last."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = fold_norms(checkpoint.build())
        make_input = InferenceInput(checkpoint.config.data, model.input_form)
        model.to(memory_format=torch.channels_last)
        return cls(model, checkpoint.categories, make_input, device, cuda_graph=cuda_graph, precision=precision)

    @overload
    def __call__(self, images: Picture) -> PanopticPrediction: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[Picture]) -> list[PanopticPrediction]: ...
    def __call__(self, images: Picture | Sequence[Picture]) -> PanopticPrediction | list[PanopticPrediction]:
        """Predicts one picture, or a list of them as one batch.

        Args:
            images: path, PIL image, or uint8 RGB array [H, W, 3]; EXIF orientation of files and PIL images is applied.

        Raises:
            FileNotFoundError, ValueError: a picture cannot be read, or an array has another shape or type.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            return self([images])[0]
        if not images:
            return []
        found = [self._pixels(image) for image in images]
        batch = self.make_input([pixels for pixels, _ in found], [size for _, size in found])
        with autocast(self.precision, self.device):
            output = self.model.predict(batch.to(self.device))
        return [to_prediction(output, row, self.categories) for row in range(len(batch))]

    def _pixels(self, image: Picture) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        """The pixels of an image, maybe read smaller, and its (H, W)."""
        if isinstance(image, str | Path):
            return read_reduced(Path(image), self.make_input.reduction, apply_exif=True)
        pixels = to_rgb(upright(image)) if isinstance(image, Image.Image) else image
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"image array is {pixels.dtype} {pixels.shape}, expected uint8 [H, W, 3] in RGB")
        return pixels, (int(pixels.shape[0]), int(pixels.shape[1]))
