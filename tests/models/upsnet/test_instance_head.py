"""The mask branch of the instance head."""

import torch
from torch.nn import functional as F

from upsnet.models.build import build_model
from upsnet.ops.roi_align import FeatureLayout


def test_masks_are_the_own_channel_of_the_score_convolution(model):
    torch.manual_seed(0)
    head, levels = model.instance_head, [torch.randn(2, 16, 32 // 2**n, 48 // 2**n) for n in range(4)]
    boxes = torch.tensor([[[3.0, 4, 60, 50], [10, 10, 30, 25], [0, 0, 90, 60]]] * 2)
    labels = torch.tensor([[1, 4, 2], [3, 3, 0]])
    torch.nn.init.normal_(head.mask_score.bias)
    layout = FeatureLayout.of(levels, (4, 8, 16, 32))
    seen = []
    head.mask_deconv.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        found = head.mask_logits(layout, boxes, labels)
    every = F.conv2d(seen[0].relu(), head.mask_score.weight, head.mask_score.bias).unflatten(0, (2, 3))
    own = (labels - 1).clamp(min=0)
    expected = torch.stack([every[i, r, own[i, r]] for i in range(2) for r in range(3)]).view_as(found)
    torch.testing.assert_close(found, expected)


def test_masks_made_twice_have_the_gradients_of_masks_made_once(model):
    head, levels = model.instance_head, [torch.randn(2, 16, 32 // 2**n, 48 // 2**n) for n in range(4)]
    layout = FeatureLayout.of(levels, (4, 8, 16, 32))
    boxes, labels = torch.tensor([[[3.0, 4, 60, 50], [10, 10, 30, 25]]] * 2), torch.tensor([[1, 4], [3, 0]])
    parameters = [p for n, p in head.named_parameters() if n.startswith("mask")]
    results = []
    for mode in (True, False):  # only training makes them twice
        masks = head.train(mode).mask_logits(layout, boxes, labels)
        results.append((masks, *torch.autograd.grad(masks.square().sum(), parameters)))
    for twice, once in zip(*results, strict=True):
        torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-6)


def test_fewer_mask_slots_leave_the_other_losses_alone(make_config, dataset, batch):
    models = [build_model(make_config(*o), dataset.categories).train() for o in ([], ["model.instance.mask_slots=1"])]
    models[1].load_state_dict(models[0].state_dict())
    seen = []
    models[1].instance_head.mask_deconv.register_forward_hook(lambda *call: seen.append(len(call[-1])))
    with torch.no_grad():
        every, few = (m.loss(batch) for m in models)
    assert seen == [2 * (1 + batch.target.labels.shape[1])], "a RoI and the true boxes, of two images"
    assert few["loss_mask"] != every["loss_mask"]
    for name in every.keys() - {"loss_mask"}:
        torch.testing.assert_close(few[name], every[name])
