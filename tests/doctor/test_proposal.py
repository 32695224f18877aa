"""Proposed configs: the right values for data whose right values are known, and configs that load for any data."""

import logging
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from tests.doctor.planted import write_set
from upsnet.categories import CategorySet
from upsnet.categories.edits import ClassEdits
from upsnet.config import load_config, parse_config
from upsnet.data.loader import open_dataset
from upsnet.data.shapes import Shapes
from upsnet.data.transforms import fit_size
from upsnet.doctor.check_run import check_before_training
from upsnet.doctor.config_file import render, write_config
from upsnet.doctor.plan import Device
from upsnet.doctor.proposal import propose
from upsnet.doctor.screen import describe_proposal
from upsnet.doctor.segments import Segments
from upsnet.doctor.statistics import SplitStatistics
from upsnet.engine.optim import require_schedule
from upsnet.io.predictions import write_samples
from upsnet.models.build import model_limits

TWO_CORES = Device(2)
GPU = Device(16, 24_000_000_000, "GPU")
DATA = {
    split: {
        "format": "coco",
        "image_dir": f"mine/{split}",
        "annotation_file": f"mine/annotations/panoptic_{split}.json",
    }
    for split in ("train", "val")
}


def classes(*kinds):
    """Classes by their names: `car` is a thing, `-sky` is stuff."""
    rows = [{"id": n, "name": name.strip("-"), "isthing": int(name[0] != "-")} for n, name in enumerate(kinds, 1)]
    return CategorySet.from_json(rows, source="planted")


def image(size, *objects, name="image.jpg"):
    """An image (H, W) with (class channel, width, height) each, side by side from the top left."""
    channels, boxes, left = [], [], 0
    for channel, width, height in objects:
        boxes.append([left, 0, left + width, height])
        channels.append(channel)
        left = (left + 7) % max(1, size[1] - width)
    boxes = np.array(boxes, dtype=np.int32).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).astype(np.int32)
    channels = np.array(channels, dtype=np.int16)
    is_crowd = np.zeros(len(channels), dtype=bool)
    return name, size, Segments(channels, is_crowd, areas, boxes, 1.0, np.full(len(channels), np.nan, np.float32))


def statistics(categories, images, edits=None):
    named = [(f"{number}.jpg" if name == "image.jpg" else name, *rest) for number, (name, *rest) in enumerate(images)]
    return SplitStatistics.of(named, categories, edits or ClassEdits())


def propose_for(train, val=None, device=TWO_CORES, data=None, *, has_timm=False):
    data = data or (DATA if val is not None else {"train": DATA["train"], "val": DATA["train"]})
    return propose(train, val, data, device, source="planted", has_timm=has_timm)


def config_of(proposal):
    config = parse_config(proposal.to_dict(), source="proposal")
    require_schedule(config.train)
    return config


def facts(proposal):
    return [verdict.fact for verdict in proposal.advice]


def test_objects_that_exceed_a_crop_of_256_get_a_crop_that_holds_them():
    """Images of 512 x 512 with windows of 16 pixels and shops of 380: at 256 pixels the windows would be too small."""
    categories = classes("-wall", "window", "shop")
    images = [image((512, 512), (0, 512, 512), *[(1, 16, 16)] * 9, (2, 380, 200)) for _ in range(30)]
    proposal = propose_for(statistics(categories, images), statistics(categories, images[:5]))
    config = config_of(proposal)
    scale = config.data.test_short_side / 512
    assert 16 * scale >= 12
    assert config.data.augment.crop_size[0] >= min(380 * scale, config.data.test_short_side)
    assert not any("cut through" in fact for fact in facts(proposal))


def test_a_class_that_no_crop_can_hold_is_named_with_its_share():
    """A quarter of the trains are 1900 pixels long, in images where screws need more than 512; the others are short."""
    categories = classes("-wall", "screw", "train")
    trains = [(2, 1900, 300), *[(2, 100, 30)] * 3]
    images = [image((2000, 2000), (0, 2000, 2000), *[(1, 34, 34)] * 20, *trains) for _ in range(12)]
    train = statistics(categories, images)
    proposal = propose_for(train, train)
    assert config_of(proposal).data.test_short_side == 736, "34 pixels of 2000 become 12"
    (cut,) = [fact for fact in facts(proposal) if "cut through" in fact]
    assert cut.endswith("whole: train 25 %")


def test_testing_and_training_show_an_object_at_the_same_size():
    categories = classes("-floor", "cup")
    images = [image((300, 400), (0, 400, 300), *[(1, side, side) for side in (20, 30, 40)]) for _ in range(20)]
    config = config_of(propose_for(statistics(categories, images)))
    low, high = config.data.augment.jitter_scale
    crop = config.data.augment.crop_size[0]
    in_training = crop / 400 * (low * high) ** 0.5
    in_testing = config.data.test_short_side / 300
    assert in_training == pytest.approx(in_testing, rel=0.03)
    assert high / low == pytest.approx(16 / 9, rel=0.03)


def test_small_objects_enlarge_the_images_and_large_ones_shrink_them():
    categories = classes("-ground", "thing")
    sides = {}
    for object_side in (6, 120):
        images = [image((300, 300), (0, 300, 300), *[(1, object_side, object_side)] * 5) for _ in range(20)]
        sides[object_side] = config_of(propose_for(statistics(categories, images))).data.test_short_side
    assert sides == {6: 608, 120: 256}, "608 is the first multiple of 32 at which 6 pixels become 12"


def test_images_of_mixed_sizes_are_named():
    categories = classes("-ground", "thing")
    images = [image((side, side), (0, side, side), (1, side // 4, side // 4)) for side in (64, 200, 640, 1280)] * 3
    proposal = propose_for(statistics(categories, images))
    assert any("short sides from 64 to 1280 pixels, 20.0 times as large" in fact for fact in facts(proposal))
    same = [image((side, side), (0, side, side), (1, side // 4, side // 4)) for side in (200, 300)] * 3
    assert not any("short sides" in fact for fact in facts(propose_for(statistics(categories, same))))


def test_rare_classes_are_named_and_their_images_come_more_often():
    categories = classes("-ground", "apple", "walnut", "pear")
    images = [image((256, 256), (0, 256, 256), (1, 40, 40)) for _ in range(97)]
    images += [image((256, 256), (0, 256, 256), (2, 40, 40), (1, 30, 30)) for _ in range(3)]
    train = statistics(categories, images)
    proposal = propose_for(train, statistics(categories, images[:20]))
    assert "fewer than 10 training objects: walnut 3, pear 0" in facts(proposal)
    assert "not scored, because val has none: walnut, pear" in facts(proposal)
    assert config_of(proposal).data.repeat_threshold == 0.1
    assert [tuple(row) for row in proposal.classes] == [
        ("ground", "stuff", 100, 20), ("apple", "thing", 100, 20), ("walnut", "thing", 3, 0), ("pear", "thing", 0, 0),
    ]  # fmt: skip
    generated = {split: {"format": "shapes", "num_images": 100} for split in DATA}
    assert config_of(propose_for(train, train, data=generated)).data.repeat_threshold == 0


@pytest.mark.parametrize(
    ("kinds", "heads"), [(("-a", "-b"), "semantic"), (("a", "b"), "instance"), (("-a", "b"), "both")]
)
def test_heads_are_those_that_the_classes_can_feed(kinds, heads):
    images = [image((128, 128), (0, 64, 64), (1, 50, 40)) for _ in range(12)]
    config = config_of(propose_for(statistics(classes(*kinds), images)))
    assert config.model.heads == heads


def test_a_single_split_says_that_scores_mean_nothing(tmp_path):
    images = [image((128, 128), (0, 128, 128), (1, 50, 40)) for _ in range(12)]
    proposal = propose_for(statistics(classes("-a", "b"), images))
    assert facts(proposal)[0].startswith("train and val are the same images")
    text = render(proposal, tmp_path / "mine.yaml")
    assert "# The same images as in training" in text
    assert "--split-val 0.2" in text
    assert [row.in_val for row in proposal.classes] == [None, None]


def test_crops_of_training_images_in_val_are_named_with_the_way_to_split():
    categories = classes("-a", "b")
    content = ((64, 64), (0, 64, 64), (1, 20, 20))
    train = [image(*content, name=f"{number}_scaled_0_png.rf.{number:032x}.jpg") for number in range(12)]
    val = [image(*content, name=f"{number}_scaled_1_png.rf.{number + 77:032x}.jpg") for number in range(4)]
    proposal = propose_for(statistics(categories, train), statistics(categories, val))
    (verdict,) = [one for one in proposal.advice if "originals" in one.fact]
    assert verdict.fact.startswith("4 of 4 val images")
    assert "--group-by '^(.+?)[_.-]scaled[_-]?\\d+'" in verdict.action


def test_slots_follow_the_fullest_image():
    categories = classes("-ground", "cell")
    images = [image((256, 256), (0, 256, 256), *[(1, 20, 20)] * count) for count in (3, 64, 5, 4)]
    config = config_of(propose_for(statistics(categories, images)))
    assert config.model.instance.max_detections == 80
    assert config.model.rpn.post_nms >= 2 * 80
    crowded = [image((256, 256), (0, 256, 256), *[(1, 20, 20)] * 400)]
    proposal = propose_for(statistics(categories, crowded))
    assert config_of(proposal).model.instance.max_detections == 300
    assert "an image has 400 instances, and the model finds at most 300" in facts(proposal)


def test_very_long_objects_get_more_aspect_ratios():
    categories = classes("-ground", "stick")
    images = [image((400, 400), (0, 400, 400), (1, 160, 36), (1, 36, 160), (1, 120, 25)) for _ in range(10)]
    config = config_of(propose_for(statistics(categories, images)))
    assert config.model.rpn.aspect_ratios == (0.25, 0.5, 1.0, 2.0, 4.0)


def test_a_cpu_gets_a_run_of_minutes_and_a_gpu_a_larger_model():
    categories = classes("-ground", "thing")
    images = [image((600, 800), (0, 800, 600), (1, 60, 60), (1, 200, 150)) for _ in range(3000)]
    train, val = statistics(categories, images), statistics(categories, images[:50])
    small, large = (config_of(propose_for(train, val, device)) for device in (TWO_CORES, GPU))

    def pixels(config):
        return config.train.iterations * config.train.batch_size * np.prod(config.data.augment.crop_size)

    assert pixels(small) <= 700e6, "700 million pixels take two cores at most 22 minutes"
    assert (small.model.backbone.name, small.model.backbone.width) == ("resnet18", 32)
    assert large.model.backbone.name == "resnet50"
    assert large.data.test_short_side >= 600, "a GPU sees the images at their own size"
    assert pixels(large) > 5 * pixels(small)
    less = config_of(propose_for(train, val, Device(16, 8_000_000_000, "small GPU")))
    assert np.prod(less.data.augment.crop_size) * less.train.batch_size < pixels(large) / large.train.iterations


def test_random_weights_are_never_frozen():
    images = [image((128, 128), (0, 128, 128), (1, 50, 40)) for _ in range(12)]
    for device in (TWO_CORES, GPU):
        backbone = config_of(propose_for(statistics(classes("-a", "b"), images), device=device)).model.backbone
        assert (backbone.weights, backbone.freeze_at, backbone.norm) == (None, 0, "gn")


def test_few_images_of_8_bits_get_pretrained_weights_where_timm_is_installed():
    images = [image((128, 128), (0, 128, 128), (1, 50, 40)) for _ in range(12)]
    few = statistics(classes("-a", "b"), images)
    for device in (TWO_CORES, GPU):
        proposal = propose_for(few, device=device, has_timm=True)
        config = config_of(proposal)
        backbone = config.model.backbone
        assert (backbone.name, backbone.weights, backbone.freeze_at) == ("timm/tf_efficientnet_lite0", "pretrained", 0)
        assert config.train.optimizer == "adamw"
        assert "timm/tf_efficientnet_lite0, " in describe_proposal(proposal, Path("mine.yaml"))
    deep = {**DATA, "value_range": [0, 4095]}
    many = statistics(classes("-a", "b"), images * 200)
    for proposal in (propose_for(few, data=deep, has_timm=True), propose_for(many, has_timm=True)):
        assert config_of(proposal).model.backbone.name == "resnet18"


def test_changed_classes_are_counted_as_the_model_sees_them():
    images = [image((128, 128), (0, 128, 64), (1, 50, 40), (2, 30, 30)) for _ in range(12)]
    edits = ClassEdits(merge={"vehicle": ("car", "bus")}, drop=("sky",))
    train = statistics(classes("-sky", "car", "bus"), images, edits)
    assert [c.name for c in train.categories.categories] == ["vehicle"]
    assert train.objects_of_class().tolist() == [24]


def test_without_a_usable_image_there_is_no_proposal():
    with pytest.raises(ValueError, match="planted: no image of train can be used"):
        propose_for(statistics(classes("-a", "b"), []))


def random_split(rng):
    """Images of 64 to 2000 pixels with objects of 8 to 1000 pixels of 1 to 5 classes."""
    num_things, num_stuff = int(rng.integers(1, 6)), int(rng.integers(0, 3))
    categories = classes(*[f"-s{n}" for n in range(num_stuff)], *[f"t{n}" for n in range(num_things)])
    images = []
    for _ in range(int(rng.integers(2, 12))):
        short = np.exp(rng.uniform(np.log(64), np.log(1000)))
        size = (int(short), int(short * rng.uniform(1, 2)))[:: 1 if rng.random() < 0.5 else -1]
        objects = []
        for _ in range(int(rng.integers(1, 30))):
            side = np.exp(rng.uniform(np.log(8), np.log(1000)))
            shape = [int(np.clip(side * np.exp(rng.normal(0, 0.3)), 4, limit)) for limit in size[::-1]]
            objects.append((int(rng.integers(num_stuff, num_stuff + num_things)), *shape))
        images.append(image(size, *objects))
    return statistics(categories, images)


@pytest.mark.parametrize("seed", range(12))
def test_any_data_get_a_config_that_loads_and_whose_anchors_cover_the_objects(seed, tmp_path, caplog):
    """Anchors cover an object if one has more than the negative IoU: then it is not taught as background.

    Objects below 8 pixels are smaller than 2 x 2 cells of the finest level, so that no anchor fits them well. Where the
    largest objects are 100 times as long as the smallest, no size shows both well, and some stay below.
    """
    split = random_split(np.random.default_rng(seed))
    for device in (TWO_CORES, GPU):
        proposal = propose_for(split, split, device)
        path = tmp_path / f"{device.gpu_memory}.yaml"
        write_config(path, proposal)
        with caplog.at_level(logging.WARNING):
            config = load_config(path)
        assert config == config_of(proposal)
        assert not caplog.records
        limits, things = model_limits(config.model), split.instances
        best, sides = [], []
        for number, size in enumerate(split.sizes.tolist()):
            height, width = fit_size(tuple(size), config.data.test_short_side, config.data.test_max_side)
            factors = np.array([width / size[1], height / size[0]] * 2)
            boxes = torch.from_numpy((things.boxes[things.image == number] * factors).astype(np.float32))
            best.append(limits.best_iou(boxes, (height, width)))
            sides.append((boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt())
        covered = torch.cat(best) >= limits.negative_iou
        assert covered.float().mean() >= 0.85
        assert covered[torch.cat(sides) >= 8].float().mean() >= 0.95


def write_shapes(root, **counts):
    for split, count in counts.items():
        data = Shapes(count, (96, 96), seed=len(split))
        write_samples((data[index] for index in range(count)), data.categories, root, split)


def test_a_data_set_folder_becomes_a_config_that_trains(upsnet_command, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UPSNET_DATASETS", raising=False)
    write_shapes(tmp_path / "datasets/mine", train=12, val=3)
    code, out, err = upsnet_command("doctor", "datasets/mine", "--write-config", "mine.yaml", "--workers", 1)
    assert code == 0, err
    assert "train: upsnet train --config mine.yaml --output runs/mine" in out
    with caplog.at_level(logging.WARNING):
        config = load_config("mine.yaml")
    assert not caplog.records
    assert config.data.train.image_dir == "mine/train"
    assert config.data.val.annotation_file == "mine/annotations/panoptic_val.json"
    assert config.model.heads == "both"
    assert 192 <= config.data.test_short_side <= 288, "half of the things are smaller than 18 of 96 pixels"
    datasets = [open_dataset(config.data, split) for split in ("train", "val")]
    assert check_before_training(config, *datasets, source="mine.yaml") == []
    text = (tmp_path / "mine.yaml").read_text()
    values = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len(values) < len(text.splitlines()) - len(values) + 20, "most values have a reason"
    small = ("train.iterations=2", "train.warmup_iterations=1", "train.batch_size=2", "data.num_workers=0")
    tiny = ("data.augment.crop_size=[64,64]", "data.test_short_side=64", "evaluate.panels=0", "train.precision=fp32")
    random = "model.backbone.weights=null"  # no download, where timm is installed
    code, _, err = upsnet_command("train", "--config", "mine.yaml", "--output", "runs/mine", *small, *tiny, random)
    assert code == 0, err
    assert (tmp_path / "runs/mine/model.pt").is_file()


def test_one_split_by_its_files_is_train_and_val(upsnet_command, tmp_path, monkeypatch):
    monkeypatch.setenv("UPSNET_DATASETS", str(tmp_path / "elsewhere"))
    write_set(tmp_path / "set")
    path = tmp_path / "mine.yaml"
    files = ("--images", tmp_path / "set/train", "--annotations", tmp_path / "set/annotations/panoptic_train.json")
    code, out, err = upsnet_command("doctor", *files, "--write-config", path, "--workers", 1)
    assert code == 0, err
    assert "act: train and val are the same images" in out
    config = load_config(path)
    assert config.data.train == config.data.val
    assert config.data.train.image_dir == str(tmp_path / "set/train"), "absolute, because it is not below the data root"


def test_a_config_keeps_its_data_section(upsnet_command, tmp_path, tiny_yaml):
    path = tmp_path / "mine.yaml"
    code, _, err = upsnet_command("doctor", "--config", tiny_yaml, "--write-config", path, "--workers", 1)
    assert code == 0, err
    written, given = load_config(path), load_config(tiny_yaml)
    assert (written.data.train, written.data.val) == (given.data.train, given.data.val)
    assert written.train != given.train


def test_changed_classes_stay_in_the_config(upsnet_command, tmp_path, tiny_yaml):
    write_set(tmp_path / "set")
    sources = [
        f"data.{split}={{format: coco, image_dir: {tmp_path}/set/{split}, "
        f"annotation_file: {tmp_path}/set/annotations/panoptic_{split}.json}}"
        for split in ("train", "val")
    ]
    path = tmp_path / "mine.yaml"
    edits = "data.classes={merge: {pet: [cat, dog]}, drop: [sky]}"
    arguments = ("--write-config", path, "--workers", 1, *sources, edits)
    code, _, err = upsnet_command("doctor", "--config", tiny_yaml, *arguments)
    assert code == 0, err
    config = load_config(path)
    assert [c.name for c in open_dataset(config.data, "train").categories.categories] == ["grass", "pet"]
    assert re.search(r"# pet +thing +12 +6\n", path.read_text()), "two dogs and a cat in each of 4 and 2 images"


def test_images_of_more_than_8_bits_get_the_range_of_their_values(upsnet_command, tmp_path):
    write_set(tmp_path / "set")
    deep = tmp_path / "set/train/1.jpg"
    values = (cv2.imread(str(deep)).astype(np.uint16) * 16).clip(0, 4000)
    deep.write_bytes(cv2.imencode(".png", values)[1].tobytes())  # the content decides, not the suffix
    path = tmp_path / "mine.yaml"
    code, _, err = upsnet_command("doctor", tmp_path / "set", "--write-config", path, "--workers", 1)
    assert code == 0, err
    assert load_config(path).data.value_range == (0, 4095)


def test_a_corrected_copy_is_what_the_config_names(upsnet_command, tmp_path):
    write_set(tmp_path / "set")
    (tmp_path / "set/train/1.jpg").unlink()
    path, copy = tmp_path / "mine.yaml", tmp_path / "copy"
    code, _, _ = upsnet_command("doctor", tmp_path / "set", "--fix", copy, "--write-config", path, "--workers", 1)
    assert code == 1
    config = load_config(path)
    assert config.data.train.image_dir == str(copy / "train")
    open_dataset(config.data, "train")


def test_a_config_is_never_overwritten(upsnet_command, tmp_path):
    write_set(tmp_path / "set")
    path = tmp_path / "mine.yaml"
    path.write_text("keep me")
    code, _, err = upsnet_command("doctor", tmp_path / "set", "--write-config", path)
    assert code == 2
    assert "mine.yaml: exists, expected a new file for --write-config" in err
    assert path.read_text() == "keep me"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: no annotations/panoptic_train.json, expected a folder that `upsnet convert` wrote"),
        (("one", "two"), "expected one of: DIR, --config, or --images and --annotations"),
        (("one", "--config", "shapes_r18"), "expected one of: DIR, --config, or --images and --annotations"),
        (("one", "train.lr=1"), "key=value and --split need --config"),
        (("--config", "shapes_r18", "--split", "val", "--write-config", "x.yaml"), "--write-config needs both splits"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(upsnet_command, arguments, message):
    code, _, err = upsnet_command("doctor", *arguments)
    assert code == 2
    assert message in err


def test_names_cannot_leave_their_comment(tmp_path):
    categories = classes("-sky: {a: 1}", "a: b # c")
    content = ((128, 128), (0, 128, 128), (1, 50, 40))
    train = statistics(categories, [image(*content, name=f"a\x85train: 7\u2028_crop_{n}.jpg") for n in range(3)])
    proposal = propose(train, train, DATA, TWO_CORES, source="folder\u2028train: {iterations: 7}")
    path = tmp_path / "mine.yaml"
    write_config(path, proposal)
    assert load_config(path) == config_of(proposal)
    assert yaml.safe_load(path.read_text()) == proposal.to_dict()


@pytest.mark.parametrize(
    ("name", "short_side", "detections", "heads"), [("nuclei", 672, 130, "both"), ("fruits_nuts", 256, 20, "both")]
)
def test_real_sets_get_the_sizes_that_were_found_by_hand(
    upsnet_command, real_data, tmp_path, name, short_side, detections, heads
):
    """`nuclei_r18` has 672 and `fruits_r18` 256. The fullest images have 99 and 13 instances."""
    if not (real_data / name).is_dir():
        pytest.skip(f"no {name}")
    path = tmp_path / "mine.yaml"
    code, _, err = upsnet_command("doctor", real_data / name, "--write-config", path, "--workers", 1)
    assert code == 0, err
    config = load_config(path)
    assert config.data.train.image_dir == f"{name}/train"
    assert config.data.test_short_side == short_side
    assert config.model.heads == heads
    if not torch.cuda.is_available():
        assert config.data.augment.crop_size == (256, 256)
        assert config.model.instance.max_detections == detections
    datasets = [open_dataset(config.data, split) for split in ("train", "val")]
    assert check_before_training(config, *datasets, source="mine.yaml") == []
