"""A diagnosis in words: a few lines about each split, and a table of findings, errors first.

Every share comes with a verdict, `fine` or `act`, and what to do.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from upsnet.doctor.checks import Finding
from upsnet.doctor.config_file import commands
from upsnet.doctor.diagnosis import Diagnosis
from upsnet.doctor.proposal import Proposal
from upsnet.doctor.segments import own_size
from upsnet.doctor.verdicts import (
    SMALLEST,
    judge_anchors,
    judge_finding,
    judge_sizes,
    judge_training_classes,
    judge_val_classes,
    judge_void,
)

NAMES = 3
"""Shown of each finding."""


def describe(diagnosis: Diagnosis, width: int = 120) -> str:
    """The text for a screen of `width` columns."""
    lines = _wrapped(_splits(diagnosis), width)
    findings = list(diagnosis.findings)
    if findings:
        columns = max(len(finding.check.name) for finding in findings)
        lines += ["", f"{'level':8s} {'check':{columns}s} {'split':6s} {'count':>7s} {'images':>7s} verdict  first"]
        for finding in findings:
            lines += _row(finding, columns, width)
    counts = diagnosis.findings.counts()
    return "\n".join([*lines, "", f"kinds of findings: {counts['error']} errors, {counts['warning']} warnings"])


def describe_proposal(proposal: Proposal, path: Path, width: int = 120) -> str:
    """The text about a config that was written to `path`: what the data still need, and the next commands."""
    values = {key: value for key, value, _ in proposal.values}
    backbone, crop = values["model.backbone"], values["data.augment.crop_size"]
    named = f"{backbone['name']} of width {backbone['width']}" if "width" in backbone else backbone["name"]
    lines = [
        f"written: {path}, a config for {proposal.summary}",
        f"images with a short side of {values['data.test_short_side']}, crops of {crop[1]} x {crop[0]}, "
        f"{named}, {values['train.iterations']} iterations of "
        f"{values['train.batch_size']} images",
        *map(str, proposal.advice),
    ]
    train, measure = commands(path)
    return "\n".join([*_wrapped(lines, width), f"measure time and memory: {measure}", f"train: {train}"])


def _wrapped(lines: Iterable[str], width: int) -> list[str]:
    indent = " " * 4
    return [
        row for line in lines for row in textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
    ]


def _row(finding: Finding, columns: int, width: int) -> list[str]:
    check, names = finding.check, [str(problem) for problem in finding.first[:NAMES]]
    names += ["..."] if finding.count > len(names) else []
    share = f"{finding.images / finding.of:.1%}" if finding.of else ""
    verdict = "act" if judge_finding(finding).fact else "fine"
    head = f"{check.level:8s} {check.name:{columns}s} {finding.split:6s} {finding.count:7d} {share:>7s} {verdict:7s}  "
    rows = textwrap.wrap(", ".join(names), max(20, width - len(head)), break_on_hyphens=False) or [""]
    lines = [head + rows[0], *(" " * len(head) + row for row in rows[1:])]
    return lines + textwrap.wrap(
        f"{check.text} -> {check.remedy}", width, initial_indent=" " * 9, subsequent_indent=" " * 9
    )


def _splits(diagnosis: Diagnosis) -> list[str]:
    values = diagnosis.to_json()
    without_config = {split.name for split in diagnosis.splits if split.source.use.network_size is own_size}
    has_stuff = any(not row["isthing"] for row in values["classes"])
    lines = []
    for name, split in values["splits"].items():
        lines.append(
            f"{name}: {split['usable_images']} of {split['images']} images can be used, {split['segments']} segments, "
            f"{split['instances']} instances"
        )
        if split["instances"]:
            rows = split["instance_sizes"]
            shares = ", ".join(
                f"{row['from']}+: {row['instances'] / split['instances']:.0%}" for row in rows if row["instances"]
            )
            small = sum(row["instances"] for row in rows if row["from"] < SMALLEST) / split["instances"]
            verdict = judge_sizes(small, is_own_size=name in without_config)
            where = "in the images" if name in without_config else "at the network's size"
            lines.append(f"  sizes of instances {where}, px: {shares} -> {verdict}")
        anchors = split["anchors"]
        if anchors is not None:
            lines.append(
                f"  anchors: {anchors['below_positive_iou']:.1%} of the instances below positive_iou "
                f"{anchors['positive_iou']:g} (their best anchor alone is positive), "
                f"{anchors['below_negative_iou']:.1%} below negative_iou {anchors['negative_iou']:g} "
                f"-> {judge_anchors(anchors)}"
            )
        lines.append(f"  void: {split['void']:.1%} of the pixels -> {judge_void(split['void'], has_stuff=has_stuff)}")
    return lines + [
        _class_line(name, values["classes"], split["usable_images"]) for name, split in values["splits"].items()
    ]


def _class_line(name: str, classes: list[dict[str, Any]], images: int) -> str:
    rows = [row for row in classes if row.get(name, {}).get("pixels")]
    total = sum(row[name]["pixels"] for row in rows)
    most = sorted(rows, key=lambda row: -row[name]["pixels"])[:8]
    shares = ", ".join(f"{row['name']} {row[name]['pixels'] / total:.1%}" for row in most)
    objects = {row["name"]: row[name]["segments" if row["isthing"] else "images"] for row in classes if name in row}
    stuff = [row["name"] for row in classes if name in row and not row["isthing"]]
    verdict = judge_val_classes(objects) if name == "val" else judge_training_classes(objects, stuff, images)
    return f"{name}: {len(rows)} of {len(classes)} classes seen; of the labelled pixels: {shares} -> {verdict}"
