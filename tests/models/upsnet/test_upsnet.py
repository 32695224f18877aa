"""The model as a whole: losses, predictions, and that neither depends on the company an image keeps."""

from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import DeformConv2d

from upsnet.data.loader import InferenceInput, collate, open_dataset
from upsnet.data.targets import make_target
from upsnet.data.transforms import pad_images
from upsnet.engine.optim import weighted_total
from upsnet.models.build import build_model
from upsnet.models.inference_form import fold_norms
from upsnet.models.layers import Conv2d
from upsnet.models.upsnet.instance_head import BoxOutputs, DetectionRule
from upsnet.models.upsnet.matching import crowd_integral
from upsnet.models.upsnet.rpn import Anchors
from upsnet.ops.backend import training_format
from upsnet.ops.panoptic_fusion import reference
from upsnet.ops.roi_align import FeatureLayout
from upsnet.structures import PanopticBatch, PanopticTarget, Sample

LOSSES = {
    "loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask",
    "loss_semantic", "loss_semantic_roi", "loss_panoptic",
}  # fmt: skip


def lively(model):
    """Random weights that detect something: prediction layers far from zero."""
    torch.manual_seed(1)
    for layer in (model.instance_head.cls_score, *model.semantic_head.score, model.instance_head.mask_score):
        torch.nn.init.normal_(layer.weight, std=0.3)
    torch.nn.init.normal_(model.rpn.cls_logits.weight, std=0.1)
    return model


def one(batch: PanopticBatch, index: int) -> PanopticBatch:
    """A batch of one image at the same padding."""
    rows = (
        {f.name: getattr(batch.target, f.name)[index : index + 1] for f in fields(PanopticTarget)}
        if batch.target
        else {}
    )
    return replace(
        batch,
        images=batch.images[index : index + 1],
        image_sizes=batch.image_sizes[index : index + 1],
        network_sizes=[batch.network_sizes[index]],
        original_sizes=[batch.original_sizes[index]],
        target=PanopticTarget(**rows) if rows else None,
    )


def test_training_gives_the_eight_losses_and_a_gradient_everywhere(model, batch):
    losses = model.train()(batch)
    assert set(losses) == LOSSES
    assert all(value.isfinite() and value > 0 for value in losses.values())
    weighted_total(losses, model.loss_weights).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


def test_features_lie_in_memory_as_the_weights_do_and_losses_do_not_care(model, batch):
    found = []
    for layout in (torch.channels_last, torch.contiguous_format):
        model.train().to(memory_format=layout)
        levels = model.features(batch.images, batch.image_sizes)
        assert all(level.is_contiguous(memory_format=layout) for level in levels)
        found.append(model.loss(batch))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("capability", "device", "expected"),
    [
        ("AVX512", "cpu", torch.channels_last),
        ("AVX2", "cpu", torch.contiguous_format),
        ("AVX2", "cuda", torch.channels_last),
    ],
)
def test_the_layout_of_training_suits_the_device(monkeypatch, capability, device, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert training_format(torch.device(device)) is expected


def test_losses_of_a_batch_are_the_mean_of_its_images(make_config, dataset, batch):
    model = build_model(make_config("model.backbone.norm=gn"), dataset.categories).train()
    together = model.loss(batch)
    apart = [model.loss(one(batch, i)) for i in (0, 1)]
    for name, value in together.items():
        torch.testing.assert_close(value, (apart[0][name] + apart[1][name]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["no thing", "one thing", "only a crowd", "all void", "crowd and void"])
def test_losses_are_finite_for_every_kind_of_image(model, dataset, case):
    ids = np.ones((64, 96), dtype=np.int32)
    classes, crowd = [0], [False]
    if case != "no thing":
        ids[20:40, 30:60] = 2
        classes, crowd = [0, 4], [False, "crowd" in case]
    if "void" in case:
        ids[ids == 1] = 0
    if case == "all void":
        ids[:] = 0
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    sample = Sample(image, ids, np.array(classes), np.array(crowd), 0, case)
    losses = model.train()(collate([(sample, 1)], 3, 32))
    weighted_total(losses, model.loss_weights).backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if case != "one thing":
        assert losses["loss_mask"] == 0
        assert losses["loss_box"] == 0
    if case == "all void":
        assert losses["loss_semantic"] == 0
        assert losses["loss_panoptic"] == 0


def test_predictions_of_two_images_equal_those_of_each_alone(model, batch):
    model = lively(model).eval()
    together = model.predict(batch, with_semantic=True, with_instances=True)
    assert len(together.segment_ids[0].unique()) > 3, "the case must show something"
    for i in (0, 1):
        alone = model.predict(one(batch, i), with_semantic=True, with_instances=True)
        differing = (together.segment_ids[i] != alone.segment_ids[0]).float().mean()
        assert differing < 1e-3, "near-ties aside"
        ours, theirs = together.instances[i], alone.instances[0]
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-3)
        assert torch.equal(ours.labels, theirs.labels)
        windows = list(zip(ours.windows(), theirs.windows(), strict=True))
        assert len(windows) == ours.valid.sum() > 3
        assert sum(a[0].shape == b[0].shape for a, b in windows) >= len(windows) - 1, "near-ties aside"
        assert torch.equal(together.segment_classes[i], alone.segment_classes[0])


def test_the_contents_of_the_padding_change_nothing(model):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((50, 70, 3), (64, 96, 3))]
    images, sizes = pad_images(pictures, 32)
    dirty = images.clone()
    dirty[0, :, 50:], dirty[0, :, :, 70:] = 200, 99
    model = lively(model).eval()
    results = [model.predict(PanopticBatch(x, torch.tensor(sizes), sizes, sizes)) for x in (images, dirty)]
    for a, b in zip(results[0].segment_ids, results[1].segment_ids, strict=True):
        assert torch.equal(a, b)
    assert [tuple(m.shape) for m in results[0].segment_ids] == sizes


def test_the_fused_map_equals_the_full_volume_on_every_pixel(model, batch, monkeypatch):
    from upsnet.ops.panoptic_fusion import pipeline

    model = lively(model).eval()
    sizes = [(64, 96), (101, 143)]
    fast = model.predict(batch, sizes)
    monkeypatch.setattr(pipeline, "implementation_for", lambda x: reference)
    exact = model.predict(batch, sizes)
    for a, b, size in zip(fast.segment_ids, exact.segment_ids, sizes, strict=True):
        assert torch.equal(a, b)
        assert tuple(a.shape) == size


def test_every_pixel_has_one_segment_of_its_table(model, batch):
    output = lively(model).eval().predict(batch)
    for ids, classes in zip(output.segment_ids, output.segment_classes, strict=True):
        assert ids.min() >= 0
        assert ids.max() <= len(classes)
        assert classes.max() < 7


@pytest.mark.parametrize("method", ["unified", "official", "heuristic"])
def test_every_method_trains_and_predicts(make_config, dataset, batch, method):
    model = build_model(make_config(f"model.panoptic.method={method}"), dataset.categories)
    empty = replace(batch, target=replace(batch.target, labels=torch.zeros_like(batch.target.labels)))
    for case in (batch, empty):
        losses = model.train()(case)
        assert torch.stack(list(losses.values())).isfinite().all()
    assert model.panoptic_rule.per_class == (method == "heuristic")
    output = lively(model).eval().predict(batch, with_semantic=True)
    assert [tuple(m.shape) for m in output.segment_ids] == batch.original_sizes
    for ids, classes in zip(output.segment_ids, output.segment_classes, strict=True):
        assert ids.max() <= len(classes)


def test_the_official_normalizer_divides_by_more(make_config, dataset, batch):
    """Ignored pixels count in the divisor of two losses, and the objectness is over a fixed number of anchors."""
    options = ["model.rpn.samples=4096"]  # more than there are
    configs = [make_config(*options, f"model.loss.normalizer={name}") for name in ("labelled", "official")]
    models = [build_model(config, dataset.categories) for config in configs]
    models[1].load_state_dict(models[0].state_dict())
    void = batch.target.semantic_map.clone()
    void[:, :40] = 255
    case = replace(batch, target=replace(batch.target, semantic_map=void))
    ours, official = (model.train()(case) for model in models)
    smaller = {"loss_semantic_roi", "loss_panoptic", "loss_rpn_objectness"}
    for name in ours:
        assert (official[name] < ours[name]) if name in smaller else (official[name] == ours[name]), name


@pytest.mark.parametrize("method", ["unified", "heuristic"])
@pytest.mark.parametrize("heads", ["semantic", "instance"])
def test_one_head_alone_trains_and_predicts(make_config, dataset, batch, heads, method):
    model = build_model(make_config(f"model.heads={heads}", f"model.panoptic.method={method}"), dataset.categories)
    losses = model.train()(batch)
    weighted_total(losses, model.loss_weights).backward()
    assert set(losses) < LOSSES
    assert ("loss_semantic" in losses) == (heads == "semantic")
    assert ("loss_mask" in losses) == (heads == "instance")
    output = model.eval().predict(batch, with_semantic=True, with_instances=True)
    assert (output.semantic is not None) == (heads == "semantic")
    assert (output.instances is not None) == (heads == "instance")
    assert [tuple(m.shape) for m in output.segment_ids] == batch.original_sizes
    if heads == "semantic":
        for ids, semantic in zip(output.segment_ids, output.semantic, strict=True):
            assert torch.equal(ids, semantic + 1)


def test_deformable_head_starts_as_a_plain_convolution(make_config, dataset, batch):
    model = build_model(make_config("model.semantic.conv=deformable"), dataset.categories)
    weighted_total(model.train()(batch), model.loss_weights).backward()
    block = model.semantic_head.layers[0]
    x = torch.randn(1, 16, 9, 9)
    plain = torch.nn.functional.conv2d(x, block.conv.weight, block.conv.bias, padding=1).relu()
    torch.testing.assert_close(block(x), plain, rtol=1e-4, atol=1e-4)
    assert block.conv.offset.weight.grad.abs().max() > 0


def test_detection_lists_keep_their_rules(model, batch):
    model = lively(model).eval()
    levels = model.features(batch.images, batch.image_sizes)
    rois, valid = model.rpn.propose(model.rpn(levels), batch.image_sizes)
    assert rois.shape == (2, 30, 4)
    logits = torch.randn(2, 30, 5) * 4
    layout, deltas = FeatureLayout.of(levels, (4, 8, 16, 32)), torch.zeros(2, 30, 4, 4)
    head, outputs = model.instance_head, BoxOutputs(rois, valid, logits, deltas)
    found = {}
    for per_class in (False, True):
        rule = DetectionRule(0.3, 0.5, per_class)
        candidates = head.decode(outputs, batch.image_sizes, rule)
        found[per_class] = head.detect(candidates, rule, partial(head.mask_logits, layout))
    for detections in found.values():
        assert detections.boxes.shape == (2, 12, 4)
        assert (detections.scores[detections.valid] > 0.3).all()
        assert (detections.scores[~detections.valid] == 0).all()
        assert (detections.scores.diff(dim=1) <= 0).all()
        assert (detections.valid.int().diff(dim=1) <= 0).all(), "empty slots come last"
    assert found[True].valid.sum() >= found[False].valid.sum()


def test_the_panoptic_target_teaches_unknown_and_ignores_crowds(model):
    ids = np.ones((32, 32), dtype=np.int32)
    ids[0:16, 0:16], ids[0:16, 16:], ids[16:, 0:16], ids[16:, 16:24] = 2, 3, 4, 0
    sample = Sample(
        np.zeros((32, 32, 3), np.uint8), ids, np.array([0, 3, 4, 5]), np.array([False, False, False, True]), 0, "x"
    )
    truth = collate([(sample, 3)], 3, 32).target
    slots, keep = model.panoptic_head.sample(truth)
    assert int(keep.sum()) == 1, "70 % of two instances, rounded down"
    volume, wanted = model.panoptic_head.loss_inputs(
        torch.zeros(1, 7, 8, 8), torch.zeros(1, slots.shape[1], 28, 28), slots, keep, truth
    )
    assert volume.shape == (1, 3 + slots.shape[1] + 1, 8, 8)
    kept_slot = int(slots[keep])
    quarters = {0: wanted[0, :4, :4], 1: wanted[0, :4, 4:]}
    assert (quarters[kept_slot] == 3 + int(keep[0].nonzero())).all()
    assert (quarters[1 - kept_slot] == 3 + slots.shape[1]).all()
    assert (wanted[0, 4:, :4] == -1).all(), "crowd"
    assert (wanted[0, 4:, 4:6] == -1).all(), "void"
    assert (wanted[0, 4:, 6:] == 0).all()


def test_anchors_are_centred_on_the_cells(make_config):
    shapes = make_config("model.rpn.anchor_sizes=[[32], [64]]").model.rpn.shapes()
    anchors = Anchors(shapes, (4, 8))([(2, 3), (1, 2)])[0]
    assert [a.shape for a in anchors] == [(18, 4), (6, 4)]
    centers = (anchors[0][:, :2] + anchors[0][:, 2:]) / 2
    torch.testing.assert_close(centers[::3], torch.tensor([[2.0, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6]]))
    size = anchors[0][:3, 2:] - anchors[0][:3, :2]
    torch.testing.assert_close(size.prod(1), torch.full((3,), 1024.0))
    torch.testing.assert_close(size[:, 1] / size[:, 0], torch.tensor([0.5, 1, 2]))


def test_an_anchor_has_one_name_at_any_padding():
    anchors = Anchors([[(48, 24), (32, 32)]] * 2, (4, 8))
    (small, names), (large, more) = anchors([(2, 3), (1, 2)]), anchors([(5, 9), (3, 5)])
    known = {
        int(n): box.tolist()
        for level, part in zip(large, more, strict=True)
        for n, box in zip(part, level, strict=True)
    }
    assert len(known) == sum(len(level) for level in large)
    for level, part in zip(small, names, strict=True):
        assert all(known[int(n)] == box.tolist() for n, box in zip(part, level, strict=True))


def test_sampled_rois_put_foreground_first(model, batch):
    head, truth = model.instance_head, batch.target
    noise = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(0)) * 3
    near = truth.boxes[:, :1].repeat(1, 40, 1) + noise
    rois = head.sample(near, torch.ones(2, 40, dtype=torch.bool), truth, crowd_integral(truth))
    assert rois.boxes.shape == (2, 16, 4)
    positive = rois.labels > 0
    assert (positive.int().diff(dim=1) <= 0).all()
    assert (positive.sum(1) <= head.max_positive).all()
    assert positive.any(1).all()
    assert not positive[:, head.max_positive :].any()


def test_a_level_more_for_proposals(make_config):
    config = make_config("model.rpn.anchor_sizes=[[8], [16], [32], [64], [128]]")
    data = open_dataset(config.data, "train")
    model = build_model(config, data.categories).eval()
    output = model.predict(InferenceInput(config.data)([data[0].image]))
    assert tuple(output.segment_ids[0].shape) == (64, 96)


def test_heads_need_their_classes(config):
    from upsnet.categories import CategorySet

    stuff = CategorySet.from_json([{"id": 1, "name": "sky", "isthing": 0}], source="x")
    with pytest.raises(ValueError, match="no thing class"):
        build_model(config, stuff)


def test_targets_keep_the_seed():
    sample = Sample(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), np.int32), np.array([0]), np.array([False]), 0, "x")
    assert make_target(sample, 1, 2**60).seeds == 2**60


@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
@pytest.mark.parametrize("form", ["training", "inference", "folded"])
def test_hooks_fire_on_every_layer_with_weights_of_its_own(make_config, dataset, batch, norm, form):
    """Pruning, LoRA and profilers see a layer by its hooks; frozen norms are computed inside the convolutions."""
    config = make_config(f"model.backbone.norm={norm}", "model.semantic.conv=deformable", "model.fpn_gap=true")
    model = build_model(config, dataset.categories, pretrained=False).train(form == "training")
    if form == "folded":
        model = fold_norms(model)
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, DeformConv2d)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    fired = set()
    for name, module in layers.items():
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
    model(batch)
    assert fired == set(layers)
    assert len(layers) > 35


def test_every_convolution_of_the_backbone_applies_what_follows_it(make_config, dataset):
    for name in ("resnet18", "resnet50"):
        torch.manual_seed(0)
        ours = build_model(make_config(f"model.backbone.name={name}"), dataset.categories, pretrained=False).backbone
        convolutions = [module for module in ours.modules() if isinstance(module, nn.Conv2d)]
        assert all(type(conv) is Conv2d for conv in convolutions)
        assert {id(p) for conv in convolutions for p in conv.parameters()} <= {id(p) for p in ours.parameters()}


def test_ranks_do_not_tie_under_autocast(model, batch):
    """In bfloat16 logits around 4 have steps of 1/32."""
    model = lively(model).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        levels = model.features(batch.images, batch.image_sizes)
        assert levels[0].dtype == torch.bfloat16
        proposed = model.rpn(levels[: len(model.rpn.anchors.strides)])
        rois, valid = model.rpn.propose(proposed, batch.image_sizes)
        logits = model.instance_head.box_outputs(FeatureLayout.of(levels[:4], (4, 8, 16, 32)), rois, valid).logits
    ranks, coarse = proposed.ranks[0], proposed.logits[0]
    assert ranks.dtype == torch.float32
    torch.testing.assert_close(ranks, coarse, rtol=1e-2, atol=1e-1)
    assert len(coarse.unique()) < 0.5 * coarse.numel(), "the case must show something"
    assert len(ranks.unique()) > 0.95 * ranks.numel()
    assert len(logits.unique()) > 0.95 * logits.numel()
    plain = model.rpn([level.float() for level in levels[: len(model.rpn.anchors.strides)]])
    assert all(torch.equal(a, b) for a, b in zip(plain.ranks, plain.logits, strict=True))
