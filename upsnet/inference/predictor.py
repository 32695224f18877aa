"""Predictions for images of any source.

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
from torch import Tensor

from upsnet.categories import CategorySet
from upsnet.data.loader import InferenceInput
from upsnet.export.exported_model import ExportedModel, load_graph
from upsnet.inference.augmented import AugmentedModel
from upsnet.inference.cuda_graph import GraphedModel
from upsnet.io.images import Values, read_reduced, to_8_bits, to_rgb
from upsnet.io.predictions import to_prediction
from upsnet.models.base import PanopticModel
from upsnet.models.checkpoint import Checkpoint, load_checkpoint
from upsnet.models.inference_form import fold_norms
from upsnet.ops.backend import autocast, has_kernels, usable_device
from upsnet.ops.views import ViewPlan
from upsnet.structures import PanopticPrediction
from upsnet.text import shown

ImageInput = str | Path | bytes | Image.Image | Values | Tensor
"""An image: see `PanopticPredictor.__call__`."""
ACCEPTED = (
    "a path, the bytes of an image file, a PIL image, a uint8 array [H, W, 3] (RGB) or [H, W] (grey), or a uint8 "
    "tensor [3, H, W]"
)


class PanopticPredictor:
    """Segments pictures of any size.

    Args:
        model: `PanopticModel`, or an exported one.
        categories: its classes.
        make_input: the preprocessing it was trained with. With `views`, predictions average the views of each image
            (test-time augmentation).
        device: where it runs.
        cuda_graph: record the model once for each combination of sizes, and replay it from then on: the GPU no longer
            waits for Python. Pays where many pictures have the same size.
        precision: of convolutions and linear layers: `fp32`, `bf16`, `fp16`, or `auto` (bf16 where the device computes
            it natively). The fusion computes in float32. An exported graph has the precision it was exported with.

    Raises:
        ValueError: there is no such device, nothing to record, or a precision or views for an exported graph.
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
        self.model: PanopticModel | ExportedModel | GraphedModel | AugmentedModel = model
        if isinstance(model, PanopticModel):
            model.eval().to(self.device)
        if make_input.views is not None:
            if not isinstance(model, PanopticModel) or cuda_graph:
                what = "cuda_graph=True" if isinstance(model, PanopticModel) else "an exported graph"
                raise ValueError(f"no test-time augmentation with {what}, expected a checkpoint without cuda_graph")
            self.model = AugmentedModel(model, make_input.views)
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
        views: ViewPlan | None = None,
    ) -> PanopticPredictor:
        """Loads a checkpoint or an exported graph.

        Checkpoints and `.onnx` files run no code. A `.pt2` can: load only those of people you trust.

        Args:
            path: `model.pt` of a run, an exported checkpoint, or an exported graph (`.pt2`, `.onnx`).
            device: by default the GPU if there is one (and the file can use it).
            cuda_graph: see the class.
            trust: also load a compiled `.pt2`, which is machine code.
            precision: see the class.
            views: average the predictions of these views of each image (test-time augmentation).

        Raises:
            FileNotFoundError, ValueError: no such file, not a checkpoint, or not for this device.
        """
        if Path(path).suffix in (".pt2", ".onnx"):
            if views is not None:
                raise ValueError(
                    f"{path}: no test-time augmentation with an exported graph, expected a checkpoint (model.pt)"
                )
            model, categories, make_input = load_graph(Path(path), device, trust=trust)
            return cls(model, categories, make_input, model.device, cuda_graph=cuda_graph, precision=precision)
        return cls.of(load_checkpoint(Path(path)), device, cuda_graph=cuda_graph, precision=precision, views=views)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str | None = None,
        *,
        cuda_graph: bool = False,
        precision: str = "fp32",
        views: ViewPlan | None = None,
    ) -> PanopticPredictor:
        """A predictor for a loaded checkpoint; norms are folded into the convolutions, which lie channels last."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = fold_norms(checkpoint.build())
        make_input = InferenceInput(checkpoint.config.data, model.input_form, views=views)
        model.to(memory_format=torch.channels_last)
        return cls(model, checkpoint.categories, make_input, device, cuda_graph=cuda_graph, precision=precision)

    @overload
    def __call__(self, images: ImageInput, *, apply_exif: bool = True) -> PanopticPrediction: ...
    @overload
    def __call__(
        self, images: list[ImageInput] | tuple[ImageInput, ...], *, apply_exif: bool = True
    ) -> list[PanopticPrediction]: ...
    def __call__(
        self, images: ImageInput | list[ImageInput] | tuple[ImageInput, ...], *, apply_exif: bool = True
    ) -> PanopticPrediction | list[PanopticPrediction]:
        """Predicts one image, or a list of images as one batch.

        Args:
            images: one image, or a list or tuple of images; an empty list gives an empty list. An image is a path, the
                bytes of an image file, a PIL image, a uint8 array [H, W, 3] in RGB or [H, W] in grey, or a uint8
                tensor [3, H, W] in RGB as torchvision reads it. If the model has `data.value_range`, arrays may also
                be uint16 or float32.
            apply_exif: rotate files and PIL images as their EXIF orientation says. False predicts the stored pixels,
                on which the ground truth of COCO and of benchmark servers lies.

        Raises:
            TypeError: an image is of another type.
            FileNotFoundError, ValueError: an image cannot be read or is empty, or an array has another shape or dtype.
        """
        if not isinstance(images, list | tuple):
            return self._predict([self._pixels(images, apply_exif=apply_exif)])[0]
        found = [self._pixels(image, f"images[{at}]: ", apply_exif) for at, image in enumerate(images)]
        return self._predict(found) if found else []

    def _predict(self, found: Sequence[tuple[npt.NDArray[np.uint8], tuple[int, int]]]) -> list[PanopticPrediction]:
        """Predicts a batch of pixels and whole sizes, as `_pixels` gives them."""
        batch = self.make_input([pixels for pixels, _ in found], [size for _, size in found])
        with autocast(self.precision, self.device):
            output = self.model.predict(batch.to(self.device))
        return [to_prediction(output, row, self.categories) for row in range(len(batch))]

    def _pixels(
        self, image: ImageInput, place: str = "", apply_exif: bool = True
    ) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
        """The pixels of an image, maybe read smaller, and its whole (H, W). `place`: where errors say that it is."""
        value_range = self.make_input.value_range
        if isinstance(image, str | Path | bytes):
            if isinstance(image, str) and "://" in image:
                raise ValueError(f"{place}{shown(image)} is a URL, expected {ACCEPTED}; download the file first")
            source = image if isinstance(image, bytes) else Path(image)
            return read_reduced(source, self.make_input.reduction, apply_exif=apply_exif, value_range=value_range)
        if isinstance(image, Image.Image):
            _require_pixels((image.height, image.width), f"{place}PIL image")
            pixels = to_rgb(image, apply_exif=apply_exif, value_range=value_range)
        elif isinstance(image, np.ndarray):
            pixels = self._of_array(image, place)
        elif isinstance(image, Tensor):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
                raise ValueError(
                    f"{place}tensor of {image.dtype} {tuple(image.shape)}, expected torch.uint8 [3, H, W] in RGB"
                )
            _require_pixels(tuple(image.shape), f"{place}tensor")
            pixels = np.ascontiguousarray(image.detach().cpu().numpy().transpose(1, 2, 0))
        else:
            came = "None" if image is None else f"an object of type {type(image).__name__}"
            raise TypeError(f"{place}{came}, expected {ACCEPTED}, or a list of them")
        return pixels, (int(pixels.shape[0]), int(pixels.shape[1]))

    def _of_array(self, image: Values, place: str) -> npt.NDArray[np.uint8]:
        value_range = self.make_input.value_range
        name = f"{place}array of {image.dtype} {image.shape}"
        is_image = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        is_deep = image.dtype in (np.uint16, np.float32)
        if not is_image or not (image.dtype == np.uint8 or (is_deep and value_range is not None)):
            kinds = "uint8, uint16 or float32" if value_range is not None else "uint8"
            more = "; other values need a model trained with data.value_range" if is_image and is_deep else ""
            raise ValueError(f"{name}, expected {kinds} [H, W, 3] in RGB or [H, W] in grey{more}")
        _require_pixels(image.shape, name)
        if is_deep:
            return to_8_bits(image, value_range, name=name)
        return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _require_pixels(shape: tuple[int, ...], name: str) -> None:
    if 0 in shape:
        raise ValueError(f"{name} has no pixels: size {shape}, expected at least one pixel")
