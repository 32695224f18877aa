"""The CUDA kernels on a GPU: the same results, no sync, and inside a CUDA graph. Their arithmetic also runs without a
GPU under Triton's interpreter (`test_panoptic_fusion.py`)."""

import pytest
import torch

from upsnet.models.panoptic_head import PanopticHead
from upsnet.ops.nms import nms_mask
from upsnet.ops.panoptic_fusion.pipeline import panoptic_map
from upsnet.structures import Detections

from .fusion_cases import METHODS, S, T, check_kernels, random_case

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
    head = PanopticHead(S, T, method=method, stuff_area_limit=10)
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
