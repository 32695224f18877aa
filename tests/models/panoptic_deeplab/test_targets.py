"""Targets of Panoptic-DeepLab: by hand, against a loop over the instances, and what padding must not change."""

import numpy as np
import pytest
import torch

from tests.models.upsnet.test_training_step import NoWaiting
from upsnet.categories import IGNORE_LABEL
from upsnet.config.panoptic_deeplab import TargetConfig
from upsnet.data.loader import collate
from upsnet.models.panoptic_deeplab.targets import draw_peaks, make_targets
from upsnet.models.recording import with_slots_padded
from upsnet.structures import Sample

NUM_STUFF = 2
THING = 3


def sample_of(segment_map, classes, crowds=()):
    """A sample of segments 1, 2, ... with these classes."""
    ids = np.array(segment_map, dtype=np.int32)
    is_crowd = np.isin(np.arange(1, len(classes) + 1), list(crowds))
    return Sample(np.zeros((*ids.shape, 3), np.uint8), ids, np.array(classes, dtype=np.int64), is_crowd, 0, "")


def batch_of(*samples):
    return collate([(sample, seed) for seed, sample in enumerate(samples)], NUM_STUFF, 32)


def targets_of(*samples, **options):
    return make_targets(batch_of(*samples).target, TargetConfig(**options))


def rectangles(size, *boxes):
    """A segment map on stuff: segment 1 is stuff, then one segment for each (top, left, bottom, right)."""
    ids = np.ones(size, dtype=np.int32)
    for number, (top, left, bottom, right) in enumerate(boxes, 2):
        ids[top:bottom, left:right] = number
    return ids


def test_a_rectangle_by_hand():
    """Rows 4 to 6, columns 10 to 13: the centre of mass is (5, 11.5), whose nearest even column is 12."""
    found = targets_of(sample_of(rectangles((20, 30), (4, 10, 7, 14)), [0, THING]), sigma=2, small_area=13)
    assert found.centers[0].tolist() == [[5, 11.5]]
    heat = found.heat[0, 0]
    assert heat[5, 12] == heat.max() == 1
    assert heat[5, 10].item() == pytest.approx(np.exp(-4 / 8))
    assert heat[4, 13].item() == pytest.approx(np.exp(-2 / 8))
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[4:7, 10:14] = True
    assert torch.equal(found.offset_weight[0, 0], inside)
    assert found.offset[0, :, 4, 10].tolist() == [1, 1.5]
    assert found.offset[0, :, 6, 13].tolist() == [-1, -1.5]
    assert not found.offset[0, :, ~inside].any()
    assert torch.equal(found.semantic_weight[0], torch.where(inside, 3.0, 1.0))
    assert torch.equal(found.heat_weight[0, 0].nonzero().amax(0), torch.tensor([19, 29])), "padding is void"
    assert found.heat_weight.sum() == 20 * 30


def test_a_gaussian_ends_at_three_sigma_and_one_and_at_the_border():
    centers, valid = torch.tensor([[[3, 40], [50, 50]]]), torch.tensor([[True, False]])
    heat = draw_peaks(centers, valid, 2.0, (64, 64))[0]
    expected = torch.zeros(64, 64)
    y, x = torch.arange(64)[:, None] - 3, torch.arange(64) - 40
    expected = torch.exp(-(y**2 + x**2) / 8).where((y.abs() <= 7) & (x.abs() <= 7), 0)
    torch.testing.assert_close(heat, expected)


def test_the_pixel_of_a_centre_is_the_nearest_or_truncated():
    sample = sample_of(rectangles((20, 30), (4, 10, 6, 13)), [0, THING])  # rows 4 and 5, columns 10 to 12
    sample.segment_map[5, 12] = 1  # the centre of mass is (4.4, 10.8)
    pixels = {}
    for kind in ("nearest", "truncated"):
        heat = targets_of(sample, center=kind).heat[0, 0]
        pixels[kind] = divmod(int(heat.argmax()), heat.shape[1])
    assert pixels == {"nearest": (4, 11), "truncated": (4, 10)}


def test_crowds_teach_their_class_alone():
    sample = sample_of(rectangles((32, 64), (2, 2, 10, 10), (2, 40, 10, 60)), [0, THING, THING], crowds=[3])
    found = targets_of(sample)
    crowd = torch.from_numpy(sample.segment_map == 3)
    assert not found.heat_weight[0, 0, crowd].any()
    assert not found.offset_weight[0, 0, crowd].any()
    assert not found.offset[0, :, crowd].any()
    assert (found.semantic_weight[0, crowd] == 1).all()
    assert found.has_center.tolist() == [[True, False]]
    assert found.heat[0, 0, 5, 50] == 0
    original = targets_of(sample, crowd_peaks=True)
    assert original.has_center.tolist() == [[True, True]]
    assert original.heat[0, 0].max() == original.heat[0, 0, 6, 50] == 1
    assert (original.semantic_weight[0, crowd] == 3).all()
    assert original.offset[0, :, crowd].any()
    assert torch.equal(original.heat_weight, found.heat_weight)
    assert torch.equal(original.offset_weight, found.offset_weight)


def test_void_has_no_part_in_the_heat():
    ids = rectangles((32, 32), (0, 0, 5, 5))
    ids[20:] = 0
    found = targets_of(sample_of(ids, [0, THING]))
    assert found.heat_weight[0, 0, :20].all()
    assert not found.heat_weight[0, 0, 20:].any()


def test_the_limit_of_small_instances_is_exclusive():
    sample = sample_of(rectangles((32, 64), (0, 0, 4, 5), (10, 0, 13, 6)), [0, THING, THING])  # 20 and 18 pixels
    found = targets_of(sample, small_area=20, small_weight=5)
    ids = torch.from_numpy(sample.segment_map)
    assert torch.equal(found.semantic_weight[0], torch.where(ids == 3, 5.0, 1.0))


def by_instance(sample, sigma, small_area):
    """The same, instance by instance: heat, offsets, semantic weights."""
    height, width = sample.segment_map.shape
    y, x = np.mgrid[:height, :width]
    heat, offset, weight = np.zeros((height, width)), np.zeros((2, height, width)), np.ones((height, width))
    for number, (channel, is_crowd) in enumerate(zip(sample.classes, sample.is_crowd, strict=True), 1):
        mask = sample.segment_map == number
        if channel < NUM_STUFF or is_crowd or not mask.any():
            continue
        center = y[mask].mean(), x[mask].mean()
        offset[:, mask] = center[0] - y[mask], center[1] - x[mask]
        weight[mask] = 3 if mask.sum() < small_area else 1
        dy, dx = y - np.rint(center[0]), x - np.rint(center[1])
        bump = np.exp(-(dy**2 + dx**2) / (2 * sigma**2))
        near = (np.abs(dy) <= int(3 * sigma + 1)) & (np.abs(dx) <= int(3 * sigma + 1))
        heat = np.maximum(heat, bump * near)
    return heat, offset, weight


def random_sample(seed, size):
    """Many instances in pieces, crowds, void, and segments without pixels."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 25))
    ids = rng.integers(0, count + 1, (-(-size[0] // 4), -(-size[1] // 4))).repeat(4, 0).repeat(4, 1)
    classes = rng.integers(0, NUM_STUFF + 3, count)
    crowds = np.flatnonzero(rng.random(count) < 0.2) + 1
    return sample_of(ids[: size[0], : size[1]], classes, crowds)


@pytest.mark.parametrize("sigma", [1.5, 4.0])
def test_a_batch_equals_a_loop_over_the_instances_of_each_image(sigma):
    samples = [random_sample(seed, size) for seed, size in enumerate([(40, 60), (64, 32), (20, 64)])]
    samples.append(sample_of(np.zeros((9, 9)), []))
    found = targets_of(*samples, sigma=sigma, small_area=150)
    for row, sample in enumerate(samples):
        height, width = sample.size
        heat, offset, weight = by_instance(sample, sigma, 150)
        part = (row, slice(None), slice(height), slice(width))
        np.testing.assert_allclose(found.heat[part][0], heat, atol=1e-6)
        np.testing.assert_allclose(found.offset[part], offset, atol=1e-5)
        np.testing.assert_array_equal(found.semantic_weight[row, :height, :width], weight)


def test_padding_and_empty_slots_change_nothing():
    sample = random_sample(3, (30, 50))
    alone, wide = batch_of(sample), batch_of(sample, sample_of(np.ones((90, 100)), [0]))
    assert wide.target.instance_map.shape[1:] != alone.target.instance_map.shape[1:]
    config = TargetConfig(sigma=2)
    expected = make_targets(alone.target, config)
    for batch in (wide, with_slots_padded(alone)):
        found = make_targets(batch.target, config)
        for name in ("heat", "offset", "semantic_weight", "heat_weight", "offset_weight"):
            ours, theirs = getattr(found, name)[0, ..., :30, :50], getattr(expected, name)[0, ..., :30, :50]
            assert torch.equal(ours, theirs), name
        assert not found.heat_weight[0, ..., 30:, :].any()
        assert not found.offset_weight[0, ..., 30:, :].any()


def test_nothing_waits_for_the_host():
    truth = batch_of(random_sample(1, (30, 50)), random_sample(2, (20, 64))).target
    with NoWaiting():
        found = make_targets(truth, TargetConfig())
    assert found.has_center.any()
    assert (truth.semantic_map == IGNORE_LABEL).any()
