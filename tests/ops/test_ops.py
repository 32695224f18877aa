"""The operators against torchvision and against slow, obvious versions."""

from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou, nms, roi_align

from upsnet.ops import boxes as B
from upsnet.ops.nms import nms_mask
from upsnet.ops.roi_align import FeatureLayout, assign_levels
from upsnet.ops.roi_align import roi_align as our_roi_align
from upsnet.ops.sampling import hashed_uniform, sample_ranked


def random_boxes(count, size=100.0, generator=None):
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * size / 2 + 0.1], 1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_decoding_inverts_encoding(generator):
    anchors, boxes = random_boxes(50, generator=generator), random_boxes(50, generator=generator)
    weights = (10.0, 5.0)
    torch.testing.assert_close(B.decode_boxes(B.encode_boxes(boxes, anchors, weights), anchors, weights), boxes)
    assert B.decode_boxes(torch.full((1, 4), 1e9), anchors[:1], weights).isfinite().all()


def test_iou_equals_torchvisions_and_is_0_for_empty_boxes(generator):
    truth, boxes = random_boxes(6, generator=generator), random_boxes(40, generator=generator)
    torch.testing.assert_close(B.pairwise_iou(truth[None], boxes[None])[0], box_iou(truth, boxes))
    assert not B.pairwise_iou(torch.zeros(1, 2, 4), boxes[None]).any()


def test_clipping_uses_each_image_its_own_size():
    boxes = torch.tensor([[[-5.0, -5, 500, 500]], [[-5.0, -5, 500, 500]]])
    clipped = B.clip_boxes(boxes, torch.tensor([[10, 20], [30, 40]]))
    assert clipped.tolist() == [[[0, 0, 20, 10]], [[0, 0, 40, 30]]]


def test_clipping_can_leave_a_pixel_inside():
    boxes = torch.tensor([[[-9.0, -9, -5, -5], [30, 40, 50, 60], [3, 4, 5, 6]]])
    clipped = B.clip_boxes(boxes, torch.tensor([[10, 20]]), 1.0)
    assert clipped.tolist() == [[[0, 0, 1, 1], [19, 9, 20, 10], [3, 4, 5, 6]]]


@pytest.mark.parametrize("convention", ["legacy", "inclusive"])
def test_roi_align_without_the_half_pixel_equals_torchvisions(generator, convention):
    level = torch.randn(1, 4, 25, 40, generator=generator)
    boxes = random_boxes(40, 90, generator)[None]
    boxes[0, 0] = torch.tensor([10.0, 10, 11.5, 10.2])  # smaller than a cell
    found = our_roi_align(FeatureLayout.of([level], (4,), convention), boxes, 7, torch.zeros(1, 40, dtype=torch.long))
    end = torch.tensor([0, 0, 1, 1]) if convention == "inclusive" else 0
    rois = torch.cat([torch.zeros(40, 1), boxes[0] - end], 1)
    torch.testing.assert_close(found, roi_align(level, rois, 7, 1 / 4, sampling_ratio=2, aligned=False))


@pytest.mark.parametrize("convention", ["aligned", "legacy"])
def test_padding_pools_zeros_and_changes_nothing_else(generator, convention):
    level = torch.randn(2, 4, 5, 6, generator=generator, requires_grad=True)
    layout = FeatureLayout.of([level], (4,), convention)
    real = torch.stack([random_boxes(3, 20, generator) for _ in range(2)])
    boxes = torch.cat([real, torch.zeros(2, 50, 4)], 1)  # more of them than rows of features
    found = our_roi_align(layout, boxes, 7, torch.zeros(2, 53, dtype=torch.long)).unflatten(0, (2, 53))
    alone = our_roi_align(layout, real, 7, torch.zeros(2, 3, dtype=torch.long)).unflatten(0, (2, 3))
    assert torch.equal(found[:, :3], alone)
    assert not found[:, 3:].any()
    (gradient,) = torch.autograd.grad(found[:, 3:].sum(), level)
    assert not gradient.any()


def test_nms_rows_equal_torchvision_and_padding_takes_no_part(generator):
    rows = torch.stack([random_boxes(60, 60, generator) for _ in range(3)])
    rows[1, 40:] = 0
    keep = nms_mask(rows, 0.4)
    for row, solid in zip(range(3), (60, 40, 60), strict=True):
        expected = torch.zeros(solid, dtype=torch.bool)
        expected[nms(rows[row, :solid], torch.arange(solid, 0, -1).float(), 0.4)] = True
        assert torch.equal(keep[row, :solid], expected)
    torch.library.opcheck(nms_mask, (rows, 0.4))


def test_roi_align_equals_torchvision_on_every_level_with_gradients(generator):
    strides = (4, 8, 16)
    levels = [torch.randn(2, 5, 64 // s * 4, 96 // s * 4, generator=generator, requires_grad=True) for s in strides]
    boxes = torch.stack([random_boxes(30, 250, generator) for _ in range(2)])
    boxes[0, 0] = torch.tensor([-40.0, -30, 500, 600])  # far outside
    boxes[0, 1] = torch.tensor([10.0, 10, 10.5, 10.2])  # smaller than a cell
    which = assign_levels(boxes, 100, len(levels))
    assert set(which.flatten().tolist()) == {0, 1, 2}
    found = our_roi_align(FeatureLayout.of(levels, strides), boxes, 7, which)
    expected = torch.zeros_like(found)
    for number, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        image, roi = (which == number).nonzero(as_tuple=True)
        rois = torch.cat([image[:, None].float(), boxes[image, roi]], 1)
        pooled = roi_align(level, rois, 7, 1 / stride, sampling_ratio=2, aligned=True)
        expected = expected.index_put((image * boxes.shape[1] + roi,), pooled)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(found.shape, generator=generator)
    ours = torch.autograd.grad((found * weight).sum(), levels)
    theirs = torch.autograd.grad((expected * weight).sum(), levels)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_levels_follow_the_size_of_the_box():
    boxes = torch.tensor([[0, 0, s, s] for s in (1.0, 111, 112, 224, 448, 5000)])
    assert assign_levels(boxes, 224, 4).tolist() == [0, 0, 1, 2, 3, 3]
    assert assign_levels(torch.zeros(1, 4), 224, 4).tolist() == [0]


def test_hashed_numbers_are_uniform_and_independent():
    seeds = torch.tensor([1, 2, 2**62 + 1, 1])
    values = hashed_uniform(seeds, 1, torch.arange(100_000))
    assert torch.equal(values[0], values[3])
    assert values.min() >= 0
    assert values.max() < 1
    assert (values.mean(1) - 0.5).abs().max() < 0.005
    assert torch.corrcoef(values[:3])[0, 1:].abs().max() < 0.02
    other = hashed_uniform(seeds, 2, torch.arange(100_000))
    assert torch.corrcoef(torch.stack([values[0], other[0]]))[0, 1].abs() < 0.02
    assert torch.corrcoef(torch.stack([values[0, :-1], values[0, 1:]]))[0, 1].abs() < 0.02
    assert torch.equal(values[:, :10], hashed_uniform(seeds, 1, torch.arange(10)))


def test_sampling_takes_candidates_only():
    indices, taken = sample_ranked(torch.tensor([[0.5, -1, 0.9, -1], [-1, -1, -1, 0.1]]), 3)
    assert taken.tolist() == [[True, True, False], [True, False, False]]
    assert indices[0, :2].tolist() == [2, 0]
    assert indices[1, 0] == 3


def test_roi_align_pools_from_16_bits(generator):
    level = torch.randn(1, 5, 20, 30, generator=generator)
    boxes = random_boxes(20, 100, generator)[None]
    which = torch.zeros(1, 20, dtype=torch.long)
    layout = FeatureLayout.of([level], (4,))
    half = our_roi_align(replace(layout, table=layout.table.bfloat16()), boxes, 7, which)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), our_roi_align(layout, boxes, 7, which), rtol=0.02, atol=0.02)
