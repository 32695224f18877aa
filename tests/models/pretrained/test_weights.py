"""Weights from elsewhere: names, numbers, classes by name, and files that must be refused."""

import codecs
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from upsnet.categories import CategorySet, known_categories
from upsnet.config import parse_config
from upsnet.data.transforms import pad_images
from upsnet.models.build import build_model
from upsnet.models.pretrained.array_pickle import load_arrays
from upsnet.models.pretrained.formats import official_name
from upsnet.models.pretrained.rows import Rows
from upsnet.models.pretrained.weights import fill, read_weights
from upsnet.ops.roi_align import FeatureLayout
from upsnet.structures import PanopticBatch

MODEL = {"backbone": {"norm": "frozen_bn", "freeze_at": 2}, "semantic": {"channels": 32, "num_layers": 1}}
DATA = {"format": "shapes", "num_images": 1}
BASE = {"data": {"train": DATA, "val": DATA, "categories": "coco"}, "model": MODEL, "train": {"iterations": 1}}
# torchvision rounds its base boxes.
SHAPES = [
    [[2 * round(s / r**0.5 / 2), 2 * round(s * r**0.5 / 2)] for r in (0.5, 1, 2)] for s in (32, 64, 128, 256, 512)
]
TORCHVISION = ["model.roi_align=legacy", "model.rpn.anchor_offset=0", f"model.rpn.anchor_shapes={SHAPES}"]


def make(overrides=(), categories=None):
    config = parse_config(BASE, list(overrides), source="test")
    categories = categories or known_categories("coco")
    torch.manual_seed(0)
    return build_model(config, categories, pretrained=False), categories


def some_classes(*names):
    """A data set of its own with classes of these names: the last is stuff."""
    rows = [{"id": i + 1, "name": n, "isthing": int(i < len(names) - 1)} for i, n in enumerate(names)]
    return CategorySet.from_json(rows, source="test")


@pytest.fixture(scope="module")
def torchvision_model():
    """With random weights that detect things."""
    torch.manual_seed(3)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, rpn_score_thresh=0.0).eval()
    generator = torch.Generator().manual_seed(4)
    for name, module in model.named_modules():
        if "FrozenBatchNorm2d" in type(module).__name__ or isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            scale = 0.3 if name.endswith(("bn3", "downsample.1")) else 1.0
            module.weight.data.copy_(scale * (1 + torch.randn(module.weight.shape, generator=generator) * 0.1))
    for layer, std in ((model.roi_heads.box_predictor.cls_score, 0.6), (model.roi_heads.box_predictor.bbox_pred, 0.02)):
        torch.nn.init.normal_(layer.weight, std=std, generator=generator)
    torch.nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.1, generator=generator)
    torch.nn.init.normal_(model.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.1, generator=generator)
    return model


@pytest.fixture(scope="module")
def torchvision_file(torchvision_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("torchvision") / "maskrcnn.pth"
    torch.save(torchvision_model.state_dict(), path)
    return path


@torch.no_grad()
def test_torchvisions_mask_rcnn_gives_its_own_boxes_classes_and_masks(torchvision_model, torchvision_file):
    """All 90 rows in the order of the category ids, so that every class of theirs is one of ours."""
    by_id = {c.id: c.name for c in known_categories("coco").categories}
    rows = [{"id": i, "name": by_id.get(i, f"unused {i}"), "isthing": 1} for i in range(1, 91)]
    categories = CategorySet.from_json([*rows, {"id": 200, "name": "ground", "isthing": 0}], source="test")
    ours, _ = make(TORCHVISION, categories)
    weights = read_weights(torchvision_file)
    named = [n or f"unused {i + 1}" for i, n in enumerate(weights.rows.things)]
    report = fill(ours, replace(weights, rows=Rows(things=named)), categories)
    assert not report.unused
    assert {name.split(".")[0] for name in report.fresh} == {"semantic_head"}
    ours.eval()

    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    images, sizes = pad_images([cv2.resize(noise, (256, 192))], 32)
    batch = PanopticBatch(images, torch.tensor(sizes), sizes, sizes)
    levels = ours.features(batch.images, batch.image_sizes)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    normalised = (images.float() / 255 - mean) / std
    theirs = list(torchvision_model.backbone(normalised).values())
    for a, b in zip(levels, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.std()))

    features = torchvision_model.backbone(normalised)
    proposals, _ = torchvision_model.rpn(ImageList(normalised, sizes), features)
    expected, _ = torchvision_model.roi_heads(features, proposals, sizes)
    rois, valid = ours.rpn.propose(ours.rpn(levels), batch.image_sizes)
    assert abs(int(valid.sum()) - len(proposals[0])) <= 2, "near-ties aside: one more or less goes by the threads"
    distance = (rois[0, valid[0], None] - proposals[0]).abs().amax(-1).amin(1)
    assert (distance < 1e-2).float().mean() > 0.99

    layout = FeatureLayout.of(levels[:4], (4, 8, 16, 32), ours.roi_convention)
    valid = torch.ones(1, len(proposals[0]), dtype=torch.bool)
    head, rule = ours.instance_head, ours.instance_rule
    candidates = head.decode(head.box_outputs(layout, proposals[0][None], valid), batch.image_sizes, rule)
    found = head.detect(candidates, rule, partial(head.mask_logits, layout))
    count = int(found.valid.sum())
    assert count == len(expected[0]["scores"]) > 20
    assert torch.equal(found.labels[0, :count], expected[0]["labels"])
    torch.testing.assert_close(found.scores[0, :count], expected[0]["scores"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.boxes[0, :count], expected[0]["boxes"], rtol=0, atol=1e-2)
    masks = found.mask_logits[0, :count].sigmoid()
    torch.testing.assert_close(masks, expected[0]["masks"][:, 0], rtol=0, atol=1e-4)


def test_classes_of_coco_are_kept_by_name(torchvision_file):
    categories = some_classes("zebra", "unicorn", "person", "ground")
    model, _ = make(TORCHVISION, categories)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.load(torchvision_file, weights_only=True)
    report = fill(model, read_weights(torchvision_file), categories)
    assert report.kept == ["zebra", "person"]
    assert report.missing == ["unicorn"], "the file has no semantic head, so it has no rows for stuff"
    assert "6 tensors by class name: 2 of 3 classes taken (zebra, person), fresh: unicorn" in report.lines()
    row = state["roi_heads.box_predictor.cls_score.weight"]
    found = model.instance_head.cls_score.weight
    assert torch.equal(found, torch.stack([row[0], row[24], fresh["instance_head.cls_score.weight"][2], row[1]]))
    box = state["roi_heads.box_predictor.bbox_pred.weight"].view(91, 4, -1)
    assert torch.equal(model.instance_head.bbox_pred.weight.view(3, 4, -1)[[0, 2]], box[[24, 1]])
    mask = state["roi_heads.mask_predictor.mask_fcn_logits.bias"]
    assert torch.equal(model.instance_head.mask_score.bias[[0, 2]], mask[[24, 1]])


def test_a_checkpoint_of_other_classes_keeps_those_with_the_same_name(tmp_path):
    old, new = some_classes("cat", "dog", "grass"), some_classes("dog", "bird", "cat", "grass")
    source, _ = make(categories=old)
    values = {"format": "upsnet-checkpoint-1", "weights": source.state_dict(), "categories": old.to_json()}
    torch.save(values, tmp_path / "old.pt")
    model, _ = make(categories=new)
    report = fill(model, read_weights(tmp_path / "old.pt"), new)
    assert report.kept == ["grass", "dog", "cat"]
    assert torch.equal(model.instance_head.cls_score.bias[[0, 1, 3]], source.instance_head.cls_score.bias[[0, 2, 1]])
    for ours, theirs in zip(model.semantic_head.score, source.semantic_head.score, strict=True):
        assert torch.equal(ours.weight[[0, 1, 3]], theirs.weight[[0, 2, 1]])
    assert torch.equal(model.fpn.inner_blocks[0].weight, source.fpn.inner_blocks[0].weight)


def detectron2_state(model):
    """The weights of our model under detectron2's names, as arrays."""
    names = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
    simple = {
        "rpn.conv": "proposal_generator.rpn_head.conv",
        "rpn.cls_logits": "proposal_generator.rpn_head.objectness_logits",
        "rpn.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
        "instance_head.fc6": "roi_heads.box_head.fc1",
        "instance_head.fc7": "roi_heads.box_head.fc2",
        "instance_head.cls_score": "roi_heads.box_predictor.cls_score",
        "instance_head.bbox_pred": "roi_heads.box_predictor.bbox_pred",
        "instance_head.mask_deconv": "roi_heads.mask_head.deconv",
        "instance_head.mask_score": "roi_heads.mask_head.predictor",
        **{f"fpn.inner_blocks.{n}": f"backbone.fpn_lateral{n + 2}" for n in range(4)},
        **{f"fpn.layer_blocks.{n}": f"backbone.fpn_output{n + 2}" for n in range(4)},
        **{f"instance_head.mask_layers.{n}.0": f"roi_heads.mask_head.mask_fcn{n + 1}" for n in range(4)},
    }
    state = OrderedDict()
    for name, value in model.state_dict().items():
        module, kind = name.rsplit(".", 1) if "." in name else ("", name)
        if kind == "num_batches_tracked" or not module or module.startswith("semantic_head"):
            continue
        if module in simple:
            other = simple[module]
        else:
            part = module.removeprefix("backbone.")
            if part in names:
                other = f"backbone.bottom_up.{names[part]}"
            else:
                stage, block, rest = part.split(".", 2)
                rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
                rest = rest.replace("bn", "conv") + ".norm" if rest.startswith("bn") else rest
                other = f"backbone.bottom_up.res{int(stage[-1]) + 1}.{block}.{rest}"
        if name == "backbone.conv1.weight":
            value = value.flip(1)
        if module == "instance_head.cls_score":
            value = value.roll(-1, 0)
        state[f"{other}.{kind}"] = value.numpy()
    return state


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_detectron2_files_give_back_the_model(tmp_path, suffix):
    source, categories = make()
    state, path = detectron2_state(source), tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": state, "__author__": "test"}, protocol=2))
    else:
        torch.save({"model": {k: torch.from_numpy(v.copy()) for k, v in state.items()}}, path)
    model = build_model(parse_config(BASE, [], source="test"), categories, pretrained=False)
    report = fill(model, read_weights(path), categories)
    assert not report.unused
    assert {name.split(".")[0] for name in report.fresh} == {"semantic_head"}
    expected = source.state_dict()
    for name in report.loaded:
        if not name.startswith("pixel"):
            assert torch.equal(model.state_dict()[name], expected[name]), name
    assert model.pixel_std.flatten().tolist() == [1, 1, 1]


def test_official_names_are_those_of_its_checkpoints():
    assert official_name("backbone.conv1.weight") == "resnet_backbone.conv1.conv1.weight"
    assert official_name("backbone.layer3.1.conv2.offset.bias") == "resnet_backbone.res4.layers.1.conv2_offset.bias"
    assert official_name("semantic_head.layers.0.conv.offset.bias") == "fcn_head.fcn_subnet.conv.0.0.conv_offset.bias"
    assert official_name("semantic_head.score.3.weight") == "fcn_head.score.weight"
    assert official_name("instance_head.mask_layers.3.0.bias") == "mask_branch.mask_conv4.0.bias"


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_hostile_files_are_refused_and_do_nothing(tmp_path, suffix):
    content = {"model": {"backbone.bottom_up.stem.conv1.weight": Calls(os.system, f"touch {tmp_path}/was_here")}}
    path = tmp_path / f"hostile{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"hostile\.p..: refused as a .* \(it asks for .*system"):
        read_weights(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "value",
    [
        Calls(np.dtype, "O8", False, True),
        Calls(np.dtype, "O8", False, True, state=(3, "|", None, None, None, -1, -1, 0)),
        Calls(np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": (Calls(np.dtype, "O8"), 0)}, 8, 1, 0)),
        Calls(np.ndarray, (1,), Calls(np.dtype, "f4")),
        np.array([object], dtype=object),
        np.array(["text"]),
        Calls(codecs.encode, "text", "zip"),
        Calls(np.frombuffer, b"abcd", "f4"),
    ],
    ids=range(8),
)
def test_a_pickle_holds_numbers_and_nothing_else(tmp_path, value):
    path = tmp_path / "strange.pkl"
    path.write_bytes(pickle.dumps({"model": {"backbone.bottom_up.stem.conv1.weight": value}}))
    with pytest.raises(ValueError, match=r"strange\.pkl: "):
        read_weights(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numbers_of_every_kind_are_read(tmp_path, protocol):
    values = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "c": np.array([True, False]),
        "d": np.arange(3, dtype=">f8"),
        "e": np.float32(2.5),
    }
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    found = load_arrays(path)
    for key, value in values.items():
        np.testing.assert_array_equal(found[key], value)


def test_unknown_and_unfit_files_say_what_they_look_like(tmp_path, torchvision_file):
    x = torch.zeros(1)
    torch.save({"encoder.weight": torch.zeros(2), "decoder.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: 2 tensors \(encoder.weight, decoder.weight\), expected"):
        read_weights(tmp_path / "other.pth")
    torch.save({"backbone.body.conv1.weight": x, "backbone.fpn.inner_blocks.0.1.weight": x}, tmp_path / "v2.pth")
    with pytest.raises(ValueError, match=r"v2\.pth: .* v2 has another architecture, expected v1"):
        read_weights(tmp_path / "v2.pth")
    (tmp_path / "model.pt2").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.pt2: an exported graph, expected a checkpoint"):
        read_weights(tmp_path / "model.pt2")
    (tmp_path / "text.pkl").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pkl: refused as a pickle"):
        read_weights(tmp_path / "text.pkl")
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file of weights"):
        read_weights(tmp_path / "none.pth")
    weights = read_weights(torchvision_file)
    heads = {k: v for k, v in weights.tensors.items() if not k.startswith("backbone")}
    model, categories = make(TORCHVISION)
    with pytest.raises(ValueError, match=r"maskrcnn\.pth: nothing in this .* fits backbone\..* would stay random"):
        fill(model, replace(weights, tensors=heads), categories)


IMAGE_CONV = torch.zeros(4, 3, 7, 7)
NUMBER = torch.tensor(1.0)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    "state",
    [
        {"backbone.body.conv1.weight": IMAGE_CONV, "roi_heads.box_predictor.cls_score.bias": NUMBER},
        {"backbone.body.conv1.weight": IMAGE_CONV, "roi_heads.mask_predictor.mask_fcn_logits.bias": NUMBER},
        {"backbone.bottom_up.stem.conv1.weight": NUMBER},
        {"backbone.bottom_up.stem.conv1.weight": IMAGE_CONV, "pixel_mean": torch.zeros(5)},
        {"backbone.bottom_up.stem.conv1.weight": IMAGE_CONV, "roi_heads.box_predictor.cls_score.bias": torch.zeros(9)},
        {
            "resnet_backbone.conv1.conv1.weight": IMAGE_CONV,
            "fcn_head.score.weight": NUMBER,
            "fcn_head.score.bias": NUMBER,
        },
        {"layer1.0.conv1.weight": torch.eye(3).to_sparse()},
        {"layer1.0.conv1.weight": torch.zeros(3, dtype=torch.complex64)},
        {"layer1.0.conv1.weight": torch.zeros(3, device="meta")},
    ],
    ids=range(9),
)
def test_tensors_of_unexpected_kinds_and_shapes_are_an_error_of_one_line(tmp_path, state):
    torch.save(state, tmp_path / "strange.pth")
    with pytest.raises(ValueError, match=r"^.*strange\.pth: .*the file is damaged$"):
        read_weights(tmp_path / "strange.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_numbers_in_float32_are_an_error(tmp_path, value):
    torch.save({"layer1.0.conv1.weight": torch.tensor([1, value], dtype=torch.float64)}, tmp_path / "huge.pth")
    with pytest.raises(ValueError, match=r"huge\.pth: weight layer1\.0\.conv1\.weight has 1 values .* not finite"):
        read_weights(tmp_path / "huge.pth")
