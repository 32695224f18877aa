"""Initial weights of a model with other anchors, classes, heads or layers: what is taken, fresh, and reported."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.conftest import TINY
from upsnet.categories import CategorySet
from upsnet.config import parse_config
from upsnet.engine.convert_weights import convert_weights
from upsnet.export.exporter import export_checkpoint
from upsnet.models.build import build_model
from upsnet.models.checkpoint import Checkpoint, save_checkpoint
from upsnet.models.pretrained.report import Report
from upsnet.models.pretrained.rows import Rows
from upsnet.models.pretrained.weights import fill, read_weights

CLASSES = {"grass": 0, "cat": 1, "dog": 1}
COUNTER = "num_batches_tracked"
ANCHOR_LAYERS = ("rpn.cls_logits", "rpn.bbox_pred")


class Filled(NamedTuple):
    """State dicts of the model after it was filled, of the file, and of the fresh model; the report."""

    now: dict
    file: dict
    fresh: dict
    report: Report


def class_set(classes):
    """Name -> 1 for a thing, 0 for stuff."""
    rows = [{"id": i + 1, "name": name, "isthing": thing} for i, (name, thing) in enumerate(classes.items())]
    return CategorySet.from_json(rows, source="test")


def build(overrides, classes, seed):
    torch.manual_seed(seed)
    return build_model(parse_config(TINY, overrides, source="tiny"), class_set(classes), pretrained=False)


def save(path, overrides=(), classes=CLASSES, training=None):
    """A checkpoint in which every value is random, biases and statistics too; its weights."""
    weights = build(overrides, classes, 1).state_dict()
    for name, value in weights.items():
        if value.is_floating_point() and not name.startswith("pixel_"):
            value.uniform_(0.5, 1.5)
    config = parse_config(TINY, overrides, source="tiny")
    save_checkpoint(path, Checkpoint(config, class_set(classes), weights, training=training))
    return weights


def fill_from(path, file, overrides=(), classes=CLASSES):
    """Fills a model from a checkpoint, and checks what holds for all of them."""
    model = build(overrides, classes, 2)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = fill(model, read_weights(path), class_set(classes))
    now = model.state_dict()
    assert {*report.loaded, *report.matched, *report.fresh} == {name for name in now if not name.endswith(COUNTER)}
    for name in report.loaded:
        assert torch.equal(now[name], file[name]), name
    for name in report.fresh:
        assert torch.equal(now[name], fresh[name]), name
    assert len(report.lines()) <= 12
    return Filled(now, file, fresh, report)


def init(folder, old=(), new=(), old_classes=CLASSES, new_classes=CLASSES):
    """Fills a model of config `new` from a file of config `old`."""
    path = Path(folder) / "file.pt"
    return fill_from(path, save(path, old, old_classes), new, new_classes)


def names_of(state, *prefixes):
    return {name for name in state if name.startswith(prefixes) and not name.endswith(COUNTER)}


def test_an_equal_model_takes_everything_in_one_line(tmp_path):
    found = init(tmp_path)
    assert found.report.lines() == ["checkpoint of this project: 147 of 147 tensors loaded"]
    assert found.report.unused == []
    assert list(found.report.warnings) == []


RATIOS = "model.rpn.aspect_ratios="
SIZES = "model.rpn.anchor_sizes="


@pytest.mark.parametrize(
    ("old", "new", "rows", "line"),
    [
        (
            [],
            [RATIOS + "[0.33, 0.5, 1, 3]"],
            {1: 0, 2: 1},
            "2 of 4 anchors of a cell taken, fresh: ratio 0.33, ratio 3",
        ),
        ([], [RATIOS + "[2, 1, 0.5]"], {0: 2, 1: 1, 2: 0}, "3 of 3 anchors of a cell taken"),
        ([], [RATIOS + "[1]"], {0: 1}, "1 of 1 anchors of a cell taken"),
        ([], [RATIOS + "[0.3, 3]"], {}, "0 of 2 anchors of a cell taken, fresh: ratio 0.3, ratio 3"),
        (
            [],
            [SIZES + "[[18, 12], [36, 24], [60, 48], [90, 80]]", RATIOS + "[0.5, 1]"],
            {2: 0, 3: 1},
            "2 of 4 anchors of a cell taken, fresh: ratio 0.5 of size 2, ratio 1 of size 2",
        ),
        (
            [SIZES + "[[12, 18], [24, 36], [48, 60], [80, 90]]", RATIOS + "[0.5, 1]"],
            [RATIOS + "[1, 2]"],
            {0: 1},
            "1 of 2 anchors of a cell taken, fresh: ratio 2",
        ),
    ],
    ids=["more ratios", "other order", "fewer ratios", "no ratio in common", "two sizes", "one size of two"],
)
def test_rows_of_anchors_are_taken_by_ratio_and_order_of_size(tmp_path, old, new, rows, line):
    """rows: anchor of the model -> anchor of the file."""
    found = init(tmp_path, old, new)
    for layer, count in (("rpn.cls_logits", 1), ("rpn.bbox_pred", 4)):
        for kind in ("weight", "bias"):
            now, file, fresh = (s[f"{layer}.{kind}"].unflatten(0, (-1, count)) for s in found[:3])
            for anchor in range(len(now)):
                expected = file[rows[anchor]] if anchor in rows else fresh[anchor]
                assert torch.equal(now[anchor], expected)
    assert {*found.report.matched, *found.report.fresh} == names_of(found.now, *ANCHOR_LAYERS)
    assert found.report.lines()[1:] == [f"4 tensors by anchor: {line}"]


def test_anchors_of_other_sizes_take_the_weights_and_the_sizes_are_reported(tmp_path):
    found = init(tmp_path, new=[SIZES + "[[16], [32], [64], [128], [256]]"])
    assert found.report.fresh == []
    assert found.report.lines()[1] == (
        "anchor sizes differ: 12, 24, 48, 80 pixels by level in the file, 16, 32, 64, 128, 256 in the model; "
        "boxes are predicted relative to their anchor, so the weights stay useful"
    )


def test_rounded_anchors_are_those_that_they_were_rounded_from(tmp_path):
    exact = ["model.rpn.anchor_sizes=[[32], [64], [128], [256], [512]]"]
    for name in ("torchvision_maskrcnn", "upsnet_official"):
        shapes = parse_config({**TINY, "model": {"conventions": name}}, source="test").model.rpn.shapes()
        rounded = [f"model.rpn.anchor_shapes={[[list(shape) for shape in row] for row in shapes]}"]
        found = init(tmp_path, exact, rounded)
        assert found.report.fresh == found.report.matched == []
        assert len(found.report.lines()) == 1


@pytest.mark.parametrize("config", [None, {}, {"model": {"rpn": {"anchor_sizes": "x"}}}, {"model": 3}, 7])
def test_a_file_that_does_not_tell_its_anchors_fills_the_same_number_of_them(tmp_path, config):
    weights = save(tmp_path / "full.pt")
    values = torch.load(tmp_path / "full.pt", weights_only=True)
    torch.save({**values, "config": config}, tmp_path / "file.pt")
    assert fill_from(tmp_path / "file.pt", weights, [RATIOS + "[0.2, 1, 5]"]).report.fresh == []
    found = fill_from(tmp_path / "file.pt", weights, [RATIOS + "[0.5, 1]"])
    assert set(found.report.fresh) == names_of(found.now, *ANCHOR_LAYERS)
    assert found.report.lines()[1] == (
        "fresh, other shape: rpn: 4 tensors (rpn.cls_logits.weight is 3 x 16 x 1 x 1 in the file, "
        "2 x 16 x 1 x 1 in the model)"
    )


CLASS_LAYERS = ("semantic_head.score.0.weight", "semantic_head.score.0.bias", "semantic_head.score.3.weight")
THING_LAYERS = (("instance_head.cls_score", 1), ("instance_head.bbox_pred", 4), ("instance_head.mask_score", 1))


def check_rows_of_classes(found, old, new):
    """Semantic rows: stuff, then things. Box and mask rows: things, for the class scores after the background."""

    def ordered(classes):
        things = [name for name, thing in classes.items() if thing]
        return [*(name for name, thing in classes.items() if not thing), *things], things

    (old_names, old_things), (new_names, new_things) = ordered(old), ordered(new)
    for layer in CLASS_LAYERS:
        now, file, fresh = (state[layer] for state in found[:3])
        for row, name in enumerate(new_names):
            expected = file[old_names.index(name)] if name in old_names else fresh[row]
            assert torch.equal(now[row], expected), (layer, name)
    for layer, count in THING_LAYERS:
        first = int(layer.endswith("cls_score"))
        for kind in ("weight", "bias"):
            now, file, fresh = (state[f"{layer}.{kind}"].unflatten(0, (-1, count)) for state in found[:3])
            assert len(now) == first + len(new_things)
            assert torch.equal(now[:first], file[:first]), "the background"
            for row, name in enumerate(new_things):
                expected = file[first + old_things.index(name)] if name in old_things else fresh[first + row]
                assert torch.equal(now[first + row], expected), (layer, name)


@pytest.mark.parametrize(
    ("new", "lines"),
    [
        (
            {"bird": 1, "dog": 1, "sky": 0, "cat": 1, "grass": 0},
            ["11 tensors by class name: 3 of 5 classes taken (grass, dog, cat), fresh: sky, bird"],
        ),
        ({"dog": 1, "grass": 0}, ["11 tensors by class name: 2 of 2 classes taken (grass, dog)"]),
        ({"sea": 0, "fish": 1}, ["11 tensors by class name: 0 of 2 classes taken, fresh: sea, fish"]),
        (
            {"cat": 0, "grass": 1, "dog": 1},
            [
                "11 tensors by class name: 3 of 3 classes taken (cat, grass, dog)",
                "stuff in the file, things in the model: grass (box and mask rows fresh); "
                "things in the file, stuff in the model: cat (box and mask rows unused)",
            ],
        ),
        (
            {"Cat": 1, "dog ": 1, "grass": 0},
            [
                "11 tensors by class name: 1 of 3 classes taken (grass), fresh: Cat, dog ",
                "names that differ only in spelling are different classes: 'cat' in the file, 'Cat' in the model, "
                "'dog' in the file, 'dog ' in the model",
            ],
        ),
    ],
    ids=["more", "fewer", "none in common", "kinds change", "spelling"],
)
def test_rows_of_classes_are_taken_by_name(tmp_path, new, lines):
    found = init(tmp_path, new_classes=new)
    check_rows_of_classes(found, CLASSES, new)
    assert found.report.lines()[1:] == lines


def test_a_class_called_background_is_not_the_background(tmp_path):
    old, new = {"grass": 0, "background": 1, "dog": 1}, {"grass": 0, "dog": 1, "background": 1}
    check_rows_of_classes(init(tmp_path, old_classes=old, new_classes=new), old, new)


def test_rows_of_a_file_that_does_not_name_its_classes_stay_fresh(tmp_path):
    save(tmp_path / "file.pt")
    weights = replace(read_weights(tmp_path / "file.pt"), rows=Rows())
    model = build((), CLASSES, 2)
    report = fill(model, weights, class_set(CLASSES))
    layers = ("semantic_head.score", *(layer for layer, _ in THING_LAYERS))
    assert set(report.fresh) == names_of(model.state_dict(), *layers)
    assert report.lines()[1] == (
        "fresh, classes of the rows not named in the file: 11 tensors: semantic_head.score (5), instance_head.box (4), "
        "instance_head.mask_score (2)"
    )


def shape_line(part, count, name, old, new):
    return f"fresh, other shape: {part}: {count} tensors ({name} is {old} in the file, {new} in the model)"


SEMANTIC, INSTANCE = "model.heads=semantic", "model.heads=instance"
BOXES = tuple(f"instance_head.{layer}." for layer in ("fc6", "fc7", "cls_score", "bbox_pred"))
STAGES = "backbone.layer"
SHARED = "semantic_head.layers.0.0"
MASKS = "instance_head.mask_layers.0.0"
MORE_BLOCKS = ("1.2", "2.2", "2.3", "3.2", "3.3", "3.4", "3.5", "4.2")
"""Residual blocks that ResNet-34 has and ResNet-18 has not."""
OFFSETS = tuple(f"backbone.layer4.{block}.conv2.offset." for block in (0, 1))
DIFFERENCES = {
    "to semantic": ([], [SEMANTIC], (), [
        "in the file, not used: 20 tensors: rpn (6), instance_head.box (8), instance_head.mask (6)"]),
    "to instance": ([], [INSTANCE], (), ["in the file, not used: 9 tensors: semantic_head (9)"]),
    "from semantic": ([SEMANTIC], [], ("rpn.", "instance_head."), [
        "fresh, not in the file: 20 tensors: rpn (6), instance_head.box (8), instance_head.mask (6)"]),
    "from instance": ([INSTANCE], [], ("semantic_head.",), [
        "fresh, not in the file: 9 tensors: semantic_head (9)"]),
    "to deformable": ([], ["model.semantic.conv=deformable"], ("semantic_head.layers.",), [
        "fresh, not in the file: 8 tensors: semantic_head.layers (8)",
        "in the file, not used: 4 tensors: semantic_head.layers (4)"]),
    "to dilated": (["model.semantic.conv=deformable"], [], ("semantic_head.layers.",), [
        "fresh, not in the file: 4 tensors: semantic_head.layers (4)",
        "in the file, not used: 8 tensors: semantic_head.layers (8)"]),
    "with global average": ([], ["model.fpn_gap=true"], ("fpn.gap.",), [
        "fresh, not in the file: 2 tensors: fpn.gap (2)"]),
    "without global average": (["model.fpn_gap=true"], [], (), [
        "in the file, not used: 2 tensors: fpn.gap (2)"]),
    "deeper": ([], ["model.backbone.name=resnet34"], tuple(f"{STAGES}{block}." for block in MORE_BLOCKS), [
        "fresh, not in the file: 80 tensors: backbone (80, such as layer1.2.conv1.weight)"]),
    "shallower": (["model.backbone.name=resnet34"], [], (), [
        "in the file, not used: 80 tensors: backbone (80, such as layer1.2.conv1.weight)"]),
    "bottlenecks": ([], ["model.backbone.name=resnet50"], (STAGES, "fpn.inner_blocks."), [
        shape_line("backbone", 95, "backbone.layer1.0.conv1.weight", "16 x 16 x 3 x 3", "16 x 16 x 1 x 1"),
        shape_line("fpn.inner_blocks", 8, "fpn.inner_blocks.0.weight", "16 x 16 x 1 x 1", "16 x 64 x 1 x 1"),
        "fresh, not in the file: 165 tensors: backbone (165, such as layer1.0.conv3.weight)"]),
    "wider": ([], ["model.backbone.width=32"], ("pixel_", "backbone.", "fpn.inner_blocks."), [
        shape_line("backbone", 102, "backbone.conv1.weight", "16 x 3 x 7 x 7", "32 x 3 x 7 x 7"),
        shape_line("fpn.inner_blocks", 8, "fpn.inner_blocks.0.weight", "16 x 16 x 1 x 1", "16 x 32 x 1 x 1")]),
    "deformable stage": ([], ["model.backbone.deformable_from=5"], OFFSETS, [
        "fresh, not in the file: 4 tensors: backbone.layer4 (4, such as 0.conv2.offset.weight)"]),
    "to group norm": ([], ["model.backbone.norm=gn"], (), [
        "in the file, not used: 40 tensors: backbone (40, such as bn1.running_mean)"]),
    "to frozen norm": ([], ["model.backbone.norm=frozen_bn", "model.backbone.freeze_at=2"], (), []),
    "pyramid": ([], ["model.fpn_channels=8"], ("fpn.", "rpn.", "instance_head.fc6.", "instance_head.mask_layers.",
                "semantic_head.layers.0."), [
        shape_line("fpn", 16, "fpn.inner_blocks.0.weight", "16 x 16 x 1 x 1", "8 x 16 x 1 x 1"),
        shape_line(SHARED, 2, f"{SHARED}.weight", "16 x 16 x 3 x 3", "16 x 8 x 3 x 3"),
        shape_line("rpn", 6, "rpn.conv.weight", "16 x 16 x 3 x 3", "8 x 8 x 3 x 3"),
        shape_line("instance_head.box", 2, "instance_head.fc6.weight", "32 x 784", "32 x 392"),
        shape_line(MASKS, 2, f"{MASKS}.weight", "16 x 16 x 3 x 3", "16 x 8 x 3 x 3")]),
    "box channels": ([], ["model.instance.box_channels=24"], BOXES, [
        shape_line("instance_head.box", 8, "instance_head.fc6.weight", "32 x 784", "24 x 784")]),
    "box pool": ([], ["model.instance.box_pool=5"], BOXES[:1], [
        shape_line("instance_head.box", 2, "instance_head.fc6.weight", "32 x 784", "32 x 400")]),
    "mask size": ([], ["model.instance.mask_pool=7"], (), []),
    "mask layers": ([], ["model.instance.mask_layers=2"], ("instance_head.mask_layers.1.",), [
        "fresh, not in the file: 2 tensors: instance_head.mask_layers.1.0 (2)"]),
    "mask channels": ([], ["model.instance.mask_channels=8"], ("instance_head.mask_",), [
        shape_line("instance_head.mask", 6, f"{MASKS}.weight", "16 x 16 x 3 x 3", "8 x 16 x 3 x 3")]),
    "semantic channels": ([], ["model.semantic.channels=8"], ("semantic_head.",), [
        shape_line("semantic_head", 9, f"{SHARED}.weight", "16 x 16 x 3 x 3", "8 x 16 x 3 x 3")]),
}  # fmt: skip
"""Difference -> overrides of the file and of the model, prefixes of the tensors that stay fresh, and the lines after
the first. A bias stays fresh with its weight, and a norm with the convolution of its block."""


@pytest.mark.parametrize(("old", "new", "fresh", "lines"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_layers_that_fit_are_taken_and_the_others_named_by_part(tmp_path, old, new, fresh, lines):
    found = init(tmp_path, old, new)
    assert set(found.report.fresh) == names_of(found.now, *fresh)
    assert found.report.matched == []
    assert found.report.lines()[1:] == lines


def test_statistics_that_a_file_lacks_stay_fresh_where_training_learns_them(tmp_path):
    found = init(tmp_path, ["model.backbone.norm=gn"])
    expected = {name for name in names_of(found.now, "backbone.") if name.endswith(("running_mean", "running_var"))}
    assert set(found.report.fresh) == expected
    path = tmp_path / "file.pt"
    for norm in (["model.backbone.norm=frozen_bn"], ["model.backbone.freeze_at=2"]):
        with pytest.raises(ValueError, match=r"file\.pt: nothing in .* fits backbone\.bn1\.running_mean, .*freezes"):
            fill_from(path, found.file, norm)


@pytest.mark.parametrize(
    ("new", "warning"),
    [
        (["model.backbone.width=32"], "the file fills nothing of the backbone, the rest is random"),
        (["model.backbone.name=resnet50"], "the file fills only 0.16 % of the backbone, the rest is random"),
        (["model.backbone.name=resnet34"], None),
    ],
)
def test_a_backbone_of_which_less_than_half_is_filled_is_a_warning(tmp_path, new, warning):
    warnings = init(tmp_path, new=new).report.warnings
    assert len(warnings) == (warning is not None)
    assert all(
        line.startswith(f"{tmp_path}/file.pt: {warning} (model.backbone.weights is not used)") for line in warnings
    )


NOTHING = ["model.backbone.width=32", "model.fpn_channels=32", SEMANTIC, "model.semantic.channels=32"]


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (
            NOTHING,
            "nothing in this checkpoint of this project fits the model: backbone.conv1.weight is 16 x 3 x 7 x 7 in ",
        ),
        (["model.backbone.width=32", "model.backbone.norm=frozen_bn"], "nothing in this .* fits backbone.bn1.weight, "),
    ],
)
def test_if_nothing_fits_or_random_weights_would_be_frozen_the_model_is_not_changed(tmp_path, new, message):
    save(tmp_path / "file.pt")
    model = build(new, CLASSES, 2)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^{tmp_path}/file.pt: {message}"):
        fill(model, read_weights(tmp_path / "file.pt"), class_set(CLASSES))
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


def test_everything_at_once_still_fits_on_a_screen(tmp_path):
    new = [
        "model.backbone.name=resnet50",
        "model.backbone.norm=gn",
        "model.fpn_gap=true",
        "model.semantic.conv=deformable",
    ]
    new += ["model.fpn_channels=32", "model.semantic.channels=8", "model.instance.mask_channels=8", RATIOS + "[0.5, 1]"]
    found = init(tmp_path, new=new, new_classes={"cat": 0, "grass": 1, "Dog": 1, **{f"new {i}": 1 for i in range(40)}})
    assert all(len(line) < 250 for line in found.report.lines())
    assert found.report.loaded == [
        "pixel_mean", "pixel_std", "backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias",
        "instance_head.fc7.weight", "instance_head.fc7.bias",
    ]  # fmt: skip


def test_files_of_a_training_and_exported_checkpoints_are_taken_too(tmp_path):
    weights = save(tmp_path / "last.pt", training={"optimizer": {"state": {0: torch.zeros(1)}}, "iteration": 3})
    export_checkpoint(tmp_path / "last.pt", tmp_path / "slim.pt")
    for name in ("last.pt", "slim.pt"):
        assert fill_from(tmp_path / name, weights).report.fresh == []


def test_a_conversion_needs_the_architecture_of_the_file(tmp_path):
    save(tmp_path / "file.pt")
    config = parse_config(TINY, ["model.instance.box_channels=24"], source="tiny")
    with pytest.raises(
        ValueError, match=r"file\.pt: .* another architecture: 8 tensors .*, instance_head\.fc6\.weight"
    ):
        convert_weights(tmp_path / "file.pt", config, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_upsnet_train_prints_what_it_took(upsnet_command, checkpoint, tiny_yaml, tmp_path):
    changes = ["model.instance.box_channels=24", RATIOS + "[0.5, 1, 2, 3]", "model.backbone.width=32"]
    short = ["train.iterations=1", "train.warmup_iterations=0", "evaluate.panels=0", "evaluate.instance=false"]
    paths = ["--config", tiny_yaml, "--output", tmp_path / "run", "--init", checkpoint]
    code, out, err = upsnet_command("train", *paths, *changes, *short)
    assert code == 0, err
    assert out.splitlines()[:5] == [
        "checkpoint of this project: 25 of 147 tensors loaded",
        "4 tensors by anchor: 3 of 4 anchors of a cell taken, fresh: ratio 3",
        shape_line("backbone", 102, "backbone.conv1.weight", "16 x 3 x 7 x 7", "32 x 3 x 7 x 7"),
        shape_line("fpn.inner_blocks", 8, "fpn.inner_blocks.0.weight", "16 x 16 x 1 x 1", "16 x 32 x 1 x 1"),
        shape_line("instance_head.box", 8, "instance_head.fc6.weight", "32 x 784", "24 x 784"),
    ]
    assert f"warning: {checkpoint}: the file fills nothing of the backbone" in err
    code, _, err = upsnet_command("train", *paths[:2], "--output", tmp_path / "other", *paths[4:], *NOTHING)
    assert code == 2
    assert f"{checkpoint}: nothing in this checkpoint of this project fits the model" in err
