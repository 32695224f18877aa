"""Panoptic-DeepLab as a whole: training, prediction, padding, precision, and the engine around it."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.panoptic_deeplab.deeplab import make_config
from tests.models.upsnet.test_training_step import NoWaiting
from upsnet import PanopticPredictor, export_graph
from upsnet.categories import CategorySet
from upsnet.config import list_configs, load_config
from upsnet.data.loader import collate
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.engine import train as training
from upsnet.engine.distributed import replace_batch_norms
from upsnet.engine.optim import clip_gradient, require_schedule, weighted_total
from upsnet.engine.score import evaluate_checkpoint
from upsnet.models import checkpoint as checkpoints
from upsnet.models.build import build_model, model_limits
from upsnet.models.inference_form import fold_norms
from upsnet.models.recording import with_slots_padded
from upsnet.structures import PanopticBatch

NAMES = {"loss_semantic", "loss_center", "loss_offset"}


def build(*overrides):
    torch.manual_seed(0)
    return build_model(make_config(*overrides), CATEGORIES, pretrained=False)


def lively(model):
    """An untrained model in evaluation mode whose maps have many centres and classes."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.3)
    for head, std in ((model.semantic_head, 0.3), (model.center_head, 0.2), (model.offset_head, 0.5)):
        nn.init.normal_(head.predictor.weight, std=std)
    return model.eval()


def shapes_batch(model, count=2, size=(64, 96), divisor=32, seed=0):
    data = Shapes(count, size, seed)
    return collate([(data[i], i) for i in range(count)], CATEGORIES.num_stuff, divisor, model.input_form)


@pytest.mark.parametrize("align_corners", [False, True])
def test_training_gives_three_losses_and_a_gradient_everywhere(align_corners):
    model = build(f"model.align_corners={align_corners}").train()
    batch = shapes_batch(model)
    assert batch.images.shape[2:] == ((65, 97) if align_corners else (64, 96))
    losses = model.loss(batch)
    assert set(losses) == set(model.loss_weights) == NAMES
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    weighted_total(losses, model.loss_weights).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.any() for name, parameter in model.named_parameters() if "predictor" in name)


def test_no_part_of_the_step_waits_for_the_host():
    model = build().train()
    batch = shapes_batch(model)
    with NoWaiting():
        weighted_total(model.loss(batch), model.loss_weights).backward()
        model.eval().raw(batch.images, batch.image_sizes)


def test_empty_slots_change_no_loss():
    """Recorded steps pad the slots, so that few graphs are needed."""
    model = build().train()
    batch = shapes_batch(model)
    expected = model.loss(batch)
    for name, value in model.loss(with_slots_padded(batch)).items():
        torch.testing.assert_close(value, expected[name])


def test_losses_of_a_batch_are_the_mean_of_its_images():
    model = build("model.norm=gn", "model.backbone.norm=gn").train()
    data = Shapes(3, (64, 96), 0)
    items = [(data[i], i) for i in range(3)]
    whole = model.loss(collate(items, CATEGORIES.num_stuff, 32))
    parts = [model.loss(collate([item], CATEGORIES.num_stuff, 32)) for item in items]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["void", "stuff", "crowds"])
def test_losses_are_finite_for_every_kind_of_image(case):
    model = build().train()
    data = Shapes(2, (64, 96), 0)
    samples = [data[0], data[1]]
    if case == "void":
        samples[0].segment_map[:] = 0
    elif case == "stuff":
        samples[0].segment_map[samples[0].segment_map > 1] = 1
    else:
        samples[0].is_crowd[samples[0].classes >= CATEGORIES.num_stuff] = True
    batch = collate([(sample, i) for i, sample in enumerate(samples)], CATEGORIES.num_stuff, 32)
    losses = model.loss(batch)
    weighted_total(losses, model.loss_weights).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_losses_fall():
    model = build("model.loss.offset=0.1").train()
    batch = shapes_batch(model, count=4, size=(64, 64))
    optimizer, history = torch.optim.AdamW(model.parameters(), lr=0.02), []
    for _ in range(18):
        losses = model.loss(batch)
        optimizer.zero_grad()
        weighted_total(losses, model.loss_weights).backward()
        clip_gradient(model, 5)
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in NAMES:
        assert history[-1][name] < 0.7 * history[0][name], name


@pytest.mark.parametrize("align_corners", [False, True])
def test_predictions_of_two_images_equal_those_of_each_alone(align_corners):
    model = lively(build(f"model.align_corners={align_corners}"))
    images = [Shapes(1, size, 3)[0] for size in ((64, 96), (50, 70))]
    batch = collate([(image, 0) for image in images], CATEGORIES.num_stuff, 32, model.input_form)
    whole = model.predict(batch, with_semantic=True, with_instances=True)
    assert len(whole.segment_ids[0].unique()) > 3
    for row in range(2):
        one = PanopticBatch(
            batch.images[row : row + 1], batch.image_sizes[row : row + 1], batch.network_sizes[row : row + 1],
            batch.original_sizes[row : row + 1],
        )  # fmt: skip
        alone = model.predict(one, with_semantic=True, with_instances=True)
        assert (whole.segment_ids[row] != alone.segment_ids[0]).float().mean() < 1e-3
        assert (whole.semantic[row] != alone.semantic[0]).float().mean() < 1e-3
        assert torch.equal(whole.segment_classes[row], alone.segment_classes[0])
        torch.testing.assert_close(whole.segment_scores[row], alone.segment_scores[0], rtol=1e-3, atol=1e-3)
        assert whole.segment_ids[row].shape == images[row].size


def test_the_contents_of_the_padding_change_nothing():
    model = lively(build())
    batch = shapes_batch(model, count=1, size=(50, 70))
    noisy = batch.images.clone()
    noisy[:, :, 50:], noisy[:, :, :, 70:] = 200, 77
    raws = [model.raw(images, batch.image_sizes) for images in (batch.images, noisy)]
    assert all(torch.equal(a, b) for a, b in zip(raws[0][:3], raws[1][:3], strict=True))


def test_segments_and_instances_tell_the_same():
    model = lively(build("model.panoptic.stuff_area_limit=40"))
    batch = shapes_batch(model, count=2, size=(60, 90))
    output = model.predict(batch, [(60, 90), (120, 45)], with_semantic=True, with_instances=True)
    num_stuff, slots = CATEGORIES.num_stuff, model.grouping.top_k
    for row, size in enumerate([(60, 90), (120, 45)]):
        ids, found = output.segment_ids[row], output.instances[row]
        assert ids.shape == output.semantic[row].shape == size
        assert output.segment_classes.shape == output.segment_scores.shape == (2, num_stuff + slots)
        present = sorted(set(ids.unique().tolist()) - {0})
        assert torch.equal(
            found.valid.nonzero()[:, 0] + num_stuff + 1, torch.tensor([i for i in present if i > num_stuff])
        )
        assert (found.scores[found.valid] == output.segment_scores[row, num_stuff:][found.valid]).all()
        for number, (mask, top, left) in zip((i for i in present if i > num_stuff), found.windows(), strict=True):
            whole = torch.zeros(size, dtype=torch.bool)
            whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
            assert torch.equal(whole, ids == number)
            assert output.segment_classes[row, number - 1] >= num_stuff
        for number in (i for i in present if i <= num_stuff):
            assert (ids == number).sum() >= 40
            assert (output.semantic[row][ids == number] == number - 1).all()


def test_losses_and_predictions_of_sixteen_bits_are_near_those_of_32():
    model = build().train()
    batch = shapes_batch(model)
    expected = model.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.loss(batch)
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.02)
    model = lively(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = model.raw(batch.images, batch.image_sizes)
        output = model.fuse(raw, batch.network_sizes, batch.original_sizes)
    assert {x.dtype for x in raw[:3]} == {torch.float32}
    assert output.segment_scores.dtype == torch.float32


def test_norms_can_be_of_groups_and_batch_norms_have_the_configured_momentum():
    groups = build("model.norm=gn", "model.backbone.norm=gn")
    assert not [m for m in groups.modules() if isinstance(m, nn.BatchNorm2d)]
    batch = shapes_batch(groups, count=1, size=(32, 32))
    assert all(loss.isfinite() for loss in groups.train().loss(batch).values()), "of one image of one cell, too"
    model = build("model.norm_momentum=0.03")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.03}
    names = set(model.state_dict())
    replace_batch_norms(model)
    synchronized = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(synchronized) == len(norms)
    assert {norm.momentum for norm in synchronized} == {0.03}
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("form", ["training", "inference", "folded"])
def test_hooks_fire_on_every_layer_with_weights_of_its_own(form):
    model = build().train(form == "training")
    batch = shapes_batch(model)
    expected = model.eval().raw(batch.images, batch.image_sizes) if form == "folded" else None
    if form == "folded":
        model = fold_norms(model)
        assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        found = model.raw(batch.images, batch.image_sizes)
        for ours, theirs in zip(found[:3], expected[:3], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    fired = set()
    for name, module in layers.items():
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
    model(batch)
    assert fired == set(layers)
    assert len(layers) > 35


def test_both_kinds_of_classes_are_needed():
    for isthing, missing in ((0, "thing"), (1, "stuff")):
        categories = CategorySet.from_json([{"id": 1, "name": "x", "isthing": isthing}], source="x")
        with pytest.raises(ValueError, match=rf"no {missing} class, expected one; use model.architecture=upsnet"):
            build_model(make_config(), categories)


def test_a_batch_without_target_is_refused():
    model = build()
    batch = shapes_batch(model)
    with pytest.raises(ValueError, match="without target"):
        model.loss(PanopticBatch(batch.images, batch.image_sizes, batch.network_sizes, batch.original_sizes))


@pytest.mark.parametrize("architecture", ["upsnet", "panoptic_deeplab"])
def test_limits_and_remedies_name_keys_of_the_architecture(architecture, config):
    run = config if architecture == "upsnet" else make_config()
    model = build_model(run, CATEGORIES, pretrained=False)
    assert model_limits(run.model).max_detections == run.model.instance.max_detections
    for override in (*model.memory_options, *(f"{key}=gn" for key in model.norm_keys)):
        values = run.dump()["model"]
        key = override.partition("=")[0].split(".")[1:]
        for part in key:
            assert part in values, override
            values = values[part]


def test_it_trains_resumes_evaluates_predicts_and_exports(tmp_path):
    options = ("train.evaluate_every=3", "train.checkpoint_every=3", "train.iterations=6", "model.align_corners=true")
    whole = training.train(make_config(*options), tmp_path / "whole")
    assert all(whole.metrics[name] is not None for name in ("panoptic", "semantic", "instance_ap"))
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert any(row.keys() >= NAMES for row in rows)

    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "last-00000003.pt", tmp_path / "resumed" / "last.pt")
    training.train(make_config(*options), tmp_path / "resumed", resume=True)
    ends = [checkpoints.load_checkpoint(tmp_path / name / "last.pt").weights for name in ("whole", "resumed")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0]), "dropout and all"

    checkpoint = checkpoints.load_checkpoint(tmp_path / "whole" / "model.pt")
    model, path = lively(checkpoint.build()), tmp_path / "lively.pt"
    checkpoints.save_checkpoint(path, checkpoints.Checkpoint(checkpoint.config, CATEGORIES, model.state_dict()))
    metrics = evaluate_checkpoint(path, tmp_path / "evaluation")
    assert metrics["semantic"]["miou"] > 0
    assert metrics["instance_ap"]["ap"] is not None
    assert metrics["panoptic"]["per_class"] is not None
    image = Shapes(1, (50, 70))[0].image
    prediction = PanopticPredictor.from_checkpoint(path, "cpu")(image)
    assert any(segment.is_thing for segment in prediction.segments)
    agreement = export_graph(path, tmp_path / "fixed.onnx", size=(65, 97))
    assert agreement.disagreement == 0
    assert agreement.instances > 10
    exported = PanopticPredictor.from_checkpoint(tmp_path / "fixed.onnx", "cpu")(image)
    np.testing.assert_array_equal(exported.segment_ids, prediction.segment_ids)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("model.align_corners=true",), ("model.aspp.pool_window=[64, 96]",)])
@pytest.mark.parametrize("name", ["any.pt2", "any.onnx", "fixed.pt2", "fixed.onnx"])
def test_every_form_is_exported(name, overrides, tmp_path):
    """The default run exports one of them."""
    model, path = lively(build(*overrides)), tmp_path / "model.pt"
    checkpoints.save_checkpoint(path, checkpoints.Checkpoint(make_config(*overrides), CATEGORIES, model.state_dict()))
    size = None if name.startswith("any") else model.padded_size((64, 96))
    agreement = export_graph(path, tmp_path / name, size=size)
    assert agreement.disagreement < 1e-4
    assert agreement.instances > 10


RECIPES = [name for name in list_configs() if "deeplab" in name]


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_build_and_train(name):
    """At a quarter of the width, which changes no structure."""
    config = load_config(name, ["model.backbone.width=16", "train.batch_size=2"])
    data = Shapes(2, (64, 64), 0)
    model = build_model(config, CATEGORIES, pretrained=False).train()
    batch = collate([(data[i], i) for i in range(2)], CATEGORIES.num_stuff, 32, model.input_form)
    assert all(loss.isfinite() for loss in model.loss(batch).values())
    require_schedule(config.train)
