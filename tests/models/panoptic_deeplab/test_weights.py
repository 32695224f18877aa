"""Files of other programs in Panoptic-DeepLab: names, classes by name, and files of other architectures."""

import pickle

import pytest
import torch
import torchvision

from tests.models.panoptic_deeplab.deeplab import make_config
from upsnet.categories import CategorySet, known_categories
from upsnet.config import load_config
from upsnet.data.shapes import CATEGORIES
from upsnet.models.build import build_model
from upsnet.models.checkpoint import Checkpoint, save_checkpoint
from upsnet.models.pretrained.formats import from_detectron2_deeplab
from upsnet.models.pretrained.weights import fill, read_weights

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
DENSE = ["model.conv=dense", "model.aspp.conv=dense"]


def detectron2_names(separable):
    """Every entry of a checkpoint of detectron2's ResNet-52, by the structure of its modules."""
    convs = [f"backbone.stem.conv{n}" for n in (1, 2, 3)]
    for stage, depth in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        for block in range(depth):
            parts = ["shortcut"] if block == 0 else []
            convs += [f"backbone.res{stage}.{block}.{part}" for part in [*parts, "conv1", "conv2", "conv3"]]
    two = ("depthwise", "pointwise") if separable else ("0", "1")
    names = []
    for head in ("sem_seg_head", "ins_embed_head"):
        pyramid = f"{head}.decoder.res5.project_conv"
        convs += [f"{pyramid}.convs.0", f"{pyramid}.project"]
        for branch in (1, 2, 3):
            convs += (
                [f"{pyramid}.convs.{branch}.{part}" for part in two] if separable else [f"{pyramid}.convs.{branch}"]
            )
        names += [f"{pyramid}.convs.4.1.weight", f"{pyramid}.convs.4.1.bias"]
        for stage in (2, 3):
            convs += [f"{head}.decoder.res{stage}.project_conv"]
            convs += [f"{head}.decoder.res{stage}.fuse_conv.{part}" for part in two]
    for head, predictor in (
        ("sem_seg_head.head", "sem_seg_head.predictor"),
        ("ins_embed_head.center_head", "ins_embed_head.center_predictor"),
        ("ins_embed_head.offset_head", "ins_embed_head.offset_predictor"),
    ):
        convs += [f"{head}.{part}" for part in two]
        names += [f"{predictor}.weight", f"{predictor}.bias"]
    names += [f"{conv}.weight" for conv in convs]
    return names + [f"{conv}.norm.{part}" for conv in convs for part in NORM]


def model_of(config, categories):
    torch.manual_seed(0)
    return build_model(config, categories, pretrained=False)


@pytest.mark.parametrize(("separable", "count", "parameters"), [(True, 544, 30.09), (False, 508, 59.77)])
def test_checkpoints_of_detectron2_fill_the_whole_model(separable, count, parameters, tmp_path):
    """The file holds numbers of the right shape under detectron2's names, each as large as its place in the list."""
    names = detectron2_names(separable)
    assert len(names) == len(set(names)) == count
    categories = known_categories("cityscapes")
    full = load_config("cityscapes_deeplab_r52_detectron2", [] if separable else DENSE)
    with torch.device("meta"):
        whole = build_model(full, categories, pretrained=False)
    assert sum(p.numel() for p in whole.parameters()) / 1e6 == pytest.approx(parameters, abs=0.01)

    small = load_config("cityscapes_deeplab_r52_detectron2", [*([] if separable else DENSE), "model.backbone.width=16"])
    model = model_of(small, categories)
    own = {next(iter(from_detectron2_deeplab({name: torch.zeros(1)}).tensors)): name for name in names}
    shapes = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("pixel_")}
    assert set(own) == set(shapes)
    state = {own[name]: torch.full(shape, float(i)).numpy() for i, (name, shape) in enumerate(shapes.items())}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "test"}))
    report = fill(model, read_weights(path), categories)
    assert report.kind == "detectron2 Panoptic-DeepLab"
    assert not report.fresh
    assert not report.unused
    values = model.state_dict()
    assert all((values[name] == i).all() for i, name in enumerate(shapes) if not name.endswith("num_batches_tracked"))
    stem = model.backbone.conv3.weight
    assert stem[0, 0, 0, 0] == state["backbone.stem.conv3.weight"][0, 0, 0, 0]
    assert model.semantic_decoder.stages[0].project.conv.in_channels == 128, "res3 comes first"


def original_names(model, count):
    """A file of the original program for a small model, with `count` classes: row i of the predictor is full of i."""
    name = "decoder.semantic_head.classifier.semantic.1"
    width = model.semantic_head.predictor.in_channels
    rows = torch.arange(count, dtype=torch.float32)
    marker = model.semantic_decoder.aspp.branches[0].conv.weight.clone()
    return {
        "decoder.semantic_decoder.aspp.convs.0.0.weight": marker,
        f"{name}.weight": rows[:, None, None, None].expand(count, width, 1, 1).clone(),
        f"{name}.bias": rows.clone(),
    }


def test_classes_are_matched_by_name_and_things_come_first_in_files_of_coco(tmp_path):
    rows = [{"id": 1, "name": "sky-other-merged", "isthing": 0}, {"id": 2, "name": "dog", "isthing": 1}]
    rows += [{"id": 3, "name": "walnut", "isthing": 1}]
    categories = CategorySet.from_json(rows, source="test")
    model = model_of(make_config(), categories)
    fresh = model.semantic_head.predictor.bias[2].item()
    path = tmp_path / "coco.pth"
    torch.save(original_names(model, 133), path)
    report = fill(model, read_weights(path), categories)
    public = known_categories("coco")
    names = [c.name for c in public.categories]
    theirs = names[public.num_stuff :] + names[: public.num_stuff]
    assert theirs[:2] == ["person", "bicycle"]
    expected = [theirs.index("sky-other-merged"), theirs.index("dog"), fresh]
    assert model.semantic_head.predictor.bias.tolist() == expected
    assert report.kept == ["sky-other-merged", "dog"]
    assert report.missing == ["walnut"]


def test_rows_of_cityscapes_are_in_the_order_of_train_ids(tmp_path):
    categories = known_categories("cityscapes")
    model, path = model_of(make_config(), categories), tmp_path / "cityscapes.pth"
    torch.save(original_names(model, 19), path)
    fill(model, read_weights(path), categories)
    assert model.semantic_head.predictor.bias.tolist() == list(range(19))


def test_rows_of_an_unknown_set_of_classes_stay_fresh(tmp_path):
    model, path = model_of(make_config(), CATEGORIES), tmp_path / "own.pth"
    torch.save(original_names(model, 7), path)
    report = fill(model, read_weights(path), CATEGORIES)
    assert report.fresh.count("semantic_head.predictor.bias") == 1


def checkpoint_of(config, path):
    torch.manual_seed(5)
    model = build_model(config, CATEGORIES, pretrained=False)
    save_checkpoint(path, Checkpoint(config, CATEGORIES, model.state_dict()))
    return model.state_dict()


def test_a_model_starts_from_a_checkpoint_of_its_own(tmp_path):
    weights = checkpoint_of(make_config(), tmp_path / "a.pt")
    model = model_of(make_config("model.target.sigma=2", "model.instance.max_detections=5"), CATEGORIES)
    report = fill(model, read_weights(tmp_path / "a.pt"), CATEGORIES)
    assert report.lines() == [
        f"checkpoint of this project: {len(report.outcomes)} of {len(report.outcomes)} tensors loaded"
    ]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_layer_of_another_shape_is_fresh_with_its_norm(tmp_path):
    checkpoint_of(make_config(), tmp_path / "a.pt")
    model = model_of(make_config("model.semantic.low_level_channels=[8, 6]"), CATEGORIES)
    report = fill(model, read_weights(tmp_path / "a.pt"), CATEGORIES)
    stage = "semantic_decoder.stages.1"
    layers = {name.rpartition(".")[0] for name in report.fresh}
    # The width of the depthwise layer and the inputs of the pointwise one follow from the projection.
    expected = {f"{stage}.project.conv", f"{stage}.project.norm"}
    expected |= {f"{stage}.fuse.{n}.{part}" for n in (0, 1) for part in ("conv", "norm")}
    assert layers == expected


def test_the_backbone_comes_from_a_checkpoint_of_the_other_architecture(tmp_path, config):
    weights = checkpoint_of(config, tmp_path / "upsnet.pt")
    model = model_of(make_config(), CATEGORIES)
    report = fill(model, read_weights(tmp_path / "upsnet.pt"), CATEGORIES)
    assert {name.split(".")[0] for name in report.loaded} == {"backbone", "pixel_mean", "pixel_std"}
    own = model.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in report.loaded)
    with pytest.raises(ValueError, match="belongs to another model"):
        Checkpoint(make_config(), CATEGORIES, weights).build()


def test_the_backbone_takes_the_weights_of_torchvision(tmp_path):
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    options = ("model.backbone.width=64", "model.backbone.output_stride=8")
    config = make_config(*options, f"model.backbone.weights={tmp_path / 'resnet18.pth'}")
    ours = build_model(config, CATEGORIES).backbone.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.state_dict().items() if "fc." not in name)
