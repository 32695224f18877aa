"""The panoptic head's definition by hand-made cases; its fast forms against it."""

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.ops.fusion_cases import METHODS, S, T, exact_case, random_case
from upsnet.ops.mask_paste import inside_boxes, paste_masks
from upsnet.ops.panoptic_fusion import reference, streaming
from upsnet.ops.panoptic_fusion.pipeline import panoptic_map
from upsnet.ops.panoptic_fusion.segment_ids import segment_ids
from upsnet.ops.panoptic_fusion.slots import NEVER, Grid, place_slots


def both(case, **options):
    """The maps of the definition, after checking that the streaming form gives the same."""
    options = {"num_stuff": S, "overlap_threshold": 0.3, "with_semantic": True, **options}
    expected = panoptic_map(*case, **options, implementation=reference)
    found = panoptic_map(*case, **options, implementation=streaming)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    return expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(12))
def test_streaming_equals_the_full_volume_on_every_pixel(seed, method):
    slots = (1, 7, 100, 256)[seed % 4]
    network = ((40, 60), (33, 17), (64, 64))[seed % 3]
    size = (network, (51, 140), (130, 30), (200, 260))[(seed // 3) % 4]
    case = random_case(seed, 1 + seed % 3, slots, network, size)
    threshold = (0.3, 0.0, 1.0)[seed % 3]
    both(case, network_size=network, size=size, overlap_threshold=threshold, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_ties_go_to_the_first_channel_in_every_form(seed, method):
    """Small integers and halves: the arithmetic is exact, so that many channels tie exactly."""
    case, size = exact_case(seed)
    panoptic, semantic = both(case, network_size=size, size=size, method=method)
    assert len(panoptic.unique()) > 4
    assert len(semantic.unique()) > 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_fused_in_float32(dtype):
    semantic, *slots = random_case(5, 2, 30, (40, 60), (80, 120))
    options = {"network_size": (40, 60), "size": (80, 120)}
    found, _ = both((semantic.to(dtype), *slots), **options)
    assert torch.equal(found, both((semantic.to(dtype).float(), *slots), **options)[0])
    exact, _ = both((semantic, *slots), **options)
    assert (found != exact).float().mean() < 0.02, "rounding moves edges, not segments"


def test_a_batch_is_its_images_one_by_one():
    case = random_case(8, 3, 30, (40, 60), (75, 90))
    options = {"network_size": (40, 60), "size": (75, 90)}
    together, _ = both(case, **options)
    for i in range(3):
        alone, _ = both(tuple(t[i : i + 1] for t in case), **options)
        assert torch.equal(together[i : i + 1], alone)


def test_a_tile_skips_channels_that_cannot_win():
    semantic = torch.zeros(1, S + T, 16, 16)
    semantic[:, 1], semantic[:, S:] = 5, -2
    channels = streaming._contenders(semantic[0], S, [S + 1])
    assert channels.tolist() == [1, S + 1]
    semantic[0, 0, 3, 3] = 5.1
    assert streaming._contenders(semantic[0], S, []).tolist() == [0, 1]


def test_no_instance_leaves_stuff_and_unknown():
    semantic = torch.tensor([1.0, 0, 0, -1, 5])[None, :, None, None].repeat(1, 1, 2, 2)
    semantic[0, :, 0, 0] = torch.tensor([9.0, 0, 0, -1, 5])
    empty = (torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.bool))
    case = (semantic, *empty, torch.zeros(1, 2, 4, 4))
    found, _ = both(case, network_size=(8, 8), size=(2, 2))
    assert found.tolist() == [[[0, S + 2], [S + 2, S + 2]]]


def test_an_instance_adds_its_logits_inside_its_box_only():
    semantic = torch.zeros(1, S + T, 4, 6)
    semantic[:, 0], semantic[:, S + 1] = 1.0, 0.5
    slots = place_slots(
        torch.tensor([[[1.0, 1, 4, 3]]]),
        torch.tensor([[2]]),
        torch.tensor([[True]]),
        torch.full((1, 1, 4, 4), 2),
        (4, 6),
    )
    slots = replace(slots, mask_logits=slots.mask_logits.float())
    found = reference.panoptic_logits(semantic, slots, S)
    inside = torch.zeros(4, 6, dtype=torch.bool)
    inside[1:3, 1:4] = True
    assert (found[0, S][inside] == 2.5).all()
    assert (found[0, S][~inside] == NEVER).all()
    assert (found[0, S + 1][inside] == 0).all(), "unknown: the instance explains its thing"
    assert (found[0, S + 1][~inside] == 0.5).all()
    assert ((found.argmax(1)[0] == S) == inside).all()


def test_heuristic_merge_pastes_masks_over_the_semantic_map():
    semantic = torch.zeros(1, S + T, 4, 8)
    semantic[:, 1, :, :4], semantic[:, S, :, 4:] = 1, 1  # stuff on the left, a thing on the right
    boxes = torch.tensor([[[0.0, 0, 4, 4], [2, 0, 6, 4], [2, 0, 12, 4]]])  # slot 1: half taken; slot 2: a fifth
    case = (semantic, boxes, torch.tensor([[1, 2, 2]]), torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3, 2, 2))
    found, _ = both(case, network_size=(16, 32), size=(4, 8), method="heuristic", overlap_threshold=0.4)
    assert found[0, 0].tolist() == [S, S, S, S, S + 2, S + 2, S + 2, S + 2]
    nothing = (semantic, boxes, torch.tensor([[1, 2, 2]]), torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, 2, 2))
    found, _ = both(nothing, network_size=(16, 32), size=(4, 8), method="heuristic")
    assert found[0, 0].tolist() == [1, 1, 1, 1, S + 3, S + 3, S + 3, S + 3], "a thing without instance is void"


def pixel_slots(rows, labels, valid=None):
    """Slots whose masks are runs (x1, x2) of pixels in a row of 20."""
    boxes = torch.tensor([[[float(a), 0, b, 1] for a, b in rows]])
    labels = torch.tensor([labels])
    valid = torch.ones_like(labels, dtype=torch.bool) if valid is None else torch.tensor([valid])
    return place_slots(boxes, labels, valid, torch.ones(1, len(rows), 2, 2), (1, 20))


@pytest.mark.parametrize("keep_instances", [reference.keep_instances, streaming.keep_instances])
def test_removal_is_sequential_by_class_in_score_order(keep_instances):
    # Slot 1 loses 4 of 10 pixels to slot 0 and goes; slot 2 would lose 4 of 8 to slot 1, but that is gone.
    rows, labels = [(0, 10), (6, 16), (12, 20), (0, 10), (5, 5)], [1, 1, 1, 2, 2]
    found = keep_instances(pixel_slots(rows, labels), (1, 20), Fraction(3, 10))
    assert found.tolist() == [[True, False, True, True, False]]
    found = keep_instances(pixel_slots(rows, labels, [False, True, True, True, True]), (1, 20), Fraction(3, 10))
    assert found.tolist() == [[False, True, False, True, False]]


@pytest.mark.parametrize("keep_instances", [reference.keep_instances, streaming.keep_instances])
def test_removal_counts_the_union_of_the_kept_and_is_exact_at_the_threshold(keep_instances):
    # The last loses 2 pixels to each of two: 4 of 10. Where those two share pixels, they count once.
    apart, shared = [(0, 8), (14, 20), (6, 16)], [(0, 8), (6, 8), (6, 16)]
    assert keep_instances(pixel_slots(apart, [1] * 3), (1, 20), Fraction(3, 10)).tolist() == [[True, True, False]]
    assert keep_instances(pixel_slots(apart, [1] * 3), (1, 20), Fraction(4, 10)).tolist() == [[True, True, True]]
    assert keep_instances(pixel_slots(shared, [1] * 3), (1, 20), Fraction(1)).tolist() == [[True, True, True]]
    assert keep_instances(pixel_slots(shared, [1] * 3), (1, 20), Fraction(2, 10)).tolist() == [[True, False, True]]
    exact = pixel_slots([(0, 10), (7, 17)], [1, 1])  # 3 of 10
    assert keep_instances(exact, (1, 20), Fraction(0.3).limit_denominator(10**6)).all()


def test_gradients_reach_semantic_and_mask_logits():
    semantic, boxes, labels, valid, masks = random_case(3, 1, 3, (24, 28), (6, 7), mask_size=4)
    slots = place_slots(boxes.double(), labels, torch.ones_like(valid), masks.double(), (6, 7))
    assert torch.autograd.gradcheck(
        lambda s, m: reference.panoptic_logits(s, replace(slots, mask_logits=m), S),
        (semantic[:, :, :6, :7].double().requires_grad_(), masks.double().requires_grad_()),
    )


def test_upsampling_is_bilinear_at_any_size():
    x = torch.randn(2, 3, 11, 7)
    grid = Grid.of((44, 28), (44, 28), (11, 7), x.device)
    expected = torch.nn.functional.interpolate(x, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(reference.upsample(x, grid), expected)
    grid = Grid.of((44, 28), (101, 33), (11, 7), x.device)
    expected = torch.nn.functional.interpolate(x, size=(101, 33), mode="bilinear")
    torch.testing.assert_close(reference.upsample(x, grid), expected)


def test_pasting_resamples_like_interpolate():
    masks = torch.randn(2, 7, 7)
    grid = torch.arange(21) + 0.5
    expected = torch.nn.functional.interpolate(masks[None], size=21, mode="bilinear")[0]
    torch.testing.assert_close(paste_masks(masks, torch.tensor([[0.0, 0, 21, 21]] * 2), grid, grid), expected)
    assert inside_boxes(torch.tensor([0.0, 0, 21, 21]), grid, grid).all()
    assert inside_boxes(torch.tensor([2.5, 0.6, 4.5, 1.4]), grid, grid).nonzero().tolist() == []
    assert inside_boxes(torch.tensor([2.5, 0.5, 4.5, 1.5]), grid, grid).nonzero().tolist() == [[0, 2], [0, 3]]
    assert not inside_boxes(torch.tensor([3.0, 3, 3, 3]), grid, grid).any()


@pytest.mark.parametrize("seed", range(3))
def test_regions_hold_the_pixels_whose_centre_lies_in_the_box(seed):
    _, boxes, labels, valid, masks = random_case(seed, 1, 50, (40, 60), (40, 60))
    boxes = torch.cat([boxes, (boxes * 2).round() / 2], 1)  # also edges on centres
    slots = place_slots(boxes, labels.repeat(1, 2), valid.repeat(1, 2), masks.repeat(1, 2, 1, 1), (40, 60))
    x, y = torch.arange(60) + 0.5, torch.arange(40) + 0.5
    assert torch.equal(inside_boxes(slots.region, x, y), inside_boxes(boxes, x, y))


def test_small_stuff_becomes_void():
    channels = torch.tensor([[[0, 0, 0, 1], [3, 3, 3, 3], [4, 4, 5, 5]]], dtype=torch.int32)  # S = 3, K = 2
    classes = torch.tensor([[0, 1, 2, 3, 4]])
    assert segment_ids(channels, classes, 3, 3).tolist() == [[[1, 1, 1, 0], [4, 4, 4, 4], [5, 5, 0, 0]]]
    assert segment_ids(channels, classes, 3, 4).tolist() == [[[0, 0, 0, 0], [4, 4, 4, 4], [5, 5, 0, 0]]]


def test_nan_logits_give_a_map_too():
    semantic, *slots = random_case(2, 1, 7, (40, 60), (40, 60))
    semantic[0, 1, 2, 3] = torch.nan
    found, _ = panoptic_map(semantic, *slots, network_size=(40, 60), size=(40, 60), num_stuff=S, overlap_threshold=0.3)
    assert found.min() >= 0


def test_autocast_does_not_reach_the_fusion():
    case = random_case(6, 1, 30, (40, 60), (50, 70))
    options = {"network_size": (40, 60), "size": (50, 70), "num_stuff": S, "overlap_threshold": 0.3}
    expected, _ = panoptic_map(*case, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(panoptic_map(*case, **options)[0], expected)
        assert torch.equal(panoptic_map(*case, **options, implementation=reference)[0], expected)


def test_kernels_agree_under_tritons_interpreter():
    """The interpreter must be chosen before Triton is imported, hence a process of its own."""
    pytest.importorskip("triton")
    script = Path(__file__).with_name("fusion_cases.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kernels agree" in done.stdout


def test_importing_the_package_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import upsnet; from upsnet.models import upsnet as m; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fine"
