"""The panoptic head's definition by hand-made cases, and its fast form against the definition."""

import pytest
import torch

from upsnet.ops.mask_paste import paste_masks
from upsnet.ops.panoptic_fusion import reference, streaming

S, T = 3, 2


def random_case(seed, batch, slots, size, *, mask_size=28):
    g = torch.Generator().manual_seed(seed)
    semantic = torch.randn(batch, S + T, *size, generator=g) * 2
    corner = torch.rand(batch, slots, 2, generator=g) * max(size) * 1.2 - 0.2 * max(size)
    boxes = torch.cat([corner, corner + torch.rand(batch, slots, 2, generator=g) * max(size) * 0.7], 2)
    labels = torch.randint(1, T + 1, (batch, slots), generator=g)
    valid = torch.arange(slots) < torch.randint(0, slots + 1, (batch, 1), generator=g)
    smooth = torch.nn.functional.interpolate(
        torch.randn(batch, slots, 4, 4, generator=g) * 4 + 1, size=mask_size, mode="bilinear"
    )
    return semantic, boxes, labels, valid, smooth


@pytest.mark.parametrize("seed", range(12))
def test_streaming_equals_the_full_volume_on_every_pixel(seed):
    slots = (1, 7, 30, 100)[seed % 4]
    case = random_case(seed, 1 + seed % 3, slots, ((40, 60), (33, 17), (64, 64))[seed % 3])
    options = {"num_stuff": S, "overlap_threshold": (0.3, 0.0, 1.0)[seed % 3]}
    assert torch.equal(streaming.fuse(*case, **options), reference.fuse(*case, **options))


def test_no_instance_leaves_stuff_and_unknown():
    semantic = torch.tensor([1.0, 0, 0, -1, 5])[None, :, None, None].repeat(1, 1, 2, 2)
    semantic[0, :, 0, 0] = torch.tensor([9.0, 0, 0, -1, 5])
    empty = (torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.bool))
    for fuse in (reference.fuse, streaming.fuse):
        found = fuse(semantic, *empty, torch.zeros(1, 2, 4, 4), num_stuff=S, overlap_threshold=0.3)
        assert found.tolist() == [[[0, S + 2], [S + 2, S + 2]]]


def test_an_instance_adds_its_logits_inside_its_box_only():
    semantic = torch.zeros(1, S + T, 4, 6)
    semantic[:, 0], semantic[:, S + 1] = 1.0, 0.5
    boxes = torch.tensor([[[1.0, 1, 4, 3]]])
    found = reference.panoptic_logits(
        semantic, boxes, torch.tensor([[2]]), torch.tensor([[True]]), torch.full((1, 1, 4, 4), 2.0), S
    )
    inside = torch.zeros(4, 6, dtype=torch.bool)
    inside[1:3, 1:4] = True
    assert (found[0, S][inside] == 2.5).all()
    assert (found[0, S][~inside] == reference.NEVER).all()
    assert (found[0, S + 1][inside] == 0).all(), "unknown: the instance explains its thing"
    assert (found[0, S + 1][~inside] == 0.5).all()
    assert ((found.argmax(1)[0] == S) == inside).all()


def test_removal_is_sequential_by_class_in_score_order():
    on = torch.zeros(1, 5, 1, 20, dtype=torch.bool)
    on[0, 0, :, :10] = True
    on[0, 1, :, 6:16] = True  # 4 of 10 taken by slot 0: goes
    on[0, 2, :, 12:20] = True  # would lose 4 of 8 to slot 1, which is gone: stays
    on[0, 3, :, :10] = True  # another class: stays
    labels = torch.tensor([[1, 1, 1, 2, 1]])
    valid = torch.ones(1, 5, dtype=torch.bool)
    assert reference.keep_instances(on, labels, valid, 0.3).tolist() == [[True, False, True, True, False]]
    valid[0, 0] = False
    assert reference.keep_instances(on, labels, valid, 0.3).tolist() == [[False, True, False, True, False]]


def test_gradients_reach_semantic_and_mask_logits():
    semantic, boxes, labels, valid, masks = random_case(3, 1, 3, (6, 7), mask_size=4)
    semantic, masks = semantic.double().requires_grad_(), masks.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, m: reference.panoptic_logits(s, boxes.double(), labels, torch.ones_like(valid), m, S),
        (semantic, masks),
    )


def test_pasting_resamples_like_interpolate():
    masks = torch.randn(2, 7, 7)
    grid = torch.arange(21) + 0.5
    logits, inside = paste_masks(masks, torch.tensor([[0.0, 0, 21, 21]] * 2), grid, grid)
    expected = torch.nn.functional.interpolate(masks[None], size=21, mode="bilinear")[0]
    torch.testing.assert_close(logits, expected)
    assert inside.all()
    _, inside = paste_masks(masks, torch.tensor([[2.5, 0.6, 4.5, 1.4], [3.0, 3, 3, 3]]), grid, grid)
    assert inside[0].nonzero().tolist() == []
    _, inside = paste_masks(masks, torch.tensor([[2.5, 0.5, 4.5, 1.5], [3.0, 3, 3, 3]]), grid, grid)
    assert inside[0].nonzero().tolist() == [[0, 2], [0, 3]]
    assert not inside[1].any()
