"""The ONNX form of the panoptic head against the operator, on maps full of instances."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from tests.ops.fusion_cases import METHODS, S, T, exact_case, random_case
from upsnet.models.upsnet.operator import panoptic_segments

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZES = (((40, 60), (40, 60)), ((33, 17), (37, 40)), ((24, 44), (20, 33)), ((200, 333), (150, 260)))
"""Of the network's input, and of the result."""


class Head(nn.Module):
    def __init__(self, *options):
        super().__init__()
        self.options = options

    def forward(self, semantic, boxes, labels, valid, masks, image_sizes, canvas):
        return panoptic_segments(semantic, boxes, labels, valid, masks, image_sizes, canvas, *self.options)


def session(example, options, path):
    """An onnxruntime session for any size of the maps."""
    from upsnet.export import onnx_ops

    dynamic = {2: Dim("h", min=2), 3: Dim("w", min=2)}
    shapes = (dynamic, None, None, None, None, None, {0: Dim("height", min=2), 1: Dim("width", min=2)})
    program = torch.export.export(Head(*options), example, dynamic_shapes=shapes)
    found = torch.onnx.export(
        program, (), dynamo=True, verbose=False, opset_version=18, custom_translation_table=onnx_ops.translations()
    )
    onnx_ops.inline_functions(found.model)
    found.save(path)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), quiet, providers=["CPUExecutionProvider"])


def inputs(seed, network, size, slots=60):
    case = random_case(seed, 2, slots, network, network)
    sizes = torch.tensor([network, (network[0] - 3, network[1] - 2)])
    return (*case, sizes, torch.zeros(size))


@pytest.mark.parametrize("method", METHODS)
def test_the_onnx_form_gives_the_same_map_on_every_pixel(method, tmp_path):
    options = (S, T, method, 0.3, 5)
    run = session(inputs(0, *SIZES[0]), options, tmp_path / "head.onnx")
    names = [value.name for value in run.get_inputs()]
    instances = 0
    for seed in range(8):
        case = inputs(seed, *SIZES[seed % len(SIZES)])
        if seed == 1:
            case[3][:] = False  # no instance
        if seed in (4, 7):
            case[3][:] = True  # every slot is taken
        expected = panoptic_segments(*case, *options)
        found = torch.from_numpy(run.run(None, {n: x.numpy() for n, x in zip(names, case, strict=True)})[0])
        assert found.dtype == torch.int32
        assert int((found != expected).sum()) == 0, seed
        instances += int((expected.unique() > S).sum())
    assert instances >= 60, "the cases must show something"


@pytest.mark.parametrize(("method", "overlap"), [("unified", 0.0), ("heuristic", 0.5)])
def test_ties_go_to_the_first_channel(method, overlap, tmp_path):
    case, size = exact_case(0)
    options = (S, T, method, overlap, 0)
    case = (*case, torch.tensor([size] * 2), torch.zeros(size))
    run = session(case, options, tmp_path / "head.onnx")
    feed = {value.name: x.numpy() for value, x in zip(run.get_inputs(), case, strict=True)}
    torch.testing.assert_close(torch.from_numpy(run.run(None, feed)[0]), panoptic_segments(*case, *options))
