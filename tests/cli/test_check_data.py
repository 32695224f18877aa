"""`tools/check_data.py` as a user meets it, on planted faults and on real data."""

import json
import shlex
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.conftest import ROOT, TINY
from tests.data.cityscapes_tree import write_tree
from tests.doctor.planted import FAULTS, json_of, turned, write_set
from tests.test_real_data import coco_overrides
from upsnet.config import load_config
from upsnet.doctor.check_run import use_of
from upsnet.models.upsnet.build import build_anchors
from upsnet.ops.boxes import pairwise_iou


@pytest.fixture
def root(tmp_path):
    write_set(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def config(root, tmp_path):
    data = {
        split: {"format": "coco", "image_dir": str(root / split), "annotation_file": str(json_of(root, split))}
        for split in ("train", "val")
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], **data}}))
    return path


def test_errors_are_a_table_a_file_pictures_and_exit_code_1(run_tool, root, config, tmp_path):
    for fault in ("picture cut", "areas"):
        FAULTS[fault][0](root)
    turned(root, "train/2.jpg")
    (root / "train/3.jpg").unlink()
    start = ("check_data", "--config", config, "--workers", 1)
    code, out, _ = run_tool(
        *start,
        "--json",
        tmp_path / "r.json",
        "--overlays",
        tmp_path / "o",
        "--num-overlays",
        2,
        "--fix",
        tmp_path / "a copy, ü: 'x'",
    )
    assert code == 1
    lines = out.splitlines()
    table = [line.split()[:4] for line in lines if line.startswith(("error", "warning", "info"))]
    assert ["error", "picture-missing", "train", "1"] in table
    assert ["error", "picture-unreadable", "train", "1"] in table
    assert [row[0] for row in table] == sorted((row[0] for row in table), key=["error", "warning", "info"].index)
    assert any("3.jpg" in line for line in lines)
    report = json.loads((tmp_path / "r.json").read_text())
    assert {row["check"] for row in report["findings"]} >= {"picture-missing", "picture-unreadable", "area-wrong"}
    assert report["splits"]["train"]["anchors"]["instances"] == 6
    assert {p.parent.name for p in (tmp_path / "o").rglob("*.jpg")} == {"train", "val"}
    with Image.open(next((tmp_path / "o/train").glob("000_*.jpg"))) as picture:
        assert picture.size == (96, 64)
    start_of = "override to train on the copy: "
    fixed = [shlex.split(line.removeprefix(start_of))[0] for line in lines if line.startswith(start_of)]
    assert [text.partition("=")[0] for text in fixed] == ["data.train", "data.val"]
    assert run_tool(*start, *fixed)[0] == 0


def test_without_a_config(run_tool, root):
    code, out, err = run_tool("check_data", "--images", root / "train", "--annotations", json_of(root))
    assert code == 0, err
    assert "data: 4 of 4 images can be used, 20 segments, 12 instances" in out


def test_a_json_of_instances_is_told_from_a_panoptic_one(run_tool, root, config):
    path = json_of(root)
    document = json.loads(path.read_text())
    document["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}]
    document["categories"] = [{"id": 1, "name": "cat"}]
    path.write_text(json.dumps(document))
    for args in (
        ("check_data", "--images", root / "train", "--annotations", path),
        ("train", "--config", config, "--output", root / "run"),
        ("evaluate", "--gt", path, "--pred", path, "--output", root / "scores"),
    ):
        code, _, err = run_tool(*args)
        assert code == 2
        assert "a COCO instance JSON, expected a panoptic one" in err


def test_a_generated_data_set_is_examined(run_tool, tiny_yaml):
    code, out, err = run_tool("check_data", "--config", tiny_yaml, "--split", "val")
    assert code == 0, err
    assert "val: 3 of 3 images" in out


def test_cityscapes_is_examined_in_its_own_layout(run_tool, tmp_path, monkeypatch):
    monkeypatch.setenv("UPSNET_DATASETS", str(tmp_path))
    root = write_tree(tmp_path / "cityscapes")
    start = (
        "check_data",
        "--config",
        ROOT / "configs/cityscapes_r50.yaml",
        "--workers",
        1,
        "--overlays",
        tmp_path / "o",
    )
    code, out, err = run_tool(*start)
    assert code == 0, err
    assert "train: 3 of 3 images can be used" in out
    assert len(list((tmp_path / "o").rglob("*.jpg"))) == 6
    picture = next((root / "leftImg8bit/val").rglob("*.png"))
    picture.write_bytes(picture.read_bytes()[:200])
    code, out, _ = run_tool(*start)
    assert code == 1
    assert "sample-unreadable" in out
    assert "val: 2 of 3 images can be used" in out


def test_bad_arguments_have_exit_code_2(run_tool, root, config, tiny_yaml, tmp_path):
    for args in (
        [],
        ["--images", root],
        ["--config", config, "--images", root, "--annotations", json_of(root)],
        ["--images", root, "--annotations", json_of(root), "seed=1"],
        ["--config", config, "--panoptic-dir", root],
        ["--config", config, "--workers", 0],
        ["--config", tmp_path / "no.yaml"],
        ["--images", tmp_path / "no", "--annotations", json_of(root)],
        ["--images", root / "train", "--annotations", config],
        ["--config", config, "--fix", root],
        ["--config", tiny_yaml, "--fix", tmp_path / "new"],
    ):
        code, _, err = run_tool("check_data", *args)
        assert code == 2, args
        assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


def test_training_looks_at_the_data_first(run_tool, root, config, tmp_path):
    start = (
        "train",
        "--config",
        config,
        "--output",
        tmp_path / "run",
        "train.iterations=1",
        "train.warmup_iterations=0",
        "evaluate.instance=false",
    )
    (root / "annotations/panoptic_val/1.png").rename(tmp_path / "away.png")
    code, _, err = run_tool(*start)
    assert code == 2
    line = next(line for line in err.splitlines() if line.startswith("error: "))
    assert "panoptic_val/1.png: no such panoptic PNG" in line
    assert f"upsnet doctor --config {config}" in line
    assert not (tmp_path / "run").exists()
    (tmp_path / "away.png").rename(root / "annotations/panoptic_val/1.png")
    for fault in ("class nowhere", "stuff in two segments", "crowd on stuff"):
        FAULTS[fault][0](root)
    code, _, err = run_tool(*start, "model.instance.max_detections=2")
    assert code == 0, err
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 4
    assert all(
        any(part in line for line in warnings)
        for part in ("no segment of cat", "100.0% of the", "one stuff class", "marked iscrowd")
    )


REAL = {
    "nuclei": ("nuclei_r18", {("over-train-slots", "train")}),
    "fruits_nuts": ("fruits_r18", set()),
    "coco_sample": ("coco_r50", {("class-unseen", "train"), ("same-data", "val")}),
}


@pytest.mark.parametrize("name", REAL)
def test_of_real_data_nothing_is_said_that_is_not_true(run_tool, real_data, tmp_path, name):
    config_name, expected = REAL[name]
    options = coco_overrides(real_data) if name == "coco_sample" else []
    config = ROOT / "configs" / f"{config_name}.yaml"
    code, _, err = run_tool("check_data", "--config", config, "--json", tmp_path / "r.json", "--workers", 1, *options)
    assert code == 0, err
    report = json.loads((tmp_path / "r.json").read_text())
    assert {(row["check"], row["split"]) for row in report["findings"]} == expected
    loaded = load_config(config, options)
    for split in ("train", "val"):
        _verify(report, real_data, loaded, split)


def _verify(report, real_data, config, split):
    """Counts segments, pixels, pieces, instances and anchors again, from the files and by other means."""
    source = getattr(config.data, split)
    document = json.loads((real_data / source.annotation_file).read_text())
    things = {row["id"] for row in document["categories"] if row["isthing"]}
    use, anchors = use_of(config, split), build_anchors(config.model)
    pixels, segments, instances, missed = Counter(), 0, [], 0
    for annotation, ids in _maps(document, real_data, source):
        size = use.network_size(ids.shape)
        boxes = []
        for row in annotation["segments_info"]:
            mask = ids == row["id"]
            area = int(mask.sum())
            assert area == row["area"]
            assert area * size[0] * size[1] / ids.size >= 16
            pixels[row["category_id"]] += area
            segments += 1
            if row["category_id"] in things and not row["iscrowd"]:
                y, x = np.nonzero(mask)
                scale = np.array([size[1], size[0]] * 2) / np.array([ids.shape[1], ids.shape[0]] * 2)
                boxes.append(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) * scale)
                assert _holds_together(mask[y.min() : y.max() + 1, x.min() : x.max() + 1])
        crop = np.minimum(1, np.array(use.crop or size) / size).prod()
        instances.append((len(boxes), round(len(boxes) * crop)))
        missed += _below(boxes, anchors, size, use.positive_iou) if len(document["annotations"]) < 20 else 0
    found = report["splits"][split]
    total = sum(whole for whole, _ in instances)
    assert (found["segments"], found["instances"]) == (segments, total)
    if len(instances) < 20:  # laying out the anchors of many images would take long
        assert found["anchors"]["below_positive_iou"] * total == pytest.approx(missed, abs=1.01)
    assert {row["id"]: row[split]["pixels"] for row in report["classes"] if row[split]["pixels"]} == pixels
    if split == "train":
        over = [row["count"] for row in report["findings"] if row["check"] == "over-train-slots"]
        assert sum(over) == sum(cut > config.model.panoptic.train_slots for _, cut in instances)
        unseen = [row["count"] for row in report["findings"] if row["check"] == "class-unseen"]
        assert sum(unseen) == len(document["categories"]) - len(pixels)
    assert max(whole for whole, _ in instances) <= config.model.instance.max_detections


def _maps(document, real_data, source):
    """Every annotation with its ids, read by OpenCV and compared with its picture."""
    names = {row["id"]: row["file_name"] for row in document["images"]}
    for annotation in document["annotations"]:
        png = cv2.imread(str((real_data / source.annotation_file).with_suffix("") / annotation["file_name"])).astype(
            int
        )
        ids = png[..., 2] + 256 * png[..., 1] + 65536 * png[..., 0]
        path = real_data / source.image_dir / names[annotation["image_id"]]
        assert cv2.imread(str(path), cv2.IMREAD_IGNORE_ORIENTATION).shape[:2] == ids.shape
        assert {row["id"] for row in annotation["segments_info"]} == set(np.unique(ids).tolist()) - {0}
        yield annotation, ids


def _holds_together(mask):
    """The rule for scattered things, piece by piece."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    boxes = [(x, y, x + width, y + height) for x, y, width, height in stats[1:, :4].tolist()]
    main = boxes[int(areas.argmax())]
    length = max(main[2] - main[0], main[3] - main[1])
    gaps = [max(b[0] - main[2], main[0] - b[2], b[1] - main[3], main[1] - b[3]) for b in boxes]
    return not any(gap > length and 4 * area >= areas.sum() for gap, area in zip(gaps, areas.tolist(), strict=True))


def _below(boxes, anchors, size, threshold):
    """How many boxes no anchor of the whole grid overlaps enough."""
    if not boxes:
        return 0
    grid = torch.cat(anchors([(-(-size[0] // s), -(-size[1] // s)) for s in anchors.strides])[0])
    center = (grid[:, :2] + grid[:, 2:]) / 2
    grid = grid[(center < torch.tensor(size[::-1])).all(-1)]
    best = pairwise_iou(torch.tensor(np.array(boxes), dtype=torch.float32)[None], grid[None])[0].amax(1)
    return int((best < threshold).sum())
