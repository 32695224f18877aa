import math

import pytest
import torch

from upsnet.categories import IGNORE_LABEL
from upsnet.models.upsnet import losses as L
from upsnet.models.upsnet.matching import (
    crowd_integral,
    crowd_share,
    mask_targets,
    match,
    match_anchors,
    semantic_targets,
)
from upsnet.structures import PanopticTarget


def target(boxes, labels, crowd, instance_map, semantic_map=None):
    instance_map = torch.as_tensor(instance_map, dtype=torch.int32)
    return PanopticTarget(
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor(labels),
        torch.tensor(crowd),
        instance_map,
        torch.zeros(instance_map.shape, dtype=torch.uint8) if semantic_map is None else torch.tensor(semantic_map),
        torch.arange(len(labels)),
    )


def test_means_are_taken_per_image_first():
    values = torch.tensor([[1.0, 3, 100], [5, 100, 100]])
    weight = torch.tensor([[True, True, False], [True, False, False]])
    assert L.image_mean(values, weight) == (2 + 5) / 2
    assert L.image_mean(values, torch.zeros_like(weight)) == 0
    one = [L.image_mean(values[i : i + 1], weight[i : i + 1]) for i in (0, 1)]
    assert sum(one) / 2 == L.image_mean(values, weight)


def test_pixel_loss_by_hand():
    logits = torch.zeros(2, 4, 1, 3)
    wanted = torch.tensor([[[0, 1, IGNORE_LABEL]], [[IGNORE_LABEL] * 3]])
    assert L.pixel_loss(logits, wanted).item() == pytest.approx(math.log(4) / 2)


def test_box_losses_count_only_samples():
    logits, deltas = torch.zeros(1, 3, 3), torch.zeros(1, 3, 4)
    labels, goal = torch.tensor([[1, 0, 2]]), torch.full((1, 3, 4), 0.5)
    sampled = torch.tensor([[True, True, False]])
    loss_class, loss_box = L.class_and_box_loss(logits, deltas, labels, goal, sampled)
    assert loss_class.item() == pytest.approx(math.log(3))
    assert loss_box.item() == pytest.approx(4 * 0.125 / 2)
    loss_object, loss_box = L.objectness_and_box_loss(logits[..., 0], deltas, goal, (labels > 0) & sampled, sampled)
    assert loss_object.item() == pytest.approx(math.log(2))
    assert loss_box.item() == pytest.approx(4 * (0.5 - 1 / 18) / 2), "only the sampled positive counts"


def test_matching_with_crowds_and_empty_images():
    ids = torch.zeros(2, 20, 40, dtype=torch.int32)
    ids[0, :10, :10], ids[0, :, 20:30] = 1, 2  # the crowd fills the left half of its box
    truth = target(
        [[[0, 0, 10, 10], [20, 0, 40, 20]], [[0, 0, 0, 0]] * 2],
        [[1, 1], [0, 0]],
        [[False, True], [False, False]],
        ids.tolist(),
    )
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4], [21, 5, 31, 15], [30, 5, 38, 15], [-9, -9, 0, 0]])
    found = match(truth, crowd_integral(truth), boxes[None].expand(2, -1, -1))
    torch.testing.assert_close(found.iou, torch.tensor([[1.0, 0.4, 0, 0, 0], [-1] * 5]))
    assert found.is_ignored.tolist() == [[False, False, True, False, False], [False] * 5]
    torch.testing.assert_close(crowd_share(crowd_integral(truth), boxes[None])[0], torch.tensor([0, 0, 0.9, 0, 0]))


def test_mask_targets_are_the_instance_in_the_frame_of_the_box():
    ids = [[[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]]]
    truth = target([[[0, 0, 2, 2], [2, 0, 4, 2]]], [[1, 1]], [[False, False]], ids)
    boxes = torch.tensor([[[0.0, 0, 4, 4], [2, 0, 4, 2]]])
    found = mask_targets(truth, boxes, torch.tensor([[0, 1]]), 4)
    assert found[0, 0].gt(0.5).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert (found[0, 1, :, 1:] > 0.5).all()
    assert semantic_targets(truth, boxes, 2).shape == (1, 2, 2, 2)


def test_anchors_match_like_boxes_and_the_best_of_each_instance_are_known():
    ids = torch.zeros(2, 20, 40, dtype=torch.int32)
    truth = target([[[0, 0, 10, 10], [20, 0, 40, 20]], [[0, 0, 10, 20]] * 2], [[1, 1], [1, 0]], [[False] * 2] * 2, ids)
    anchors = torch.tensor([[0.0, 0, 10, 5], [0, 5, 10, 10], [20, 0, 30, 20], [0, 0, 10, 10], [30, 0, 32, 2]])
    within = torch.tensor([[True, True, True, False, True], [True] * 5])
    found, is_best = match_anchors(truth, crowd_integral(truth), anchors, within)
    plain = match(truth, crowd_integral(truth), anchors[None])
    for name in ("iou", "slot", "is_ignored"):
        assert torch.equal(getattr(found, name), getattr(plain, name)), name
    assert is_best.tolist() == [[True, True, True, False, False], [False, False, False, True, False]], "ties are both"
