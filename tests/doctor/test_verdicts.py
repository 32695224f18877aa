"""Every share on the screen says whether it is fine, and otherwise what to do."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.doctor.planted import FAULTS, json_of, write_set
from upsnet.doctor.checks import CHECKS, Finding, Problem
from upsnet.doctor.coco_files import read_coco
from upsnet.doctor.diagnosis import Source, diagnose
from upsnet.doctor.screen import describe
from upsnet.doctor.segments import Use
from upsnet.doctor.verdicts import (
    FINE,
    judge_anchors,
    judge_finding,
    judge_sizes,
    judge_training_classes,
    judge_val_classes,
    judge_void,
)


@pytest.mark.parametrize(
    ("verdict", "fact"),
    [
        (judge_sizes(0.05), ""),
        (judge_sizes(0.06), "6.0 % of the objects are smaller than 8 pixels"),
        (judge_sizes(0.06, is_own_size=True), "6.0 % of the objects are smaller than 8 pixels"),
        (judge_anchors({"below_negative_iou": 0.01, "below_positive_iou": 0.5}), ""),
        (judge_anchors({"below_negative_iou": 0.02, "below_positive_iou": 0.1}), "more than 1 % have no anchor"),
        (judge_anchors({"below_negative_iou": 0.0, "below_positive_iou": 0.6}), "more than 50 % have one positive"),
        (judge_training_classes({"cat": 10}), ""),
        (judge_training_classes({"sky": 4}, ["sky"], 6), ""),
        (judge_training_classes({"sky": 2}, ["sky"], 6), "fewer than 10 training objects: sky 2"),
        (judge_training_classes({"sky": 0}, ["sky"], 0), "fewer than 10 training objects: sky 0"),
        (judge_training_classes({"cat": 10, "dog": 9, "a\nb": 0}), "fewer than 10 training objects: dog 9, a\\nb 0"),
        (judge_val_classes({"cat": 1}), ""),
        (judge_val_classes({"cat": 1, "dog": 0}), "not scored, because val has none: dog"),
        (judge_void(0.25, has_stuff=True), ""),
        (judge_void(0.26, has_stuff=True), "more than 25 % of the pixels teach nothing"),
    ],
)
def test_a_figure_is_fine_up_to_its_threshold(verdict, fact):
    assert verdict.fact.startswith(fact) if fact else verdict == FINE
    assert bool(verdict.action) == bool(fact)


@pytest.mark.parametrize(
    ("check", "images", "acts"),
    [("png-missing", 1, True), ("segment-tiny", 1, False), ("segment-tiny", 10, True), ("picture-mode", 1000, False)],
)
def test_errors_and_frequent_warnings_are_acted_on(check, images, acts):
    finding = Finding(CHECKS[check], "train", of=1000, count=images, images=images, first=[Problem(check, "1.jpg")])
    assert bool(judge_finding(finding).fact) == acts


def report(root, **use):
    sources = {split: Source(read_coco(json_of(root, split), root / split), Use(**use)) for split in ("train", "val")}
    return describe(diagnose(sources, workers=1, progress=False), width=400)


def lines_with_shares(text):
    return [line for line in text.splitlines() if re.search(r"\d%", line)]


def test_every_line_with_a_share_has_a_verdict(tmp_path):
    write_set(tmp_path)
    FAULTS["mostly void"][0](tmp_path)
    FAULTS["PNG cut"][0](tmp_path)
    text = report(tmp_path, best_iou=lambda boxes, size: np.full(len(boxes), 0.29))
    lines = lines_with_shares(text)
    assert len(lines) >= 10
    for line in lines:
        assert re.search(r"-> (fine|act: .+; .+)$|%\s+(fine|act) ", line), line
    assert "anchors: 100.0%" in text
    assert "-> act: more than 1 % have no anchor near them" in text


def test_the_figures_of_sound_data_are_fine_but_for_the_few_objects(tmp_path):
    write_set(tmp_path)
    lines = lines_with_shares(report(tmp_path))
    few = "act: fewer than 10 training objects: cat 4, dog 8; annotate more"
    verdicts = [line.rpartition(" -> ")[2].partition(", or")[0] for line in lines]
    assert verdicts == ["fine", "fine", "fine", "fine", few, "fine"], "sizes and void of both splits, then the classes"
    assert any("void: 3.1% of the pixels" in line for line in lines), "two of 64 rows"


def test_void_is_the_share_of_the_pixels_without_a_segment(tmp_path):
    write_set(tmp_path)
    source = Source(read_coco(json_of(tmp_path), Path(tmp_path / "train")))
    diagnosis = diagnose({"train": source}, workers=1, progress=False)
    assert diagnosis.to_json()["splits"]["train"]["void"] == pytest.approx(2 / 64)
