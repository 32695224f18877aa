"""What an evaluation does with the instances of an image."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from upsnet.data.shapes import CATEGORIES
from upsnet.engine.evaluate import _add_instances
from upsnet.metrics.instance_ap import InstanceAP
from upsnet.ops.mask_paste import inside_boxes, paste_in_windows, paste_masks
from upsnet.structures import Instances, Sample


def status(name):
    """A number of megabytes from the status of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


@pytest.fixture
def peak_memory():
    """A function of nothing: megabytes at the peak since this fixture began, above those at its begin."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system does not reset the peak of a process's memory")
    before = status("VmRSS")
    return lambda: status("VmHWM") - before


def instances(boxes, masks, size):
    count = len(boxes)
    scores, labels = torch.linspace(1, 0.1, count), torch.ones(count, dtype=torch.long)
    valid = torch.ones(count, dtype=torch.bool)
    return Instances(scores, labels, valid, partial(paste_in_windows, masks, boxes, valid, size))


def test_instances_have_the_masks_that_pasting_over_the_whole_image_gives():
    generator, size = torch.Generator().manual_seed(0), (90, 120)
    low = torch.rand(60, 2, generator=generator) * torch.tensor([260.0, 200.0]) - 20
    boxes = torch.cat([low, low + torch.rand(60, 2, generator=generator) ** 3 * 300], 1)
    masks = torch.randn(60, 14, 14, generator=generator)
    found = instances(boxes / 2, masks, size)
    truth = Sample(np.zeros((0, 0, 3), np.uint8), np.ones(size, np.int32), np.array([3]), np.zeros(1, bool), 1, "a")
    meter = InstanceAP(CATEGORIES)
    _add_instances(meter, truth, found)
    encoded = [row["segmentation"] for row in meter.rows[1].detections]
    x, y = (torch.arange(side) + 0.5 for side in size[::-1])
    whole = inside_boxes(boxes / 2, x, y) & (paste_masks(masks, boxes / 2, x, y) > 0)
    assert 20 < whole.flatten(1).any(1).sum() < 60, "some boxes hold no pixel centre"
    for ours, theirs in zip(encoded, whole, strict=True):
        assert ours == rle.encode(np.asfortranarray(theirs.numpy(), dtype=np.uint8))


def test_many_instances_of_a_large_image_take_little_memory(peak_memory):
    """A stack of 100 masks of 12 megapixels takes gigabytes."""
    size, generator = (3000, 4000), torch.Generator().manual_seed(0)
    corners = torch.rand(100, 2, generator=generator) * torch.tensor([3000.0, 2000.0])
    boxes = torch.cat([corners, corners + torch.rand(100, 2, generator=generator) * 400 + 1], 1)
    boxes[:3] = torch.tensor([0.0, 0, size[1], size[0]])
    found = instances(boxes, torch.randn(100, 28, 28, generator=generator), size)
    segment_map = np.zeros(size, dtype=np.int32)
    segment_map[1000:2000, 1000:2000] = 1
    truth = Sample(np.zeros((0, 0, 3), np.uint8), segment_map, np.array([3]), np.zeros(1, bool), 1, "a.jpg")
    meter = InstanceAP(CATEGORIES)
    _add_instances(meter, truth, found)
    assert peak_memory() < 500
    assert len(meter.rows[1].detections) == 100
    areas = [rle.area(row["segmentation"]) for row in meter.rows[1].detections]
    assert max(areas) > 4e6
