"""The check of an unpacked COCO."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from upsnet.categories import known_categories
from upsnet.io.predictions import write_samples
from upsnet.structures import Sample

SCRIPT = "datasets/prepare_coco.py"


@pytest.fixture
def root(tmp_path):
    """Two splits of two and one images."""
    image, ids = np.zeros((4, 6, 3), np.uint8), np.array([[0, 1, 1, 2, 2, 2]] * 4, dtype=np.int32)
    sample = Sample(image, ids, np.array([3, 60]), np.array([False, True]), 1, "000000000001.png")
    other = replace(sample, image_id=2, file_name="000000000002.png")
    write_samples([sample, other], known_categories("coco"), tmp_path / "coco", "train2017")
    write_samples([sample], known_categories("coco"), tmp_path / "coco", "val2017")
    return tmp_path / "coco"


def check(run_tool, root, *args):
    return run_tool(SCRIPT, "check", "--root", root, *args)


def test_a_partial_copy_without_gaps_passes_with_its_counts(run_tool, root):
    code, out, err = check(run_tool, root)
    assert code == 0, err
    assert "train2017: 2 images, 2 annotations" in out
    assert "panoptic_train2017.json has 2 images, expected 118,287: the copy is incomplete" in err
    assert "panoptic_val2017.json has 1 annotations, expected 5,000: the copy is incomplete" in err


def test_real_coco_passes(run_tool, real_data):
    code, out, err = check(run_tool, real_data / "coco_sample", "--splits", "val2017")
    assert code == 0, err
    assert "val2017: 2 images, 2 annotations" in out


def test_files_that_are_missing_or_of_another_size_are_named(run_tool, root):
    (root / "train2017" / "000000000002.png").unlink()
    Image.new("RGB", (3, 2)).save(root / "val2017" / "000000000001.png")
    (root / "annotations" / "panoptic_val2017" / "000000000001.png").write_bytes(b"no picture")
    code, _, err = check(run_tool, root)
    assert code == 2
    for name, text in (
        ("train2017/000000000002.png", "missing or unreadable, expected 6 x 4"),
        ("val2017/000000000001.png", "3 x 2, expected 6 x 4, as the JSON says"),
        ("annotations/panoptic_val2017/000000000001.png", "missing or unreadable, expected 6 x 4"),
    ):
        assert f"problem: {root / name}: {text}" in err
    assert f"error: {root}: 3 files are missing or differ from the JSON" in err


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("val2017", "unpack val2017.zip of cocodataset.org"),
        ("annotations/panoptic_val2017.json", "unpack panoptic_annotations_trainval2017.zip"),
        (
            "annotations/panoptic_val2017",
            "unpack annotations/panoptic_val2017.zip, which panoptic_annotations_trainval",
        ),
    ],
)
def test_a_part_that_is_not_unpacked_is_named(run_tool, root, name, remedy):
    (root / name).rename(root / "away")
    code, _, err = check(run_tool, root, "--splits", "val2017")
    assert code == 2
    assert f"{root / name}: missing; {remedy}" in err
    assert check(run_tool, root, "--splits", "train2017")[0] == 0


def test_other_categories_are_named(run_tool, root):
    path = root / "annotations" / "panoptic_val2017.json"
    document = json.loads(path.read_text())
    document["categories"][0]["name"] = "flag"
    path.write_text(json.dumps(document))
    code, _, err = check(run_tool, root)
    assert code == 2
    assert "panoptic_val2017.json: category id 92 is 'flag' (isthing 0), expected 'banner'" in err
