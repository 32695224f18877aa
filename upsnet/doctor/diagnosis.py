"""The whole examination: every image of every split, then what only all of them together show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from tqdm import tqdm

from upsnet.categories import CategorySet
from upsnet.doctor.checks import CHECKS, Findings, Problem
from upsnet.doctor.coco_files import CocoFiles, category_differences, unnamed_files
from upsnet.doctor.duplicates import Twins, find_twins
from upsnet.doctor.images import CocoExaminer, Examiner, ImageFacts, PanopticDataset, SampleExaminer
from upsnet.doctor.segments import Segments, Use
from upsnet.doctor.statistics import anchor_coverage, class_balance, instance_sizes, size_histogram, void_share
from upsnet.io.images import ValueLimits
from upsnet.io.parallel import in_order
from upsnet.ops import id_maps, pieces

ANCHORS_MISS = 0.01
"""Of the instances."""
WEIGHTS = {"error": 2, "warning": 1, "info": 0}
"""Of levels, when images are chosen to look at."""


@dataclass(frozen=True)
class Source:
    """A split to examine: its files (COCO layout) or its reader, and what training makes of it."""

    data: CocoFiles | PanopticDataset
    use: Use = field(default_factory=Use)

    def examiner(self) -> Examiner:
        """What looks at its images."""
        if isinstance(self.data, CocoFiles):
            return CocoExaminer(self.data, self.use)
        return SampleExaminer(self.data, self.use)

    @property
    def num_skipped(self) -> int:
        """Images that the JSON lists and training never reads."""
        return self.data.num_skipped if isinstance(self.data, CocoFiles) else 0


@dataclass
class Split:
    """A split that has been examined; `facts` are in the order of `examiner`."""

    name: str
    source: Source
    examiner: Examiner
    facts: list[ImageFacts]

    @property
    def segments(self) -> list[Segments]:
        """Of the images that can be used."""
        return [facts.segments for facts in self.facts if facts.segments is not None]

    @property
    def void(self) -> float:
        """Share of the pixels of these images that belong to no segment."""
        sizes = [facts.size for facts in self.facts if facts.segments is not None and facts.size is not None]
        return void_share(self.segments, sizes)


@dataclass
class Diagnosis:
    """What was found.

    Attributes:
        twins: pictures that stand twice, with splits numbered as in `splits`.
        anchors: split -> `statistics.anchor_coverage`.
    """

    splits: list[Split]
    findings: Findings
    twins: list[Twins]
    anchors: dict[str, dict[str, Any] | None]

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        sizes = {s.name: instance_sizes(s.segments, s.examiner.categories.num_stuff)[0] for s in self.splits}
        balance = {s.name: class_balance(s.segments, s.examiner.categories) for s in self.splits}
        rows: dict[int, dict[str, Any]] = {}
        for split in self.splits:
            for c in split.examiner.categories.categories:
                row = rows.setdefault(c.id, {"id": c.id, "name": c.name, "isthing": int(c.is_thing)})
                row[split.name] = balance[split.name][c.id]
        return {
            "findings": self.findings.to_json(),
            "splits": {
                split.name: {
                    "images": len(split.facts) + split.source.num_skipped,
                    "usable_images": len(split.segments),
                    "segments": sum(len(one.channels) for one in split.segments),
                    "instances": len(sizes[split.name]),
                    "instance_sizes": size_histogram(sizes[split.name]),
                    "void": split.void,
                    "anchors": self.anchors[split.name],
                }
                for split in self.splits
            },
            "classes": list(rows.values()),
        }


def diagnose(
    sources: dict[str, Source],
    *,
    expected: CategorySet | None = None,
    same_data: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Examines a data set.

    Args:
        sources: the splits by name; the classes are learned from all but one that is called `val`.
        expected: the classes that every split must have; by default those of the first.
        same_data: the splits are the same files, which is said once instead of for every picture.
        workers: processes that read images; by default one per core.
        progress: show a bar.
    """
    id_maps.compiled(), pieces.compiled()  # once, before there are several processes
    findings, splits = Findings(), []
    for name, source in sources.items():
        examiner = source.examiner()
        bar = tqdm(in_order(examiner, workers), total=len(examiner), desc=name, disable=not progress, leave=False)
        splits.append(Split(name, source, examiner, list(bar)))
        findings.add(name, source.data.problems if isinstance(source.data, CocoFiles) else [])
        problems = (problem for facts in splits[-1].facts for problem in facts.problems)
        findings.add(name, problems, of=len(splits[-1].facts))
        for line in category_differences(expected or splits[0].examiner.categories, examiner.categories):
            findings.add(name, [Problem("categories-differ", line)])
    for name, problem in unnamed_files({n: s.data for n, s in sources.items() if isinstance(s.data, CocoFiles)}):
        findings.add(name, [problem])
    _value_ranges(splits, findings)
    _unseen_classes(splits, findings)
    anchors = {split.name: _anchors(split, findings) for split in splits}
    if same_data:
        findings.add(splits[-1].name, [Problem("same-data", splits[-1].name)])
    return Diagnosis(splits, findings, _twins(splits[:1] if same_data else splits, findings), anchors)


def _value_ranges(splits: Sequence[Split], findings: Findings) -> None:
    """Adds what images of more than 8 bits need, with the `data.value_range` that suits those of all splits."""
    deep = [(split, facts, facts.limits) for split in splits for facts in split.facts if facts.limits is not None]
    if not deep:
        return
    proposal = reduce(ValueLimits.union, (limits for _, _, limits in deep)).proposal()
    text = f"all images [{', '.join(f'{value:.10g}' for value in proposal)}]"
    for split, facts, limits in deep:
        if split.source.use.value_range is not None or (limits.are_16_bits and proposal == [0, 65535]):
            problem = Problem("picture-mode", facts.name, "more than 8 bits")
        else:
            check = "value-range-part" if limits.are_16_bits else "value-range-missing"
            problem = Problem(check, facts.name, f"{limits}; {text}")
        findings.add(split.name, [problem], of=len(split.facts))


def _unseen_classes(splits: Sequence[Split], findings: Findings) -> None:
    seen: dict[str, set[str]] = {}
    names: dict[str, None] = {}
    for split in splits:
        balance = class_balance(split.segments, split.examiner.categories)
        present = {c.name for c in split.examiner.categories.categories if balance[c.id]["segments"]}
        seen.setdefault("val" if split.name == "val" else "train", set()).update(present)
        names |= dict.fromkeys(c.name for c in split.examiner.categories.categories)
    if "train" in seen:
        for name in names:
            if name not in seen["train"]:
                only_in_val = name in seen.get("val", ())
                problem = Problem("class-only-in-val" if only_in_val else "class-unseen", name)
                findings.add(splits[0].name, [problem])


def _anchors(split: Split, findings: Findings) -> dict[str, Any] | None:
    use = split.source.use
    found = instance_sizes(split.segments, split.examiner.categories.num_stuff)
    coverage = anchor_coverage(*found, use.positive_iou, use.negative_iou)
    if coverage is not None and coverage["below_negative_iou"] > ANCHORS_MISS:
        for facts in split.facts:
            missed = 0 if facts.segments is None else int((facts.segments.best_iou < use.negative_iou).sum())
            findings.add(split.name, [Problem("anchors-miss", facts.name)] * missed, of=len(split.facts))
    return coverage


def _twins(splits: Sequence[Split], findings: Findings) -> list[Twins]:
    def read(split: int, row: int) -> Any:
        return splits[split].examiner.picture(row)

    twins = find_twins(
        [[facts.thumbnail for facts in split.facts] for split in splits],
        [[facts.digest for facts in split.facts] for split in splits],
        read,
    )
    for first, second, kind in twins:
        check = ("" if kind == "equal" else "near-") + "duplicate"
        check += "-in-split" if first[0] == second[0] else "-across-splits"
        others = splits[first[0]]
        detail = f"{others.name}: {others.facts[first[1]].name}"
        name = splits[second[0]].facts[second[1]].name
        findings.add(splits[second[0]].name, [Problem(check, name, detail)], of=len(splits[second[0]].facts))
    return twins


def most_troubled(split: Split, count: int) -> list[int]:
    """Numbers of `count` images, those with the worst problems first, then some from all over the split."""

    def rank(index: int) -> int:
        return max((WEIGHTS[CHECKS[problem.check].level] for problem in split.facts[index].problems), default=0)

    usable = [index for index, facts in enumerate(split.facts) if facts.can_be_drawn]
    troubled = sorted((index for index in usable if rank(index)), key=rank, reverse=True)[:count]
    rest = [index for index in usable if index not in set(troubled)]
    room = min(count - len(troubled), len(rest))
    spread = [rest[at] for at in np.linspace(0, len(rest) - 1, room).round().astype(int)] if room else []
    return troubled + spread
