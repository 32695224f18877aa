"""Real data sets in the forms that people have, and back."""

import shutil

import numpy as np
import pytest

from tests.convert import forms
from upsnet.data.coco import CocoPanoptic
from upsnet.metrics.score_files import evaluate_files


def read(root, split):
    return CocoPanoptic(root / split, root / "annotations" / f"panoptic_{split}.json")


@pytest.fixture
def fruits(real_data):
    return real_data / "fruits_nuts", read(real_data / "fruits_nuts", "val")


def convert_fruits(fruits, run_tool, folder, draw):
    root, truth = fruits
    samples = [truth[i] for i in range(len(truth))]
    forms.write_coco(samples, truth.categories, folder, draw, images=root / "val")
    args = ("--annotations", folder / "annotations.json", "--images", folder, "--background", "background")
    output = ("--split", "val", "--output", folder / "out", "--workers", 1)
    code, out, err = run_tool("datasets/convert.py", "coco", *args, *output)
    assert code == 0, err
    assert "0 instances completely covered by others, 0 regions without a pixel" in out
    data = read(folder / "out", "val")
    data.categories.require(truth.categories, source="converted")
    return samples, data


@pytest.mark.parametrize("draw", [lambda mask: forms.run_lengths(mask, compressed=True), forms.outlines])
def test_fruits_as_coco_instances_come_back_exactly(fruits, run_tool, tmp_path, draw):
    """As run lengths, and as outlines that run just inside the edges of the pixels."""
    samples, data = convert_fruits(fruits, run_tool, tmp_path, draw)
    for i, sample in enumerate(samples):
        forms.require_equal(data[i], sample, data.categories, fruits[1].categories)


def test_fruits_as_outlines_through_pixel_centres_lose_edges_only(fruits, run_tool, tmp_path):
    """What `cv2.findContours` gives: half a pixel too small all around. No segment is lost, PQ stays above 96."""
    samples, data = convert_fruits(fruits, run_tool, tmp_path, forms.contours)
    for i, sample in enumerate(samples):
        assert np.array_equal(data[i].classes, sample.classes)
        assert np.mean(data[i].segment_map != sample.segment_map) < 0.01
    gt, pred = (r / "annotations" / "panoptic_val.json" for r in (fruits[0], tmp_path / "out"))
    scores, problems = evaluate_files(gt, pred, progress=False, workers=1)
    assert not problems
    assert scores["panoptic"]["All"]["rq"] == 100
    assert scores["panoptic"]["All"]["pq"] > 96


def test_nuclei_as_one_mask_a_file_come_back_exactly(real_data, run_tool, tmp_path):
    truth = read(real_data / "nuclei", "val")
    samples = [truth[i] for i in range(6)]
    for sample in samples:
        folder = tmp_path / "bowl" / sample.file_name[:-4]
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        shutil.copy(real_data / "nuclei" / "val" / sample.file_name, folder / "images")
        for k, (_, mask, _) in enumerate(forms.things_of(sample, truth.categories)):
            forms.save(folder / "masks" / f"{k}.png", mask.astype(np.uint8) * 255)
    args = ("--images", tmp_path / "bowl", "--label", "nucleus", "--background", "background")
    code, out, err = run_tool("datasets/convert.py", "masks", *args, "--output", tmp_path / "out", "--workers", 1)
    assert code == 0, err
    data = read(tmp_path / "out", "train")
    assert len(data) == 6
    data.categories.require(truth.categories, source="converted")
    by_name = {s.file_name: s for s in samples}
    for sample in (data[i] for i in range(6)):
        forms.require_equal(sample, by_name[sample.file_name], data.categories, truth.categories)
    assert "overlap: 0 pixels" in out


def test_coco_crowds_come_back_as_one_crowd_of_each_class(real_data, run_tool, tmp_path):
    """The official sample: 133 classes with gaps in their ids, three crowds, stuff from a map of classes."""
    root = real_data / "coco_sample"
    truth = CocoPanoptic(root / "val2017", next((root / "annotations").glob("panoptic_*.json")))
    samples = [truth[i] for i in range(len(truth))]
    forms.write_coco(
        samples, truth.categories, tmp_path, lambda m: forms.run_lengths(m, compressed=False), root / "val2017"
    )
    for s in samples:
        forms.save(
            (tmp_path / "stuff" / s.file_name).with_suffix(".png"), forms.stuff_map(s, truth.categories, offset=100)
        )
    stuff = ",".join(f"{100 + i}={c.name}" for i, c in enumerate(truth.categories.categories) if not c.is_thing)
    args = ("--annotations", tmp_path / "annotations.json", "--images", tmp_path, "--semantic", tmp_path / "stuff")
    code, _, err = run_tool("datasets/convert.py", "coco", *args, "--stuff", stuff, "--output", tmp_path / "out")
    assert code == 0, err
    data = read(tmp_path / "out", "train")
    for i, sample in enumerate(samples):
        forms.require_equal(data[i], sample, data.categories, truth.categories)
    things = [{c.id: c.name for c in d.categories.categories if c.is_thing} for d in (data, truth)]
    assert things[0] == things[1], "ids of the JSON are kept"
