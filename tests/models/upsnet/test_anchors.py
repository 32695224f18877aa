"""How well the anchors fit boxes, without laying them out."""

import torch

from upsnet.models.upsnet.build import build_anchors
from upsnet.ops.boxes import pairwise_iou


def test_the_best_iou_is_that_of_the_whole_grid(make_config):
    generator = torch.Generator().manual_seed(0)
    for options, size in (([], (70, 101)), (["model.rpn.anchor_offset=0"], (64, 96)), ([], (3, 90)), ([], (1, 1))):
        model = make_config(*options).model
        anchors = build_anchors(model)
        low = torch.rand(60, 2, generator=generator) * torch.tensor(size[::-1])
        high = low + (torch.rand(60, 2, generator=generator) * 3.5).exp()
        boxes = torch.cat([low, high], 1)
        grid = torch.cat(anchors([(40 // s + 30, 40 // s + 30) for s in anchors.strides])[0])
        center = (grid[:, :2] + grid[:, 2:]) / 2
        inside = (center < torch.tensor(size[::-1])).all(-1)
        whole = pairwise_iou(boxes[None], grid[inside][None])[0]
        expected = whole.amax(1) if inside.any() else torch.zeros(60)
        torch.testing.assert_close(anchors.best_iou(boxes, size), expected)
