"""The parts of the page that consist of numbers. Those of classes and groups are the ones of `metrics.json`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from upsnet.categories import Category, CategorySet
from upsnet.metrics.bootstrap import quality
from upsnet.report.html import (
    DASH,
    bar,
    cell,
    class_swatch,
    columns,
    css,
    legend,
    meter,
    no_cell,
    number,
    plural,
    section,
    table,
)
from upsnet.report.statistics import MAX_SUSPECTS, SCORE_BINS, SIZE_EDGES, SUSPECT_SCORE, Statistics

OTHERS = (
    ("semantic", "mIoU, semantic head", "miou"),
    ("semantic_from_panoptic", "mIoU, panoptic map", "miou"),
    ("instance_ap", "AP, instances", "ap"),
    ("panoptic_ap", "AP, panoptic segments", "ap"),
)
"""Section of `metrics.json`, its name on the page, and the key of its main score."""

FEW = " With so few images as here they are too narrow."


def overview(metrics: dict[str, Any], num_images: int) -> str:
    """The headline numbers."""
    tiles = []
    for group in ("All", "Things", "Stuff"):
        scores = metrics["panoptic"][group]
        if not scores["n"]:
            continue
        found = (metrics["panoptic"]["interval"] or {}).get(group) or {}
        rest = "".join(
            f'<div><dt>{key.upper()}</dt><dd data-metric="{group}.{key}" data-value="{scores[key]!r}">'
            f"{number(scores[key])}{_range(found.get(key), brackets=True)}</dd></div>"
            for key in ("sq", "rq")
        )
        for name, key in (("PQ-dagger", "pq_dagger"), ("Boundary PQ", "boundary")):
            value = (metrics["panoptic"].get(key) or {}).get(group)
            value = value["pq"] if isinstance(value, dict) else value
            rest += f"<div><dt>{name}</dt><dd>{number(value)}</dd></div>" if value is not None else ""
        tiles.append(
            f'<div class="tile"><h3>PQ, {group.lower()} ({plural(scores["n"], "class", "classes")})</h3>'
            f'<div class="big" data-metric="{group}.pq" data-value="{scores["pq"]!r}">{number(scores["pq"])}</div>'
            f'<div class="range">95 % interval {_range(found.get("pq")) or "needs two images"}</div>'
            f"{meter(scores['pq'], found.get('pq'))}<dl>{rest}</dl></div>"
        )
    for section_name, name, key in OTHERS:
        values = metrics[section_name]
        if values is not None and values[key] is not None:
            more = [(k, v) for k, v in values.items() if isinstance(v, float) and k != key]
            rest = "".join(
                f"<div><dt>{escape(k.replace('_', ' '))}</dt><dd>{number(v)}</dd></div>" for k, v in more[:5]
            )
            tiles.append(
                f'<div class="tile"><h3>{name}</h3><div class="big" data-metric="{section_name}" '
                f'data-value="{values[key]!r}">{number(values[key])}</div>{meter(values[key], None)}'
                f"<dl>{rest}</dl></div>"
            )
    few = FEW if num_images < 30 else ""
    note = (
        '<p class="muted" style="margin-top:12px">In percent. PQ = SQ x RQ per class: SQ is the mean IoU of matched '
        "segments, RQ the F1 score of finding them. Intervals: bootstrap over images; they tell how far the number may "
        f"move with other images of this kind, not with another training run.{few}</p>"
    )
    return section("headline", "Overview", f'<div class="tiles">{"".join(tiles)}</div>', note)


def _range(interval: Sequence[float] | None, *, brackets: bool = False) -> str:
    if interval is None:
        return ""
    text = f"{interval[0]:.1f}{DASH}{interval[1]:.1f}"
    return f' <span class="muted">[{text}]</span>' if brackets else text


def _kind(category: Category) -> str:
    return "thing" if category.is_thing else "stuff"


def class_table(metrics: dict[str, Any], categories: CategorySet) -> str:
    """PQ and its parts for each class, sortable, with a filter."""
    rows = []
    intervals = (metrics["panoptic"]["interval"] or {"per_class": {}})["per_class"]
    for category in categories.categories:
        s = metrics["panoptic"]["per_class"][str(category.id)]
        seen = s["tp"] + s["fp"] + s["fn"] > 0
        interval = (intervals.get(str(category.id)) or {}).get("pq")
        rows.append(
            f'<tr data-kind="{_kind(category)}" data-seen="{int(seen)}" data-id="{category.id}">'
            f'<th scope="row" title="{escape(category.name)}">{class_swatch(category)}{escape(category.name)}</th>'
            f'<td class="text">{_kind(category)}</td>{_share(s["pq"], kind="pq")}'
            f'<td class="text muted" data-value="{interval[0] if interval else -1.0}">{_range(interval)}</td>'
            f"{_share(s['sq'])}{_share(s['rq'])}"
            f"{cell(s['tp'])}{cell(s['fp'])}{cell(s['fn'])}{cell(s['iou'])}</tr>"
        )
    head = ("Class", "Kind", "PQ", "95 % interval", "SQ", "RQ", "TP", "FP", "FN", "Sum of IoU")
    shown = table("class-table", "PQ by class", head, rows, text=("Kind", "95 % interval"), tall=True)
    return section("classes", "Classes", _filters("class-table"), shown)


def _share(value: float | None, *, kind: str = "num") -> str:
    """A cell of a number in percent with its bar; a dash if there is nothing to score."""
    return no_cell() if value is None else cell(value, extra=bar(value), kind=kind)


def _filters(target: str) -> str:
    return (
        f'<form class="filters" data-for="{target}">'
        '<label>Search<input type="search" name="search" placeholder="class name"></label>'
        '<label>Kind<select name="kind"><option value="all">things and stuff</option>'
        '<option value="thing">things</option><option value="stuff">stuff</option></select></label>'
        '<label class="check"><input type="checkbox" name="seen" checked>hide classes without segments</label>'
        '<output aria-live="polite"></output></form>'
    )


def sizes_and_scores(stats: Statistics) -> str:
    """PQ and recall by size, and scores of matched and unmatched things."""
    edges = [0, *SIZE_EDGES]
    rows = []
    for i, (low, sums, scores) in enumerate(
        zip(edges, stats.size_sums, quality(stats.size_sums).tolist(), strict=True)
    ):
        _, tp, fp, fn = sums.tolist()
        name = f"{low}² to {edges[i + 1]}²" if i + 1 < len(edges) else f"{low}² and more"
        name = f"below {edges[1]}²" if i == 0 else name
        recall = 100 * tp / (tp + fn) if tp + fn else None
        pq = _share(scores[0] if tp + fp + fn else None, kind="pq")
        found = _share(recall, kind="pq")
        rows.append(f'<tr><th scope="row">{name}</th>{cell(int(tp + fn))}{found}{cell(int(fp))}{pq}</tr>')
    sizes = table("size-table", "By area in pixels, all classes pooled", _SIZE_HEAD, rows, sortable=False)
    return section(
        "sizes",
        "Sizes and scores",
        f'<div class="pair"><div><h3>Small and large segments</h3>{sizes}</div><div>{_scores(stats)}</div></div>',
    )


_SIZE_HEAD = ("Area", "True segments", "Found, %", "Spurious", "PQ (pooled)")


def _scores(stats: Statistics) -> str:
    if stats.score_bins is None:
        return "<h3>Scores of things</h3><p>The predictions have no scores.</p>"
    hit, miss = stats.score_bins.tolist()
    label = f"Histogram of the scores of {sum(hit)} matched and {sum(miss)} unmatched predicted things"
    chart = columns(
        [((css("missed"), float(m)), (css("accent"), float(h))) for h, m in zip(hit, miss, strict=True)],
        label,
        ("0", "0.25", "0.5", "0.75", "1"),
    )
    rows = [
        f'<tr><th scope="row">{i / SCORE_BINS:.2f}{DASH}{(i + 1) / SCORE_BINS:.2f}</th>{cell(h)}{cell(m)}</tr>'
        for i, (h, m) in enumerate(zip(hit, miss, strict=True))
        if h + m
    ]
    numbers = table("score-table", label, ("Score", "Matched", "Unmatched"), rows, sortable=False)
    return (
        "<h3>Scores of things</h3>"
        + legend(((css("accent"), f"matched {sum(hit):,}"), (css("missed"), f"unmatched {sum(miss):,}")))
        + chart
        + f"<details><summary>As a table</summary>{numbers}</details>"
        + _reliability(hit, miss)
    )


def _reliability(hit: Sequence[int], miss: Sequence[int]) -> str:
    """Compares the share of matched things in each bin of scores with the score."""
    centres = [100 * (i + 0.5) / SCORE_BINS for i in range(SCORE_BINS)]
    counts = [h + m for h, m in zip(hit, miss, strict=True)]
    shares = [100 * h / n if n else None for h, n in zip(hit, counts, strict=True)]
    gaps = [n * abs(s - c) for s, c, n in zip(shares, centres, counts, strict=True) if s is not None]
    bars = "".join(
        f'<div class="reliable"><i style="height:{share or 0.0:.2f}%"></i><b style="bottom:{centre:.2f}%"></b></div>'
        for share, centre in zip(shares, centres, strict=True)
    )
    label = "Share of the predicted things that are matched, by score; a mark shows the score"
    ticks = "".join(f"<span>{text}</span>" for text in ("0", "0.25", "0.5", "0.75", "1"))
    distance = sum(gaps) / sum(counts)
    return (
        "<h3>Reliability of the scores</h3>"
        '<p class="muted">Bars: the share of things with this score that are matched. Marks: the score. Their mean '
        f"distance is {distance:.1f} points (0: the scores are probabilities).</p>"
        f'<div class="columns" role="img" aria-label="{label}">{bars}</div><div class="axis">{ticks}</div>'
    )


_SUSPECT_HEAD = ("Image", "Predicted", "Score", "Label there", "Area, pixels")


def suspects(stats: Statistics, categories: CategorySet) -> str:
    """Lists confident predictions of things that the ground truth contradicts: labels to check."""
    note = (
        f'<p class="muted">Predicted things with a score of {SUSPECT_SCORE} or more that match no label: the label has '
        "another class, or there is none. Either the model or the label is wrong. The highest score first, at most "
        f"{MAX_SUSPECTS} rows.</p>"
    )
    rows = [
        f'<tr><th scope="row" title="{escape(s.file_name)}">{escape(s.file_name)}</th>'
        f'<td class="text">{class_swatch(categories[s.predicted])}{escape(categories[s.predicted].name)}</td>'
        f"{cell(s.score, f'{s.score:.2f}')}"
        f'<td class="text">{"none" if s.labelled is None else escape(categories[s.labelled].name)}</td>'
        f"{cell(s.area)}</tr>"
        for s in stats.suspects
    ]
    listed = table(
        "suspect-table", "Suspected label errors", _SUSPECT_HEAD, rows,
        text=("Predicted", "Label there"), falling="Score", tall=True,
    )  # fmt: skip
    return section("suspects", "Suspected label errors", note, listed if rows else "<p>No such prediction.</p>")


_SLICE_HEAD = ("Value", "Attribute", "PQ", "95 % interval", "Things", "Stuff", "Images", "True segments")


def slices(metrics: dict[str, Any]) -> str:
    """PQ by size of the objects, crowding, size of the image, and the attributes of the user's file."""
    rows = []
    for attribute, values in metrics["panoptic"]["slices"].items():
        for label, found in values.items():
            interval = ((found["interval"] or {}).get("All") or {}).get("pq")
            low = f"{interval[0]!r}" if interval else "-1.0"
            rows.append(
                f'<tr><th scope="row">{escape(label)}</th><td class="text">{escape(attribute.replace("_", " "))}</td>'
                f"{_share(found['All']['pq'], kind='pq')}"
                f'<td class="text muted" data-value="{low}">{_range(interval)}</td>'
                f"{_share(found['Things']['pq'])}{_share(found['Stuff']['pq'])}"
                f"{cell(found['images'])}{cell(found['segments'])}</tr>"
            )
    note = (
        '<p class="muted">Object size: the area of a true segment in pixels, small below 32², medium below 96². '
        "Crowding: the number of true things in the image. PQ is the mean over the classes that occur in the part.</p>"
    )
    table_ = table(
        "slice-table", "PQ by part of the data", _SLICE_HEAD, rows, text=("Attribute", "95 % interval"), tall=True
    )
    return section("slices", "Slices", note, table_ if rows else "<p>No image.</p>")
