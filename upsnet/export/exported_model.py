"""Exported graphs behind the face of a model: `.pt2`, compiled `.pt2`, `.onnx`."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from upsnet.categories import CategorySet
from upsnet.config.migrate import UnknownFormatError, require_known_format
from upsnet.data.loader import InferenceInput
from upsnet.export.archive import require_harmless, require_plain_names
from upsnet.models import build  # noqa: F401 - registers the operators that a .pt2 calls
from upsnet.models.checkpoint import read_description
from upsnet.models.file_format import require_fields, require_finite
from upsnet.models.upsnet.official import OfficialResize
from upsnet.ops.backend import usable_device
from upsnet.ops.sizes import InputForm
from upsnet.structures import PanopticBatch, PanopticOutput
from upsnet.text import first_line, shown

METADATA = "upsnet.json"
"""Name under which a file holds its description."""
OUTPUTS = ("segment_ids", "category_id", "is_thing", "score", "area", "box", "valid")

Graph = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""Images, image sizes and canvas -> the outputs of `DeployedModel`."""


class ExportedModel:
    """An exported file with the interface of `PanopticModel.predict`.

    Args:
        run: the loaded graph.
        categories: the classes, in the order of the channels.
        batch_size: of the graph.
        device: where it takes and gives tensors.
        resize: applied to a batch of images at their own size before the graph, where the graph needs it.
    """

    def __init__(
        self,
        run: Graph,
        categories: CategorySet,
        batch_size: int,
        device: torch.device,
        resize: Callable[[PanopticBatch], PanopticBatch] | None = None,
    ) -> None:
        self.run, self.batch_size, self.device, self.resize = run, batch_size, device, resize
        self.channels = {c.id: channel for channel, c in enumerate(categories.categories)}

    @torch.no_grad()
    def predict(self, batch: PanopticBatch) -> PanopticOutput:
        """Predicts each image at its original size; a batch smaller than the graph's is filled up."""
        batch = batch if self.resize is None else self.resize(batch)
        maps: list[Tensor] = []
        tables: list[tuple[Tensor, Tensor]] = []
        sizes = batch.original_sizes
        while (first := len(maps)) < len(batch):
            # As many neighbours of one size as the graph takes at once.
            last = first + 1
            while last < min(first + self.batch_size, len(batch)) and sizes[last] == sizes[first]:
                last += 1
            count = last - first
            rows = [first + min(i, count - 1) for i in range(self.batch_size)]
            canvas = torch.empty(sizes[first], dtype=torch.uint8, device=self.device)
            images = batch.images[rows].contiguous()
            try:
                found = self.run(images, batch.image_sizes[rows], canvas)
                channels = [[self.channels[i] for i in row] for row in found["category_id"][:count].tolist()]
                parts = found["segment_ids"][:count], torch.tensor(channels), found["score"][:count]
            except KeyError as error:
                raise ValueError(
                    f"the exported graph gives {shown(error.args[0])}, which its description lacks; the file is "
                    "damaged: export it again"
                ) from None
            except Exception as error:  # runtimes raise many kinds
                reason = first_line(error)
                raise ValueError(
                    f"the exported graph cannot take images of {tuple(images.shape)} {images.dtype} ({reason})"
                ) from None
            maps.extend(parts[0])
            tables.append((parts[1], parts[2]))
        classes, scores = (torch.cat(parts) for parts in zip(*tables, strict=True))
        return PanopticOutput(maps, classes, scores)


def load_graph(
    path: Path, device: torch.device | str | None = None, *, trust: bool = False
) -> tuple[ExportedModel, CategorySet, InferenceInput]:
    """Loads an exported graph: the model, its classes and its preprocessing.

    An `.onnx` runs no code from the file. A `.pt2` can, so load only those of people you trust (SECURITY.md).

    Args:
        path: `.pt2` or `.onnx`.
        device: by default the one it was compiled for, else the GPU if there is one that the file can use.
        trust: also load a compiled `.pt2`, which is machine code.

    Predictions are those of the checkpoint at the same padding: a file of fixed size pads (or shrinks) pictures to it,
    and a `.pt2` for any size pads those of less than two blocks a side, which may choose other proposals.

    Raises:
        FileNotFoundError, ValueError: no such file, not one of this project's, or not for this device.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such exported model")
    wanted = None if device is None else usable_device(device)
    try:
        if path.suffix == ".onnx":
            run, text, used = _load_onnx(path, wanted)
        else:
            run, text, used = _load_pt2(path, wanted, trust=trust)
        metadata = json.loads(text)
    except ImportError as error:
        raise ValueError(f"{path}: needs the package {error.name}, expected pip install 'upsnet[onnx]'") from None
    except (UnknownFormatError, UntrustedFileError):
        raise
    except Exception as error:  # the loaders raise many kinds; all mean that the file is not such a graph
        reason = first_line(error)
        raise ValueError(f"{path}: cannot be read as an exported model ({reason})") from None
    if wanted is not None and wanted.type != used.type:
        raise ValueError(f"{path}: runs on {used.type} here, expected {wanted.type}: {_REMEDIES[path.suffix]}")
    require_fields(metadata, {"network_size": (list, NoneType), "batch_size": int}, source=str(path))
    # Files of the first version carry no number: they have format 1.
    config, categories = read_description(metadata, metadata.get("format", 1), source=str(path))
    data, size = config.data, None if metadata["network_size"] is None else tuple(metadata["network_size"])
    # A `.pt2` for any size needs levels of more than one cell: `torch.export` treats a single one as a case of its own.
    least = max(2 * data.size_divisor, config.model.coarsest_stride + 1)
    form = InputForm(remainder=metadata.get("size_remainder", 0))
    make_input = InferenceInput(data, form, size, 0 if path.suffix == ".onnx" else least)
    resize = None
    if metadata["config"]["data"].get("test_resize") == "float" and data.test_short_side is not None:
        # Files of formats 1 and 2 may hold the official UPSNet, whose images are resized without rounding.
        resize = OfficialResize(data.test_short_side, data.test_max_side, data.size_divisor, size)
        make_input = InferenceInput(data, InputForm(resizes_images=True))
    holder = torch.device("cpu") if path.suffix == ".onnx" else used
    return ExportedModel(run, categories, metadata["batch_size"], holder, resize), categories, make_input


_REMEDIES = {
    ".onnx": "install onnxruntime-gpu in place of onnxruntime",
    ".pt2": "it was compiled for one kind of device; export it with --device",
}

Loaded = tuple[Graph, str, torch.device]
"""The graph, its description, and where it runs."""


def is_compiled(path: Path) -> bool:
    """Whether a `.pt2` holds machine code (AOTInductor) in place of a graph."""
    with zipfile.ZipFile(path) as file:
        return any("/aotinductor/" in name for name in file.namelist())


def _pt2_description(path: Path) -> str:
    """The description in a `.pt2`, read without loading its graph or its code."""
    with zipfile.ZipFile(path) as file:
        require_plain_names(file)
        for name in file.namelist():
            if name.endswith(f"/extra/{METADATA}"):
                return file.read(name).decode()
            if name.endswith("_metadata.json") and METADATA in (part := json.loads(file.read(name))):  # AOTInductor's
                return str(part[METADATA])
    raise ValueError(f"no {METADATA} in it, expected a file that upsnet export wrote")


def _nothing(*_: Tensor) -> dict[str, Tensor]:
    """In the place of code for another device, which is refused before it runs."""
    return {}


class UntrustedFileError(ValueError):
    """The file is compiled machine code, and the caller does not trust it."""


def _load_pt2(path: Path, device: torch.device | None, *, trust: bool) -> Loaded:
    text = _pt2_description(path)
    require_known_format(json.loads(text).get("format", 1), source=str(path))  # newer graphs may call unknown operators
    if is_compiled(path):
        if not trust:
            raise UntrustedFileError(
                f"{path}: a compiled .pt2 is machine code; if you trust the people who made it, load it with --trust "
                "(trust=True)"
            )
        used = torch.device(json.loads(text)["compiled_for"])
        if device is not None and device.type != used.type:
            return _nothing, text, used
        if used.type == "cuda" and device is not None:
            used = device
        index = -1 if used.index is None else used.index
        return torch._inductor.aoti_load_package(str(path), device_index=index), text, used
    require_harmless(path)
    program = torch.export.load(path)
    require_finite({k: v for k, v in program.state_dict.items() if isinstance(v, Tensor)}, source=str(path))
    used = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return move_to_device_pass(program, used).module(), text, used


def _load_onnx(path: Path, device: torch.device | None) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait burn no CPU time
    wants_cuda = device is None or device.type == "cuda"
    use_cuda = wants_cuda and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    providers = [("CUDAExecutionProvider", {"device_id": (device and device.index) or 0})] if use_cuda else []
    session = onnxruntime.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> dict[str, Tensor]:
        feed: dict[str, Any] = {name: x.cpu().numpy() for name, x in zip(names, inputs, strict=True)}
        found = session.run(list(OUTPUTS), feed)
        return {name: torch.from_numpy(value) for name, value in zip(OUTPUTS, found, strict=True)}

    on_cuda = session.get_providers()[0] == "CUDAExecutionProvider"
    used = torch.device("cuda", (device and device.index) or 0) if on_cuda else torch.device("cpu")
    return run, session.get_modelmeta().custom_metadata_map[METADATA], used
