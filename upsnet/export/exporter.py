"""Exports a trained model for use elsewhere; `exported_model.py` loads the files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.export import Dim, ExportedProgram
from torch.export.passes import move_to_device_pass

from upsnet.config.migrate import current_format
from upsnet.export.deployed_model import DeployedModel
from upsnet.export.exported_model import METADATA, OUTPUTS
from upsnet.export.verify import Agreement, compare
from upsnet.io.files import atomic_path, remove_leftovers
from upsnet.models.backbone import backbone_of
from upsnet.models.base import PanopticModel
from upsnet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from upsnet.models.inference_form import compute_in, fold_norms
from upsnet.ops.backend import exporting, usable_device
from upsnet.text import first_line
from upsnet.version import __version__

MAX_DISAGREEMENT = {"fp32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}
"""Share of pixels beyond which an exported file is not written; 16 bits round near-ties one way or the other."""

MAX_DRIFT = 0.1
"""Share of pixels on which a model of 16 bits may differ from itself in 32: beyond it, numbers have overflowed."""

MAX_BATCH, MAX_PIXELS = 256, 2**28
"""Images, and pixels of all of them, that a graph takes at once."""

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_checkpoint(source: Path | str, target: Path | str, *, overrides: Sequence[str] = ()) -> None:
    """Writes weights, config, categories and metrics into one file, after checking that they make a model.

    Args:
        source: `model.pt` or `last.pt` of a run.
        target: the slim file, loadable by `PanopticPredictor.from_checkpoint`.
        overrides: `key=value`, changes to the config of the checkpoint.

    Raises:
        FileNotFoundError, ValueError: no such file, not a checkpoint, or weights that do not fit its config.
    """
    checkpoint = load_checkpoint(Path(source), overrides)
    checkpoint.build()
    remove_leftovers(Path(target).parent)
    save_checkpoint(Path(target), replace(checkpoint, training=None))


def export_graph(
    source: Path | str,
    target: Path | str,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    precision: Precision = "fp32",
    compile_for: torch.device | None = None,
    verify: bool = True,
    overrides: Sequence[str] = (),
) -> Agreement | None:
    """Writes the whole model, fusion included, as one graph.

    Args:
        source: `model.pt` of a run.
        target: `.pt2` (`torch.export`, needs this package) or `.onnx` (standard operators only) to write;
            `PanopticPredictor.from_checkpoint` loads both.
        size: (H, W) of the network's input, multiples of 32; by default any such size.
        batch_size: of the graph.
        precision: of convolutions and linear layers.
        compile_for: turn a `.pt2` into machine code for this device (AOTInductor; needs a C++ compiler here).
        verify: compare the file with the model of the same precision before it gets its name.
        overrides: `key=value`, changes to the config of the checkpoint.

    Returns:
        The agreement, if verified.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, a request that the format cannot serve, or a graph that
            disagrees with its model on more than `MAX_DISAGREEMENT` of the pixels.
    """
    source, target = Path(source), Path(target)
    checkpoint = load_checkpoint(source, overrides)
    built = checkpoint.build()
    _require_exportable(built, source)
    _check_request(target, size, built, checkpoint.config.data.size_divisor, batch_size, precision, compile_for)
    metadata = {
        "format": current_format(),
        "config": checkpoint.config.dump(),
        "categories": checkpoint.categories.to_json(),
        "network_size": size,
        "size_remainder": built.input_form.remainder,
        "batch_size": batch_size,
        "precision": precision,
        "compiled_for": None if compile_for is None else compile_for.type,
        "versions": {"upsnet": __version__, "torch": torch.__version__},
    }
    remove_leftovers(target.parent)
    model = compute_in(fold_norms(built), _DTYPES[precision])
    program = _trace(model, checkpoint, size, batch_size)
    with atomic_path(target) as temporary:
        if target.suffix == ".onnx":
            _save_onnx(program, temporary, metadata)
        elif compile_for is not None:
            _compile(program, temporary, metadata, compile_for)
        else:
            program.example_inputs = None  # the file would hold them as a pickle
            torch.export.save(program, temporary, extra_files={METADATA: json.dumps(metadata)})
        if not verify:
            return None
        return _verified(model, checkpoint, temporary, target, precision, compile_for or torch.device("cpu"))


def _require_exportable(model: PanopticModel, source: Path) -> None:
    if "panoptic" not in model.tasks:
        raise ValueError(
            f"{source}: the model predicts {', '.join(sorted(model.tasks))}, expected panoptic (model.heads=both): the "
            "fusion is exported"
        )
    try:
        model.require_fixed_shapes()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _verified(
    model: PanopticModel, checkpoint: Checkpoint, file: Path, target: Path, precision: Precision, device: torch.device
) -> Agreement:
    """The agreement of a file with its model, and in 16 bits with the model in 32 bits.

    Raises:
        ValueError: they differ on too many pixels; the message names `target`.
    """
    agreement = compare(model.to(device), checkpoint, file, device)
    limit = MAX_DISAGREEMENT[precision]
    if agreement.disagreement > limit:
        raise ValueError(
            f"{target}: not written: the exported graph differs from the model on "
            f"{100 * agreement.disagreement:.2f} % of the pixels, expected at most {100 * limit:.1f} %"
        )
    if precision == "fp32":
        return agreement
    in_32_bits = compare(fold_norms(checkpoint.build()).to(device), checkpoint, file, device)
    agreement = replace(agreement, drift=in_32_bits.disagreement)
    if agreement.drift > MAX_DRIFT:
        raise ValueError(
            f"{target}: not written: in {precision} the model differs from itself in 32 bits on "
            f"{100 * agreement.drift:.1f} % of the pixels, expected at most {100 * MAX_DRIFT:.0f} %; use fp32"
        )
    return agreement


def _check_request(
    target: Path,
    size: tuple[int, int] | None,
    model: PanopticModel,
    divisor: int,
    batch_size: int,
    precision: Precision,
    compile_for: torch.device | None,
) -> None:
    remainder = model.input_form.remainder
    if size is not None and (min(size) <= 0 or model.input_form.padded_size(size, divisor) != size):
        rule = f"multiples of {divisor}" + (f" plus {remainder}" if remainder else "")
        raise ValueError(f"--size {size[0]} {size[1]}: expected {rule}")
    backbone = backbone_of(model)
    if size is None and backbone is not None and not backbone.exports_any_size:
        raise ValueError("--size: the backbone of this model can be exported for one size only, expected --size H W")
    if target.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"{target}: expected a name that ends in .pt2 or .onnx")
    if not 1 <= batch_size <= MAX_BATCH:
        raise ValueError(f"--batch-size {batch_size}: expected 1 to {MAX_BATCH}; every call of the graph takes so many")
    if size is not None and size[0] * size[1] * batch_size > MAX_PIXELS:
        raise ValueError(
            f"--size {size[0]} {size[1]}, --batch-size {batch_size}: more than {MAX_PIXELS} pixels, which no machine "
            "takes at once"
        )
    if target.suffix == ".onnx" and precision == "bf16":
        raise ValueError("--precision bf16: ONNX runtimes hardly compute it, expected fp32 or fp16; or export a .pt2")
    if target.suffix == ".onnx" and compile_for is not None:
        raise ValueError("--compile makes machine code of a .pt2, expected --format pt2")
    if compile_for is not None and compile_for.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU here, expected one to compile for")


def _trace(
    model: PanopticModel, checkpoint: Checkpoint, size: tuple[int, int] | None, batch_size: int
) -> ExportedProgram:
    data = checkpoint.config.data
    divisor = data.size_divisor
    remainder = model.input_form.remainder
    height, width = size or (8 * divisor + remainder, 10 * divisor + remainder)
    inputs = (
        torch.zeros(batch_size, 3, height, width, dtype=torch.uint8),
        torch.tensor([[height - 5, width - 9]] * batch_size),
        torch.zeros(height + 11, width + 7, dtype=torch.uint8),
    )
    rows, columns = Dim("rows", min=2), Dim("columns", min=2)
    images = None if size is not None else {2: divisor * rows + remainder, 3: divisor * columns + remainder}
    shapes = (images, None, {0: Dim("height", min=2), 1: Dim("width", min=2)})
    model.to(memory_format=torch.channels_last)
    deployed = DeployedModel(model, checkpoint.categories).eval()
    with torch.no_grad(), exporting():
        return torch.export.export(deployed, inputs, dynamic_shapes=shapes)


def _compile(program: ExportedProgram, path: Path, metadata: dict[str, Any], device: torch.device) -> None:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

    options = {"aot_inductor.metadata": {METADATA: json.dumps(metadata)}}
    program = move_to_device_pass(program, usable_device(device))  # with its number, as its tensors have it
    try:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except (InductorError, RuntimeError) as error:
        reason = first_line(error)
        needs_compiler = isinstance(getattr(error, "inner_exception", error), CppCompileError | InvalidCxxCompiler)
        remedy = "; expected a C++ compiler (g++ or clang++) that torch can use" if needs_compiler else ""
        raise ValueError(f"--compile: {reason}{remedy}") from None


def _save_onnx(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    try:
        from upsnet.export import onnx_ops
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
