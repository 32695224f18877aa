"""Compares evaluations of the same images: differences of PQ with intervals, and the images that changed most.

A side is one configuration: one evaluation folder, or several folders of trainings with different seeds. The numbers of
a side are means over its runs. The intervals come from a paired bootstrap. Each resample draws images with replacement,
the same images for both sides and all runs. An interval is the middle 95 % of the differences of the resamples.

If a side has several runs, the intervals also contain the effect of other seeds. Runs differ for two reasons: their
seeds, and the choice of images, which affects each run differently. The resamples measure the second effect: it is the
variance of a run around the mean of the runs. The variance of the seeds is the variance between the runs minus that of
the images, and at least 0. Each resample adds a random number to the difference. The number is drawn from Student's t
distribution and scaled by the standard deviation that the seeds give the difference of the means.

Drawing runs with replacement does not work for the usual three runs: it counts the effect of the images twice, and
three runs are too few values to draw from. `tests/metrics/test_comparison.py` measures how often the intervals contain
a known difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from upsnet.categories import CategorySet
from upsnet.json_values import match_image_ids, number
from upsnet.metrics.bootstrap import FIELDS, LEVEL, RESAMPLES, SEED
from upsnet.metrics.document import FORMAT as METRICS_FORMAT
from upsnet.metrics.document import headlines
from upsnet.metrics.error_causes import CAUSES, mended_pq
from upsnet.metrics.panoptic_quality import mean
from upsnet.metrics.per_image import Evaluation, read_evaluation
from upsnet.metrics.schema import check_metrics
from upsnet.metrics.score_table import (
    EVERYTHING,
    SPURIOUS,
    Floats,
    Partition,
    ScoreTable,
    cause_sums,
    class_scores,
    drawn,
    group_scores,
    partition_sums,
    percentiles,
)
from upsnet.metrics.slices import Attributes, count_members, partitions_of
from upsnet.text import shown

VERDICTS = {
    "better": "B is better than A: the interval of the difference of PQ is above 0.",
    "worse": "B is worse than A: the interval of the difference of PQ is below 0.",
    "not shown": "No difference is shown: the interval of the difference of PQ contains 0.",
    "no interval": "There is no interval: the difference may be chance.",
}
FORMAT = 1
"""Format number of `compare.json`."""
PQ_TOLERANCE = 1e-6
"""Difference of PQ, in percent, that rounding may cause."""

Place = tuple[str, ...]
"""The keys that lead to a number in the result: ("All", "pq"), ("per_class", "7", "sq"), ..."""


@dataclass(frozen=True)
class Side:
    """One configuration: the evaluation of one training, or of several with different seeds."""

    runs: tuple[Evaluation, ...]

    @property
    def name(self) -> str:
        """The folders, as text to show."""
        return ", ".join(str(run.folder) for run in self.runs)

    @property
    def has_segments(self) -> bool:
        """Whether all runs list the segments of the images."""
        return all(run.categories is not None for run in self.runs)


def read_sides(folders: Sequence[Sequence[Path]]) -> list[Side]:
    """Reads evaluation folders, and checks that all hold the same images and classes.

    Args:
        folders: the folders of each side.

    Raises:
        FileNotFoundError, ValueError: a file is missing or unusable, images or classes differ, or a folder appears
            twice on a side.
    """
    for side in folders:
        resolved = [folder.resolve() for folder in side]
        if twice := [folder for folder, path in zip(side, resolved, strict=True) if resolved.count(path) > 1]:
            raise ValueError(
                f"{twice[0]}: appears twice on one side, expected each run once, because a copy has no other seed"
            )
    sides = [Side(tuple(read_evaluation(folder) for folder in side)) for side in folders]
    for run in (run for side in sides for run in side.runs):
        if run.metrics is not None and run.metrics.get("format") == METRICS_FORMAT:
            check_metrics(run.metrics, source=str(run.folder / "metrics.json"))
            _require_same_pq(run, run.metrics)
    first = sides[0].runs[0]
    return [Side(tuple(_aligned(run, first) for run in side.runs)) for side in sides]


def _require_same_pq(run: Evaluation, metrics: dict[str, Any]) -> None:
    """Checks that `per_image.json` and `metrics.json` of the current format are files of one evaluation."""
    if run.categories is None or metrics["panoptic"] is None:
        return
    sums = partition_sums(run.table(list(run.rows)), EVERYTHING, len(run.categories))[0]
    own, other = _known(group_scores(sums, run.categories)["All"][0, 0]), metrics["panoptic"]["All"]["pq"]
    if own != other and (own is None or other is None or abs(own - other) > PQ_TOLERANCE):
        raise ValueError(
            f"{run.folder}: per_image.json gives PQ {shown(own)} and metrics.json gives {shown(other)}, expected files "
            "of one evaluation; evaluate again"
        )


def _aligned(run: Evaluation, first: Evaluation) -> Evaluation:
    """Replaces image ids and channels of classes by those of the first evaluation.

    Ids may be written differently (7, "7"), and the classes may have another order.
    """
    ids = match_image_ids(run.rows, first.rows)
    known = set(ids.values())
    missing, extra = len(first.rows) - len(known), len(run.rows) - len(known)
    if missing or extra:
        absent = next((key for key in first.rows if key not in known), None)
        text = f" (the first is {shown(absent)})" if missing else ""
        raise ValueError(
            f"{run.folder}: lacks {missing} of the {len(first.rows)} images of {first.folder}{text} and has {extra} "
            "other images, expected evaluations of the same images"
        )
    categories, segments = run.categories, run.segments
    if categories is not None and first.categories is not None:
        first.categories.require(categories, source=str(run.folder))
        channel = np.array([first.categories.channels[category.id] for category in categories.categories])
        segments = {key: np.stack([channel[own[0].astype(np.int64)], *own[1:]]) for key, own in segments.items()}
        categories = first.categories
    return replace(
        run,
        rows={ids[key]: row for key, row in run.rows.items()},
        facts={ids[key]: replace(fact, image_id=ids[key]) for key, fact in run.facts.items()},
        categories=categories,
        segments={ids[key]: own for key, own in segments.items()},
    )


def compare(
    a: Side, b: Side, attributes: Attributes | None = None, *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Any]:
    """Compares side B with side A.

    Args:
        a, b: results of `read_sides`.
        attributes: attributes of the images, for slices in addition to the built-in ones.
        resamples, seed: of the bootstrap.

    Returns:
        - `All`, `Things`, `Stuff`: `pq`, `sq`, `rq`.
        - `per_class`: category id -> the same, and the name.
        - `slices`: attribute -> value -> the same for each group, and the numbers of images and true segments.
        - `causes`: cause of error -> `errors` (number of FN + FP) and `lost_pq` (the gain of PQ if the cause were
          fixed).
        - `others`: mIoU and AP.
        - `verdict`: a key of `VERDICTS`.
        - `images`: `image_id`, `file_name`, and `a`, `b` and `difference` of PQ of each image, the largest loss first.
        - `notes`: lines that say what is missing.

        Each score is an object with `a`, `b`, `difference` (b - a) and `interval` [low, high], in percent. A value is
        None if there is nothing to score, or if a file does not contain it. Intervals need two images.

    Raises:
        ValueError: the attributes name none of the images.
    """
    notes = _notes(a, b)
    if a.has_segments and b.has_segments:
        scores = _compare_segments(a, b, attributes, resamples, seed)
        notes += _notes_on_truth(a, b)
    else:
        scores = _compare_documents(a, b)
    return {
        "a": [str(run.folder) for run in a.runs],
        "b": [str(run.folder) for run in b.runs],
        "verdict": _verdict(scores["All"]["pq"]["interval"]),
        **scores,
        "others": _compare_headlines(a, b),
        "images": changed_images(a, b),
        "notes": notes,
    }


def _verdict(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "no interval"
    return "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "not shown"


def paired_differences(
    a: Sequence[ScoreTable],
    b: Sequence[ScoreTable],
    categories: CategorySet,
    partitions: Sequence[Partition] = (),
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[Place, dict[str, Any]]:
    """Computes the numbers of both sides, their differences, and the intervals of the differences.

    Args:
        a, b: the runs of each side, all of the same images in the same order.
        categories: the classes.
        partitions: for `slices`.
        resamples, seed: of the bootstrap.

    Returns:
        Keys in the result of `compare` -> `a`, `b`, `difference`, `interval`.
    """
    points = [_stacked([_numbers(run, categories, partitions) for run in side]) for side in (a, b)]
    resampled: list[list[dict[Place, Floats]]] = [[], []]
    for times in drawn(a[0].num_images, resamples, seed) if a[0].num_images > 1 else ():
        for side, blocks in zip((a, b), resampled, strict=True):
            blocks.append(_stacked([_numbers(run, categories, partitions, times) for run in side]))
    freedom = len(a) + len(b) - 2
    noise = np.random.default_rng((seed, 1)).standard_t(freedom, resamples) if freedom else np.zeros(resamples)
    result = {}
    for place in points[0]:
        left, right = (_known(_mean_of_runs(side[place])[0]) for side in points)
        interval = None
        if resampled[0]:
            draws = [np.concatenate([block[place] for block in blocks], axis=1) for blocks in resampled]
            spread = sum(_variance_of_seeds(p[place][:, 0], own) for p, own in zip(points, draws, strict=True))
            interval = percentiles(_mean_of_runs(draws[1]) - _mean_of_runs(draws[0]) + np.sqrt(spread) * noise, LEVEL)
        result[place] = _difference(left, right, interval)
    return result


def _stacked(runs: Sequence[dict[Place, Floats]]) -> dict[Place, Floats]:
    """Place -> [runs, R]."""
    return {place: np.stack([run[place] for run in runs]) for place in runs[0]}


def _mean_of_runs(values: Floats) -> Floats:
    """The means [R] over the runs that have a number; NaN where none has."""
    known = ~np.isnan(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def _variance_of_seeds(points: Floats, draws: Floats) -> float:
    """The part of the variance of a side's mean over its runs that comes from the seeds; 0 for one run.

    Args:
        points: [S], the number of each run.
        draws: [S, R], the same for each resample of the images.
    """
    kept = ~np.isnan(draws).any(0)
    if len(points) < 2 or np.isnan(points).any() or not kept.any():
        return 0.0
    own = draws[:, kept] - draws[:, kept].mean(0)
    of_images = own.var(1).sum() / (len(points) - 1)
    return max(0.0, float(points.var(ddof=1) - of_images)) / len(points)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _difference(a: float | None, b: float | None, interval: list[float] | None = None) -> dict[str, Any]:
    difference = None if a is None or b is None else b - a
    return {"a": a, "b": b, "difference": difference, "interval": None if difference is None else interval}


def _numbers(
    table: ScoreTable, categories: CategorySet, partitions: Sequence[Partition], times: Floats | None = None
) -> dict[Place, Floats]:
    """All numbers of a run, [R] each; NaN where there is nothing to score."""
    size = len(categories)
    sums = partition_sums(table, EVERYTHING, size, times)[0]
    found: dict[Place, Floats] = _of_groups((), sums, categories)
    values, occurs = class_scores(sums)
    for channel, category in enumerate(categories.categories):
        for row, name in zip(values, FIELDS, strict=True):
            found["per_class", str(category.id), name] = np.where(occurs[channel], row[channel], np.nan)
    for partition in partitions:
        for label, own in zip(partition.labels, partition_sums(table, partition, size, times), strict=True):
            found |= _of_groups(("slices", partition.name, label), own, categories)
    missed, spurious = cause_sums(table, size, times)
    gains = mended_pq(sums, missed, spurious) - found["All", "pq"]
    for code, cause in enumerate(CAUSES):
        found["causes", cause, "errors"] = missed[:, code].sum(0) + spurious[:, code].sum(0)
        found["causes", cause, "lost_pq"] = gains[code]
    return found


def _of_groups(place: Place, sums: Floats, categories: CategorySet) -> dict[Place, Floats]:
    groups = group_scores(sums, categories).items()
    return {(*place, group, name): row for group, rows in groups for name, row in zip(FIELDS, rows, strict=True)}


def _compare_segments(a: Side, b: Side, attributes: Attributes | None, resamples: int, seed: int) -> dict[str, Any]:
    first = a.runs[0]
    keys = sorted(first.rows, key=str)
    categories = first.categories
    assert categories is not None
    left, right = ([run.table(keys) for run in side.runs] for side in (a, b))
    partitions = partitions_of(left[0], [first.facts[key] for key in keys], categories, attributes)
    found = paired_differences(left, right, categories, partitions, resamples=resamples, seed=seed)
    result: dict[str, Any] = {"num_images": len(keys), "level": LEVEL, "resamples": resamples, "seed": seed}
    result |= _nested(found)
    for category in categories.categories:
        result["per_class"][str(category.id)] |= {"name": category.name, "isthing": int(category.is_thing)}
    for partition in partitions:
        images, segments = count_members(left[0], partition)
        rows = result["slices"].pop(partition.name)
        result["slices"][partition.name] = {
            label: {"images": images[number], "segments": segments[number], **rows[label]}
            for number, label in enumerate(partition.labels)
            if images[number]
        }
    return result


def _nested(found: dict[Place, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for place, value in found.items():
        inner = result
        for name in place[:-1]:
            inner = inner.setdefault(name, {})
        inner[place[-1]] = value
    return result


def _compare_documents(a: Side, b: Side) -> dict[str, Any]:
    """PQ, SQ and RQ as `metrics.json` gives them, without intervals."""
    sections = []
    for side in (a, b):
        for run in side.runs:
            if run.metrics is None:
                raise FileNotFoundError(
                    f"{run.folder / 'metrics.json'}: no such file, expected the one that belongs to the per_image.json "
                    "of format 1 there; evaluate again"
                )
            if not isinstance(run.metrics.get("panoptic"), dict):
                raise ValueError(
                    f"{run.folder / 'metrics.json'}: no section `panoptic`, expected scores of panoptic predictions"
                )
        sections.append([run.metrics["panoptic"] for run in side.runs if run.metrics is not None])

    def difference(*place: str) -> dict[str, Any]:
        left, right = (mean([_at(section, place) for section in side]) for side in sections)
        return _difference(left, right)

    classes = sections[0][0].get("per_class", {})
    if not isinstance(classes, dict) or not all(isinstance(row, dict) and "name" in row for row in classes.values()):
        raise ValueError(f"{a.runs[0].folder / 'metrics.json'}: per_class has no class names; evaluate again")
    return {
        "num_images": len(a.runs[0].rows),
        "level": None,
        "resamples": None,
        "seed": None,
        **{group: {name: difference(group, name) for name in FIELDS} for group in ("All", "Things", "Stuff")},
        "per_class": {
            key: {"name": str(row["name"]), **{name: difference("per_class", key, name) for name in FIELDS}}
            for key, row in classes.items()
        },
        "slices": {},
        "causes": {},
    }


def _at(section: dict[str, Any], place: Sequence[str]) -> float | None:
    found: Any = section
    for name in place:
        found = found.get(name) if isinstance(found, dict) else None
    return number(found)


def _compare_headlines(a: Side, b: Side) -> dict[str, Any]:
    """Compares mIoU and AP; empty unless each run has a `metrics.json` of the current format."""
    runs = [[run.metrics for run in side.runs] for side in (a, b)]
    if not all(metrics is not None and metrics.get("format") == METRICS_FORMAT for side in runs for metrics in side):
        return {}
    values = [[headlines(metrics) for metrics in side if metrics is not None] for side in runs]
    names = [name for name in values[0][0] if not name.startswith(("pq", "sq", "rq"))]
    means = [[mean([run.get(name) for run in side]) for side in values] for name in names]
    return {name: _difference(left, right) for name, (left, right) in zip(names, means, strict=True)}


def changed_images(a: Side, b: Side) -> list[dict[str, Any]]:
    """PQ of each image on both sides, means over the runs, the largest loss first.

    An image without scored segments has no PQ. If the other side has PQ for it, 100 is used, because the image has no
    error. Images without PQ on both sides are left out.
    """
    found = []
    for key in sorted(a.runs[0].rows, key=str):
        values = [[run.rows[key]["pq"] for run in side.runs] for side in (a, b)]
        if all(value is None for side in values for value in side):
            continue
        left, right = (sum(100 if value is None else value for value in side) / len(side) for side in values)
        names = [run.facts[key].file_name for side in (a, b) for run in side.runs if key in run.facts]
        row = {"image_id": key, "file_name": names[0] if names else "", "a": left, "b": right}
        found.append({**row, "difference": right - left})
    return sorted(found, key=lambda row: row["difference"])


def _notes(a: Side, b: Side) -> list[str]:
    notes = []
    if len(a.runs) != len(b.runs) and 1 in (len(a.runs), len(b.runs)):
        notes.append("One side has only one run: the intervals do not contain the effect of other seeds on that side")
    for run in (*a.runs, *b.runs):
        if run.categories is None:
            notes.append(
                f"{run.folder / 'per_image.json'} has format 1: no intervals, slices and causes of errors; evaluate "
                "again to get them"
            )
        if run.metrics is None:
            notes.append(f"{run.folder / 'metrics.json'}: no such file: mIoU and AP are not compared")
        elif run.metrics.get("format") != METRICS_FORMAT:
            notes.append(
                f"{run.folder / 'metrics.json'} has format {shown(run.metrics.get('format', 1))}: mIoU and AP are not "
                "compared, because their names have other meanings there"
            )
    return list(dict.fromkeys(notes))


def _notes_on_truth(a: Side, b: Side) -> list[str]:
    """A line for each run whose ground truth differs from that of the first run, as after a correction of labels."""
    first = a.runs[0]
    notes = []
    for run in (*a.runs[1:], *b.runs):
        changed = sum(_truth(first.segments[key]) != _truth(run.segments[key]) for key in first.rows)
        if changed:
            notes.append(
                f"{run.folder} has another ground truth than {first.folder} in {changed} of {len(first.rows)} images: "
                "the ground truth causes a part of the differences"
            )
    return notes


def _truth(segments: np.ndarray) -> list[tuple[float, float]]:
    """Class and area of the true segments, sorted."""
    kind, area, _, outcome, _ = segments
    true = outcome != SPURIOUS
    return sorted(zip(kind[true].tolist(), area[true].tolist(), strict=True))
