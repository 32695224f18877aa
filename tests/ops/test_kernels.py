"""The CUDA kernels on a GPU: the same results, no sync, and inside a CUDA graph. Their arithmetic also runs without a
GPU under Triton's interpreter (`test_panoptic_fusion.py`)."""

import pytest
import torch

from tests.ops.fusion_cases import METHODS, S, T, check_kernels, random_case
from tests.ops.grouping_cases import STUFF, random_maps
from upsnet.config import PanopticConfig
from upsnet.models.upsnet.panoptic_head import PanopticHead
from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.instance_grouping.pipeline import fuse
from upsnet.ops.nms import nms_mask
from upsnet.ops.panoptic_fusion.pipeline import panoptic_map
from upsnet.ops.sampling import hashed_uniform
from upsnet.structures import Detections

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture
def no_sync():
    """Makes every wait for the device an error, once what it does first has been compiled."""

    def run(function):
        function()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return run


def test_kernels_agree_with_the_definitions():
    check_kernels("cuda")


@pytest.mark.parametrize("method", METHODS)
def test_the_head_never_waits_for_the_host(no_sync, method):
    semantic, boxes, labels, valid, masks = (t.cuda() for t in random_case(2, 2, 100, (64, 96), (64, 96)))
    detections = Detections(boxes, valid.float(), labels, valid, masks)
    head = PanopticHead(S, T, PanopticConfig(method=method, stuff_area_limit=10))
    output = no_sync(lambda: head(semantic, detections, [(64, 96)] * 2, [(128, 192), (50, 70)]))
    assert [tuple(m.shape) for m in output.segment_ids] == [(128, 192), (50, 70)]


def test_nms_never_waits_for_the_host(no_sync):
    g = torch.Generator().manual_seed(0)
    boxes = torch.randint(0, 100, (10, 1000, 4), generator=g).float().cuda()
    boxes[..., 2:] += boxes[..., :2]
    found = no_sync(lambda: nms_mask(boxes, 0.5))
    assert torch.equal(found.cpu(), nms_mask(boxes.cpu(), 0.5))


def test_the_map_can_be_captured_in_a_graph():
    case = [t.cuda() for t in random_case(4, 1, 60, (64, 96), (128, 192))]
    options = {"network_size": (64, 96), "size": (128, 192), "num_stuff": S, "overlap_threshold": 0.3}
    expected, _ = panoptic_map(*case, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found, _ = panoptic_map(*case, **options)
    found.zero_()
    graph.replay()
    assert torch.equal(found, expected)


def grouping(maps, outputs):
    options = GroupingOptions(nms_kernel=3, stuff_area_limit=10)
    rest = {"input_size": (129, 193), "num_stuff": STUFF, "options": options, "align_corners": True}
    return fuse(*maps, [(120, 190)] * 2, outputs, **rest)


def test_the_grouping_of_pixels_never_waits_for_the_host(no_sync):
    maps, outputs = random_maps(0, 2, (33, 49), 300), [(240, 380), (120, 190)]
    found = no_sync(lambda: grouping([x.cuda() for x in maps], outputs))
    expected = grouping(maps, outputs)
    assert torch.equal(found.segment_ids.cpu(), expected.segment_ids)
    assert torch.equal(found.segment_classes.cpu(), expected.segment_classes)
    torch.testing.assert_close(found.segment_scores.cpu(), expected.segment_scores, rtol=0, atol=1e-5)


def test_the_grouping_of_pixels_can_be_captured_in_a_graph():
    maps, outputs = [x.cuda() for x in random_maps(1, 2, (33, 49), 100)], [(120, 190)] * 2
    expected = grouping(maps, outputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = grouping(maps, outputs)
    for x in found[:3]:
        x.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_shortcut_and_relu_in_one_pass_have_their_gradients(no_sync, dtype):
    from upsnet.ops.bias_relu_triton import bias_relu

    g = torch.Generator().manual_seed(0)
    x, shortcut, weight = torch.randn(3, 2, 37, 9, 8, generator=g).cuda().to(dtype).unbind()
    inputs = [t.requires_grad_() for t in (x, torch.randn(37, generator=g).cuda(), shortcut)]
    found = no_sync(lambda: bias_relu(*inputs))
    expected = (x.float() + inputs[1][:, None, None] + shortcut.float()).relu().to(dtype)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), inputs) for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_the_semantic_loss_is_the_same_on_every_run(no_sync):
    from upsnet.ops.upsampled_cross_entropy_triton import loss_and_gradient

    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 133, 50, 84, generator=g).cuda()
    target = torch.randint(0, 133, (2, 200, 336), generator=g, dtype=torch.uint8).cuda()
    runs = [no_sync(lambda: loss_and_gradient(logits, target, 4, 255)) for _ in range(3)]
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


def test_a_hash_is_the_same_on_every_device():
    seeds, positions = torch.tensor([0, 7, 2**40 + 3]), torch.arange(1000)
    assert torch.equal(hashed_uniform(seeds.cuda(), 2, positions.cuda()).cpu(), hashed_uniform(seeds, 2, positions))
