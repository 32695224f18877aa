"""Every stored output of the original program, on its weights: ours gives its numbers."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models.panoptic_deeplab.original import (
    FOLDER,
    OVERRIDES,
    _recipe_state,
    check_statistics,
    config_name,
    files,
    original_model,
    original_state,
    statistics,
)
from upsnet.config.panoptic_deeplab import TargetConfig
from upsnet.data.targets import make_target
from upsnet.models.panoptic_deeplab.aspp import ImageDropout
from upsnet.models.panoptic_deeplab.decoder import upsample
from upsnet.models.panoptic_deeplab.losses import center_loss, hard_pixel_loss, offset_loss
from upsnet.models.panoptic_deeplab.model import STRIDE
from upsnet.models.panoptic_deeplab.targets import make_targets
from upsnet.models.pretrained.formats import from_panoptic_deeplab
from upsnet.ops.instance_grouping.options import GroupingOptions
from upsnet.ops.instance_grouping.pipeline import fuse
from upsnet.structures import PanopticBatch, PanopticTarget, Sample, map_tensors

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="UPSNET_REFERENCE names no runs of Panoptic-DeepLab"),
]

NUM_CLASSES = 19
IGNORE = 255
PADDING = (123, 116, 103)
NAMES = ("semantic", "center", "offset")


def load(path):
    return dict(np.load(path))


def channels_of(thing_list):
    """Our channel of each class of the program: stuff first, then things."""
    classes = range(max(NUM_CLASSES, int(max(thing_list)) + 1))
    order = sorted(classes, key=lambda c: (c in thing_list, c))
    table = np.full(IGNORE + 1, IGNORE)
    table[order] = np.arange(len(order))
    return table


def truth_of(panoptic_id, segments, thing_list):
    """The ground truth of an image as our loader gives it; the pixels of crowds of stuff; S."""
    table, ids = channels_of(thing_list), np.zeros(panoptic_id.shape, np.int32)
    for number, (segment, _, _) in enumerate(segments, 1):
        ids[panoptic_id == segment] = number
    channels = np.array([table[category] for _, category, _ in segments], dtype=np.int64)
    is_crowd = np.array([bool(crowd) for _, _, crowd in segments])
    num_stuff = int((table < IGNORE).sum() - len(thing_list))
    image = np.zeros((*ids.shape, 3), np.uint8)
    truth = make_target(Sample(image, ids, channels, is_crowd, 0, ""), num_stuff, 0)
    stuff_crowd = np.isin(ids, 1 + np.flatnonzero(is_crowd & (channels < num_stuff)))
    return truth, stuff_crowd, num_stuff


def original_targets(ref):
    return TargetConfig(
        sigma=float(ref["sigma"]), small_area=int(ref["small_instance_area"]),
        small_weight=float(ref["small_instance_weight"]), center="truncated", crowd_peaks=True,
    )  # fmt: skip


@pytest.mark.parametrize("path", files("target_case"), ids=lambda path: path.stem)
def test_targets(path):
    ref = load(path)
    segments = list(zip(ref["seg_id"], ref["seg_category"], ref["seg_iscrowd"], strict=True))
    truth, stuff_crowd, num_stuff = truth_of(ref["panoptic_id"], segments, ref["thing_list"])
    truth = map_tensors(truth, lambda tensor: tensor[None])
    table = channels_of(ref["thing_list"])
    table[int(ref["ignore_label"])] = IGNORE
    crowd = torch.cat([torch.tensor([False]), truth.is_crowd[0]])[truth.instance_map[0].long()]
    semantic = truth.semantic_map[0].numpy().copy()
    if ref["ignore_crowd_in_semantic"]:  # no config of the program sets it, and we have no such key
        semantic[crowd.numpy() | stuff_crowd] = IGNORE
    found = make_targets(truth, original_targets(ref))
    np.testing.assert_array_equal(semantic, table[ref["semantic"]])
    np.testing.assert_array_equal(truth.instance_map[0] > 0, ref["foreground"])
    np.testing.assert_array_equal(found.semantic_weight[0], ref["semantic_weights"])
    np.testing.assert_allclose(found.heat[0], ref["center"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.offset[0], ref["offset"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.centers[0][found.has_center[0]], ref["center_points"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(found.heat_weight[0, 0].numpy() & ~stuff_crowd, ref["center_weights"])
    offset_weight = found.offset_weight[0, 0].numpy()
    if not ref["ignore_stuff_in_offset"]:  # no config of the program does
        offset_weight = offset_weight | ((truth.semantic_map[0].numpy() < num_stuff) & ~stuff_crowd)
    np.testing.assert_array_equal(offset_weight, ref["offset_weights"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", files("loss_case"), ids=lambda path: path.stem)
def test_losses(path, dtype):
    ref = load(path)
    assert ref["ignore_label"] == IGNORE
    logits = ref["logits_int8"] * ref["logits_scale"]
    maps = [torch.from_numpy(x).to(dtype).requires_grad_() for x in (logits, ref["center"], ref["offset"])]
    weight = torch.from_numpy(ref["semantic_weights"]).to(dtype) if ref["semantic_weights"].size else None
    keep_center, keep_offset = (torch.from_numpy(ref[f"{name}_weights"])[:, None] > 0 for name in NAMES[1:])
    losses = [
        hard_pixel_loss(
            maps[0], torch.from_numpy(ref["target_semantic"]), weight, float(ref["top_k_percent"]), over_batch=True
        ),
        center_loss(maps[1], torch.from_numpy(ref["target_center"]).to(dtype), keep_center, over_batch=True),
        offset_loss(maps[2], torch.from_numpy(ref["target_offset"]).to(dtype), keep_offset, over_batch=True),
    ]
    losses = [loss * float(ref[f"weight_{name}"]) for name, loss in zip(NAMES, losses, strict=True)]
    end, tolerance = ("", 1e-5) if dtype == torch.float32 else ("_f64", 1e-6)  # inputs are float32
    total = sum(losses)
    for name, loss in zip((*NAMES, "total"), (*losses, total), strict=True):
        np.testing.assert_allclose(loss.item(), ref[f"loss__{name}{end}"], rtol=tolerance, err_msg=name)
    for name, gradient in zip(NAMES, torch.autograd.grad(total, maps), strict=True):
        norm = gradient.double().norm().item()
        np.testing.assert_allclose(norm, ref[f"grad_norm__{name}{end}"], rtol=tolerance, err_msg=name)
        expected = ref[f"grad_stats__{name}"]
        np.testing.assert_allclose(statistics(gradient), expected, rtol=1e-4, atol=1e-5 * norm + 1e-30, err_msg=name)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name of a configuration -> the model and the report of the importer, made once for all tests."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = original_model(name, tmp_path_factory.mktemp("original"))
        return made[name]

    yield get
    _recipe_state.cache_clear()


def record_stages(model):
    """The outputs of the stages of the model, by the names in the files, filled at each forward pass."""
    stages = {}

    def keep(name):
        return lambda module, inputs, output: stages.update({name: output})

    modules = {"stem": model.backbone.maxpool}
    for short, decoder in (("sem", model.semantic_decoder), ("ins", model.instance_decoder)):
        modules |= {f"{short}_aspp": decoder.aspp, f"{short}_decoder": decoder}
        modules |= {f"{short}_aspp_branch{n}": branch for n, branch in enumerate(decoder.aspp.branches)}
        modules |= {f"{short}_aspp_branch{len(decoder.aspp.branches)}": decoder.aspp.pool}
        for number, stage in enumerate(decoder.stages):
            modules |= {f"{short}_project{number}": stage.project, f"{short}_fuse{number}": stage.fuse}
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    hooks.append(
        model.backbone.register_forward_hook(
            lambda module, inputs, found: stages.update({f"res{n}": x for n, x in enumerate(found, 2)})
        )
    )
    return stages, hooks


@pytest.fixture(scope="module", params=files("ref"), ids=lambda path: path.stem)
def run(request, models):
    """A stored run, our model, and the outputs of its stages from the image on, padded as the program pads it."""
    ref, model = load(request.param), models(config_name(request.param))[0]
    size, image = tuple(ref["crop_size"].tolist()), ref["image_rgb"]
    padded = np.empty((*size, 3), np.uint8)
    padded[:] = PADDING
    padded[: image.shape[0], : image.shape[1]] = image
    branches = [decoder.aspp.pool for decoder in (model.semantic_decoder, model.instance_decoder)]
    configured = branches[0].window
    for branch in branches:
        branch.window = tuple(ref["pool_kernel"].tolist())
    stages, hooks = record_stages(model)
    with torch.no_grad():
        raw = model.raw(torch.from_numpy(padded).permute(2, 0, 1)[None], torch.tensor([size]))
        for name, maps in zip(NAMES, raw[:3], strict=True):
            whole = upsample(maps, size, align_corners=True)
            stages |= {f"{name}_q": maps, name: whole * STRIDE if name == "offset" else whole}
    for hook in hooks:
        hook.remove()
    for branch in branches:
        branch.window = configured
    options = GroupingOptions(
        float(ref["threshold"]), int(ref["nms_kernel"]), int(ref["top_k"]), int(ref["stuff_area"]), "semantic",
        strict_top_k=True,
    )  # fmt: skip
    return SimpleNamespace(ref=ref, model=model, stages=stages, raw=raw, size=size, options=options)


def fused(run, image_size):
    """The maps of the part of the input that `image_size` says."""
    return fuse(
        *run.raw[:3], [image_size], [image_size], input_size=run.size, num_stuff=run.model.num_stuff,
        options=run.options, align_corners=True, with_semantic=True,
    )  # fmt: skip


def test_every_stage_of_the_network(run):
    stored = {name.removeprefix("stats__") for name in run.ref if name.startswith("stats__")} - {"data"}
    assert stored <= run.stages.keys()
    tolerances = {"semantic_q": 1e-4, "semantic": 1e-4, "center_q": 1e-5, "center": 1e-5, "offset": 1e-3}
    for name in stored:
        check_statistics(run.stages[name], run.ref, name, tolerances.get(name, 1e-4 if name == "offset_q" else 2e-5))
    assert np.abs(run.stages["semantic_q"][0].numpy() - run.ref["semantic_q_f16"]).max() < 0.008
    np.testing.assert_allclose(run.stages["center_q"][0], run.ref["center_q"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(run.stages["offset_q"][0], run.ref["offset_q"], rtol=0, atol=2.5e-4)


def test_the_same_segments_on_the_padded_input(run):
    """Nothing is fed: from the image to semantic map, instances and segments, outside of near-ties."""
    ref, found = run.ref, fused(run, run.size)
    clear = (ref["semantic_top2_gap_f16"] > 1e-3) & ~ref["group_near_tie"]
    assert clear.mean() > 0.9
    assert (found.semantic[0].numpy() == ref["semantic"])[clear].all()
    ids, num_stuff = found.segment_ids[0].numpy(), run.model.num_stuff
    divisor = int(ref["label_divisor"])
    count, table = {}, [int(ref["void_label"])]
    for row, channel in enumerate(found.segment_classes[0].tolist()):
        is_used = row < num_stuff or bool((ids == row + 1).any())
        count[channel] = count.get(channel, 0) + (row >= num_stuff and is_used)
        table.append(channel * divisor + (count[channel] if row >= num_stuff else 0))
    assert (np.array(table)[ids] == ref["panoptic"])[clear].all()
    instance = np.where(ids > num_stuff, ids - num_stuff, 0)
    assert (instance == ref["instance"])[clear].all(), "centres have the program's order"


def test_the_same_instances_in_the_image(run):
    ref, size = run.ref, run.ref["image_rgb"].shape[:2]
    found = fused(run, size)
    num_stuff, divisor = run.model.num_stuff, int(run.ref["label_divisor"])
    areas = np.bincount(found.segment_ids[0].numpy().ravel(), minlength=found.segment_classes.shape[1] + 1)[1:]
    rows = [row for row in range(num_stuff, len(areas)) if areas[row]]
    order = sorted(rows, key=lambda row: (int(found.segment_classes[0, row]), row))
    things = [i for i, number in enumerate(ref["inst_panoptic_id"]) if number % divisor]
    assert found.segment_classes[0, order].tolist() == ref["inst_class"][things].tolist()
    unclear = ((ref["semantic_top2_gap_f16"] <= 1e-3) | ref["group_near_tie"]).sum()
    assert np.abs(areas[order] - ref["inst_area"][things]).max() <= unclear
    scores = found.segment_scores[0, order].numpy()
    np.testing.assert_allclose(scores, ref["inst_score_semantic"][things], rtol=0, atol=1e-4)


TRAIN_RUNS = files("train_ref")


@pytest.mark.parametrize("kind", ["nodrop", "drop"])
@pytest.mark.parametrize("path", TRAIN_RUNS, ids=lambda path: path.stem)
def test_a_training_step(path, kind, models, monkeypatch):
    check_training_step(path, kind, torch.float32, models, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nodrop", "drop"])
@pytest.mark.parametrize("path", TRAIN_RUNS, ids=lambda path: path.stem)
def test_a_training_step_in_float64(path, kind, models, monkeypatch):
    check_training_step(path, kind, torch.float64, models, monkeypatch)


def batch_of(ref):
    """The stored images and their ground truth as a batch."""
    truths = []
    for panoptic_id, rows in zip(ref["panoptic_id"], json.loads(str(ref["segments"])), strict=True):
        segments = [(row["id"], row["category_id"], row["iscrowd"]) for row in rows]
        truths.append(truth_of(panoptic_id, segments, ref["thing_list"])[0])
    slots = max(len(truth.labels) for truth in truths)

    def stack(name):
        values = [getattr(truth, name) for truth in truths]
        if name in ("boxes", "labels", "is_crowd"):
            values = [torch.cat([v, v.new_zeros(slots - len(v), *v.shape[1:])]) for v in values]
        return torch.stack(values)

    target = PanopticTarget(**{name: stack(name) for name in PanopticTarget.__dataclass_fields__})
    images = torch.from_numpy(ref["image_rgb"]).permute(0, 3, 1, 2)
    sizes = [tuple(images.shape[2:])] * len(images)
    return PanopticBatch(images, torch.tensor(sizes), sizes, sizes, target=target)


def program_input(images):
    """Normalised in the program's order: batch statistics make a difference of 1e-7 one of 1e-3 in the gradients."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images.float() / 255 - mean) / std


def check_training_step(path, kind, dtype, models, monkeypatch):
    ref, name = load(path), config_name(path)
    model = copy.deepcopy(models(name)[0]).to(dtype).train()
    model.load_state_dict(from_panoptic_deeplab(original_state(name, with_overrides=False)).tensors)
    monkeypatch.setattr(
        "upsnet.models.panoptic_deeplab.model.normalize_images", lambda images, *_: program_input(images).to(dtype)
    )
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {float(ref["bn_momentum"])}
    masks = {
        decoder.aspp.dropout: torch.from_numpy(
            np.unpackbits(ref[f"dropout_keep_{key}"])[: np.prod(ref["dropout_keep_shape"])].reshape(
                ref["dropout_keep_shape"]
            )
        )
        for key, decoder in (("semantic", model.semantic_decoder), ("instance", model.instance_decoder))
    }
    for dropout in masks:
        dropout.rate = 0 if kind == "nodrop" else dropout.rate
    monkeypatch.setattr(ImageDropout, "keep", lambda self, x, seeds: masks[self])
    batch = batch_of(ref)
    model.target_config = original_targets(ref)
    target = make_targets(batch.target, model.target_config)
    for ours, theirs in (
        (target.semantic_weight, "semantic_weights"),
        (target.heat_weight[:, 0], "center_weights"),
        (target.offset_weight[:, 0], "offset_weights"),
        (batch.target.semantic_map, "target_semantic"),
    ):
        np.testing.assert_array_equal(ours, ref[theirs])
    np.testing.assert_allclose(statistics(target.heat), ref["target_center_stats"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(statistics(target.offset), ref["target_offset_stats"], rtol=1e-6, atol=1e-4)

    stages, hooks = record_stages(model)
    losses = model.loss(batch)
    for hook in hooks:
        hook.remove()
    weighted = {key: losses[f"loss_{key}"] * model.loss_weights[f"loss_{key}"] for key in NAMES}
    weighted["total"] = sum(weighted.values())
    weighted["total"].backward()
    is_double = dtype == torch.float64
    for key, value in weighted.items():
        expected = ref[f"{kind}__loss{'64' if is_double else ''}__{key}"]
        np.testing.assert_allclose(value.item(), expected, rtol=1e-6 if is_double else 1e-4, err_msg=key)
    check_gradients(model, ref, kind, is_double=is_double)
    if not is_double and kind == "nodrop":
        for key in {k.removeprefix("nodrop__stats__") for k in ref if k.startswith("nodrop__stats__")} & stages.keys():
            stored = {f"stats__{key}": ref[f"nodrop__stats__{key}"]}
            # Sums in another order (another number of threads) move single values by 1e-3 of the spread.
            check_statistics(stages[key], stored, key, 5e-3 * stored[f"stats__{key}"][1])
        check_running_statistics(model, ref)


def ours_of(key):
    """Our name of a parameter of the program."""
    return next(iter(from_panoptic_deeplab({key: torch.zeros(1)}).tensors))


def check_gradients(model, ref, kind, *, is_double):
    parameters = dict(model.named_parameters())
    norms = np.array([parameters[ours_of(key)].grad.double().norm().item() for key in ref["param_names"]])
    expected = ref[f"{kind}__grad_norms_f64"]
    error = np.abs(norms - expected) / expected.clip(min=1e-12)
    if is_double:
        assert error.max() < 1e-6
        return
    assert error.max() < 2e-2
    assert (error < 5e-3).mean() > 0.9


def check_running_statistics(model, ref):
    buffers = dict(model.named_buffers())
    for name in ("mean", "var"):
        norms = [buffers[ours_of(f"{key}.running_{name}")].double().norm().item() for key in ref["bn_names"]]
        np.testing.assert_allclose(norms, ref[f"bn_running_{name}_norm_after"], rtol=1e-5)
        found = buffers[f"backbone.bn1.running_{name}"]
        np.testing.assert_allclose(found, ref[f"backbone_bn1_running_{name}_after"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in OVERRIDES if (FOLDER / f"state_dict_{n}.json").is_file()])
def test_checkpoints_of_the_program_fill_the_whole_model(name, models):
    model, report = models(name)
    assert not report.fresh
    assert not report.unused
    assert not report.matched
    entries = json.loads((FOLDER / f"state_dict_{name}.json").read_text())
    count = sum(np.prod(entry["shape"]) for entry in entries if entry["kind"] == "param")
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    own, state = model.state_dict(), original_state(name)
    assert all(torch.equal(own[ours_of(key)], value) for key, value in state.items())
    assert len(own) == len(state) + 2, "and the pixel statistics"
