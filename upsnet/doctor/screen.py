"""A diagnosis in words: a table of findings, errors first, and a few lines about each split."""

from __future__ import annotations

import textwrap
from typing import Any

from upsnet.doctor.checks import Finding
from upsnet.doctor.diagnosis import Diagnosis

NAMES = 3
"""Shown of each finding."""


def describe(diagnosis: Diagnosis, width: int = 120) -> str:
    """The text for a screen of `width` columns."""
    lines = [
        row for line in _splits(diagnosis.to_json()) for row in textwrap.wrap(line, width, subsequent_indent=" " * 4)
    ]
    findings = list(diagnosis.findings)
    if findings:
        columns = max(len(finding.check.name) for finding in findings)
        lines += ["", f"{'level':8s} {'check':{columns}s} {'split':6s} {'count':>7s} {'images':>7s}  first"]
        for finding in findings:
            lines += _row(finding, columns, width)
    counts = diagnosis.findings.counts()
    return "\n".join([*lines, "", f"kinds of findings: {counts['error']} errors, {counts['warning']} warnings"])


def _row(finding: Finding, columns: int, width: int) -> list[str]:
    check, names = finding.check, [str(problem) for problem in finding.first[:NAMES]]
    names += ["..."] if finding.count > len(names) else []
    share = f"{finding.images / finding.of:.1%}" if finding.of else ""
    head = f"{check.level:8s} {check.name:{columns}s} {finding.split:6s} {finding.count:7d} {share:>7s}  "
    rows = textwrap.wrap(", ".join(names), max(20, width - len(head)), break_on_hyphens=False) or [""]
    lines = [head + rows[0], *(" " * len(head) + row for row in rows[1:])]
    return lines + textwrap.wrap(
        f"{check.text} -> {check.remedy}", width, initial_indent=" " * 9, subsequent_indent=" " * 9
    )


def _splits(values: dict[str, Any]) -> list[str]:
    lines = []
    for name, split in values["splits"].items():
        lines.append(
            f"{name}: {split['usable_images']} of {split['images']} images can be used, {split['segments']} segments, "
            f"{split['instances']} instances"
        )
        if split["instances"]:
            shares = ", ".join(
                f"{row['from']}+: {row['instances'] / split['instances']:.0%}"
                for row in split["instance_sizes"]
                if row["instances"]
            )
            lines.append(f"  sizes of instances at the network's size, px: {shares}")
        anchors = split["anchors"]
        if anchors is not None:
            lines.append(
                f"  anchors: {anchors['below_positive_iou']:.1%} of the instances below positive_iou "
                f"{anchors['positive_iou']:g} (their best anchor alone is positive), "
                f"{anchors['below_negative_iou']:.1%} below negative_iou {anchors['negative_iou']:g}"
            )
    seen = {name: [row for row in values["classes"] if row.get(name, {}).get("pixels")] for name in values["splits"]}
    for name, rows in seen.items():
        total = sum(row[name]["pixels"] for row in rows)
        most = sorted(rows, key=lambda row: -row[name]["pixels"])[:8]
        shares = ", ".join(f"{row['name']} {row[name]['pixels'] / total:.1%}" for row in most)
        lines.append(f"{name}: {len(rows)} of {len(values['classes'])} classes seen; of the labelled pixels: {shares}")
    return lines
