"""Exports a trained model for use elsewhere, and loads what was exported."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.passes import move_to_device_pass

from upsnet.data.categories import CategorySet
from upsnet.data.loader import InferenceInput
from upsnet.data.shapes import Shapes
from upsnet.engine.checkpoint import Checkpoint, load_checkpoint, read_description, save_checkpoint
from upsnet.files import atomic_path
from upsnet.inference.deploy import DeployedModel, ExportedModel, Graph
from upsnet.structures import PanopticOutput
from upsnet.version import __version__

METADATA = "upsnet.json"
OUTPUTS = ("segment_ids", "category_id", "is_thing", "score", "area", "box", "valid")
MAX_DISAGREEMENT = 1e-3
"""Share of pixels beyond which an exported file is not written."""


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


@dataclass(frozen=True)
class Agreement:
    """An exported file beside the model it was made of, on some pictures.

    Attributes:
        pixels: compared; stuff, things, void: pixels of the model's stuff, things and void that differ.
        segments: of the model; instances: of them things.
        eager_ms, exported_ms: mean time per picture.
    """

    pixels: int
    stuff: int
    things: int
    void: int
    segments: int
    instances: int
    eager_ms: float
    exported_ms: float

    @property
    def disagreement(self) -> float:
        """Share of pixels that differ."""
        return (self.stuff + self.things + self.void) / max(1, self.pixels)


def export_graph(
    source: Path, target: Path, *, size: tuple[int, int] | None = None, batch_size: int = 1, verify: bool = True
) -> Agreement | None:
    """Writes the whole model, fusion included, as one graph.

    Args:
        source: `model.pt` of a run.
        target: `.pt2` (`torch.export`, needs this package) or `.onnx` (standard operators only) to write;
            `PanopticPredictor.from_checkpoint` loads both.
        size: (H, W) of the network's input, multiples of 32; by default any such size.
        batch_size: of the graph.
        verify: run the file beside the model before it gets its name.

    Returns:
        The agreement, if verified.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, a model that the format has no form for, a size that is no
            multiple of 32, or a graph that disagrees with its model on more than `MAX_DISAGREEMENT` of the pixels.
    """
    checkpoint = load_checkpoint(source)
    config = checkpoint.config
    if config.model.heads != "both":
        raise ValueError(f"{source}: model.heads is {config.model.heads}, expected both: the fusion is exported")
    if target.suffix == ".onnx" and config.model.panoptic.method == "official":
        raise ValueError(f"{source}: model.panoptic.method is official, which has no ONNX form yet; export a .pt2")
    divisor = config.data.size_divisor
    if size is not None and (size[0] % divisor or size[1] % divisor or min(size) <= 0):
        raise ValueError(f"--size {size[0]} {size[1]}: expected multiples of {divisor}")
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: expected at least 1")
    metadata = {
        "config": config.dump(),
        "categories": checkpoint.categories.to_json(),
        "network_size": size,
        "batch_size": batch_size,
        "versions": {"upsnet": __version__, "torch": torch.__version__},
    }
    program = _trace(checkpoint, size, batch_size)
    with atomic_path(target) as temporary:
        if target.suffix == ".onnx":
            _save_onnx(program, temporary, metadata)
        else:
            torch.export.save(program, temporary, extra_files={METADATA: json.dumps(metadata)})
        if not verify:
            return None
        agreement = compare(checkpoint, temporary)
        if agreement.disagreement > MAX_DISAGREEMENT:
            raise ValueError(
                f"{target}: not written: the exported graph differs from the model on "
                f"{100 * agreement.disagreement:.2f} % of the pixels, expected at most {100 * MAX_DISAGREEMENT:.1f} %"
            )
    return agreement


def _trace(checkpoint: Checkpoint, size: tuple[int, int] | None, batch_size: int) -> ExportedProgram:
    config = checkpoint.config
    divisor = config.data.size_divisor
    height, width = size or (8 * divisor, 10 * divisor)
    dtype = torch.float32 if config.data.test_resize == "float" else torch.uint8
    inputs = (
        torch.zeros(batch_size, 3, height, width, dtype=dtype),
        torch.tensor([[height - 5, width - 9]] * batch_size),
        torch.zeros(height + 11, width + 7, dtype=torch.uint8),
    )
    rows, columns = Dim("rows", min=2), Dim("columns", min=2)
    images = None if size is not None else {2: divisor * rows, 3: divisor * columns}
    shapes = (images, None, {0: Dim("height", min=2), 1: Dim("width", min=2)})
    model = DeployedModel(checkpoint.build(), checkpoint.categories).eval()
    with torch.no_grad():
        return torch.export.export(model, inputs, dynamic_shapes=shapes)


def _save_onnx(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    try:
        from upsnet.inference import onnx_ops
    except ImportError as error:
        raise ValueError(f"ONNX export needs the package {error.name}: pip install 'upsnet[onnx]'") from None
    found = torch.onnx.export(
        program,
        (),
        dynamo=True,
        verbose=False,
        opset_version=18,
        custom_translation_table=onnx_ops.translations(),
        input_names=["images", "image_sizes", "canvas"],
        output_names=list(OUTPUTS),
    )
    assert found is not None
    onnx_ops.inline_functions(found.model)
    found.model.metadata_props[METADATA] = json.dumps(metadata)
    found.save(path)


def load_graph(path: Path, device: torch.device) -> tuple[ExportedModel, CategorySet, InferenceInput]:
    """Loads an exported graph: the model, its classes and its preprocessing.

    Raises:
        FileNotFoundError, ValueError: no such file, or not one of this project's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such exported model")
    try:
        run, text = (_load_onnx if path.suffix == ".onnx" else _load_pt2)(path, device)
        metadata = json.loads(text)
    except ImportError as error:
        raise ValueError(f"{path}: needs the package {error.name}, expected pip install 'upsnet[onnx]'") from None
    except Exception as error:  # the loaders raise many kinds; all mean that the file is not such a graph
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be read as an exported model ({reason})") from None
    config, categories = read_description(metadata, source=str(path))
    size = metadata["network_size"]
    make_input = InferenceInput(config.data, None if size is None else (size[0], size[1]))
    return ExportedModel(run, categories, metadata["batch_size"], device), categories, make_input


def _load_pt2(path: Path, device: torch.device) -> tuple[Graph, str]:
    extra = {METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    return move_to_device_pass(program, device).module(), extra[METADATA]


def _load_onnx(path: Path, device: torch.device) -> tuple[Graph, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])

    def run(images: Tensor, image_sizes: Tensor, canvas: Tensor) -> dict[str, Tensor]:
        feed = {"images": images, "image_sizes": image_sizes, "canvas": canvas}
        found = session.run(list(OUTPUTS), {name: value.cpu().numpy() for name, value in feed.items()})
        return {name: torch.from_numpy(value) for name, value in zip(OUTPUTS, found, strict=True)}

    return run, session.get_modelmeta().custom_metadata_map[METADATA]


def compare(checkpoint: Checkpoint, path: Path) -> Agreement:
    """Runs a model and its exported file on generated scenes of several sizes and on noise."""
    device = torch.device("cpu")
    exported, _, make_input = load_graph(path, device)
    eager = checkpoint.build()
    totals = {"pixels": 0, "stuff": 0, "things": 0, "void": 0, "segments": 0, "instances": 0}
    seconds = [0.0, 0.0]
    pictures = _pictures()
    for picture in pictures:
        batch = make_input([picture])
        outputs = []
        for number, predict in enumerate((eager.predict, exported.predict)):
            start = time.perf_counter()
            outputs.append(predict(batch))
            seconds[number] += time.perf_counter() - start
        for name, value in _differences(outputs[0], outputs[1], checkpoint.categories.num_stuff).items():
            totals[name] += value
    times = [1000 * s / len(pictures) for s in seconds]
    return Agreement(**totals, eager_ms=times[0], exported_ms=times[1])


def _pictures() -> Sequence[npt.NDArray[np.uint8]]:
    sizes = ((128, 128), (150, 210), (240, 180), (97, 301))
    scenes = [Shapes(2, size, seed=5)[1].image for size in sizes]
    return [*scenes, np.random.default_rng(0).integers(0, 256, (140, 190, 3), dtype=np.uint8)]


def _differences(ours: PanopticOutput, theirs: PanopticOutput, num_stuff: int) -> dict[str, int]:
    ids, other = ours.segment_ids[0], theirs.segment_ids[0]
    void = torch.tensor([-1])
    classes, others = (torch.cat([void, o.segment_classes[0].cpu()]) for o in (ours, theirs))
    differs = (ids != other) | (classes[ids.long()] != others[other.long()])
    present = ids.unique()
    return {
        "pixels": ids.numel(),
        "stuff": int((differs & (ids > 0) & (ids <= num_stuff)).sum()),
        "things": int((differs & (ids > num_stuff)).sum()),
        "void": int((differs & (ids == 0)).sum()),
        "segments": int((present > 0).sum()),
        "instances": int((present > num_stuff).sum()),
    }
