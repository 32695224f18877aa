"""The page of `upsnet compare`: one HTML file without other files, in the style of the report.

upsnet compare A B --output out --gt panoptic_val.json --images val     # out/compare.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from upsnet.metrics.comparison import VERDICTS
from upsnet.metrics.error_causes import CAUSES
from upsnet.report.gallery import picture_button
from upsnet.report.html import DASH, cell, css, number, plural, section, swatch, table
from upsnet.report.page import Identity, fill_template, identity_section

MAX_ROWS = 50
"""Maximum number of rows in the table of losses, and in the table of gains."""

PARTS = (
    ("overview", "Overview"),
    ("classes", "Classes"),
    ("slices", "Slices"),
    ("errors", "Errors"),
    ("images", "Images"),
)
_SCORE_HEAD = ("A", "B", "Difference of PQ", "95 % interval")
_INTERVAL = ("95 % interval",)


def render_comparison(
    results: Sequence[dict[str, Any]], images: Sequence[Mapping[Any, Mapping[str, bytes]]], identity: Identity
) -> str:
    """Renders the page as HTML.

    Args:
        results: results of `metrics.comparison.compare`, one for each side that is compared with A.
        images: for each result, image id -> name of the panel -> JPEG file.
        identity: what was compared.
    """
    parts, links = [], []
    for index, (result, shown) in enumerate(zip(results, images, strict=True)):
        prefix = f"c{index + 1}-" if index else ""
        links += [(f"{prefix}{name}", f"{title} {index + 1}" if index else title) for name, title in PARTS]
        parts += [
            _overview(result, prefix),
            _classes(result, prefix),
            _slices(result, prefix),
            _causes(result, prefix),
            _images(result, shown, prefix),
        ]
    subtitle = f"{plural(results[0]['num_images'], 'image', 'images')}; A: {', '.join(results[0]['a'])}"
    return fill_template(
        "Comparison of panoptic evaluations",
        identity.title,
        subtitle,
        [*links, ("identity", "Identity")],
        [*parts, identity_section(identity)],
    )


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign; a dash for None."""
    return DASH if value is None else f"{value:+.{digits}f}"


def ends(interval: Sequence[float] | None, digits: int = 2) -> str:
    """An interval of a difference; empty for None."""
    return "" if interval is None else f"{interval[0]:+.{digits}f} to {interval[1]:+.{digits}f}"


def _kind(score: dict[str, Any], is_cost: bool) -> str:
    """CSS class of a difference whose interval excludes 0: `gain` if B is better, else `loss`; otherwise `same`."""
    interval = score["interval"]
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "same"
    return "gain" if (interval[0] > 0) != is_cost else "loss"


def _delta(score: dict[str, Any], limit: float, is_cost: bool = False) -> str:
    """A bar from 0 to the difference with the interval as a whisker, on a scale from -limit to limit."""

    def place(value: float) -> float:
        return 50 + 50 * max(-1.0, min(1.0, value / limit))

    if score["difference"] is None:
        return ""
    low, high = sorted((50.0, place(score["difference"])))
    whisker = ""
    if score["interval"] is not None:
        left, right = map(place, score["interval"])
        whisker = f'<b style="left:{left:.2f}%;width:{max(right - left, 0.5):.2f}%"></b>'
    bar = f'<i class="{_kind(score, is_cost)}" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
    return f'<span class="delta" aria-hidden="true">{bar}{whisker}</span>'


def _limit(scores: Sequence[dict[str, Any]]) -> float:
    """The end of the scale of the bars: the largest absolute value of the differences and the ends of intervals."""
    values = [abs(value) for s in scores for value in (s["difference"], *(s["interval"] or ())) if value is not None]
    return max(values, default=0.0) or 1.0


def _difference_cells(score: dict[str, Any], limit: float, is_cost: bool = False) -> str:
    """Cells of A, B, the difference with its bar, and the interval. `is_cost`: a smaller value is better."""
    numbers = "".join(
        f'<td class="num" data-value="{-1.0 if score[side] is None else score[side]!r}">{number(score[side])}</td>'
        for side in ("a", "b")
    )
    value = score["difference"]
    if value is None:
        return f'{numbers}<td class="pq" data-value="0">{DASH}</td><td class="text muted" data-value="0"></td>'
    low = score["interval"][0] if score["interval"] else 0.0
    return (
        f"{numbers}{cell(value, signed(value), extra=_delta(score, limit, is_cost), kind='pq')}"
        f'<td class="text muted" data-value="{low!r}">{ends(score["interval"])}</td>'
    )


def _overview(result: dict[str, Any], prefix: str) -> str:
    tiles = []
    limit = _limit([result[group]["pq"] for group in ("All", "Things", "Stuff")])
    for group in ("All", "Things", "Stuff"):
        score = result[group]["pq"]
        if score["a"] is None and score["b"] is None:
            continue
        rest = "".join(
            f"<div><dt>{name.upper()}</dt><dd>{signed(result[group][name]['difference'])} "
            f'<span class="muted">[{ends(result[group][name]["interval"])}]</span></dd></div>'
            for name in ("sq", "rq")
            if result[group][name]["interval"] is not None
        )
        tiles.append(
            f'<div class="tile"><h3>PQ, {group.lower()}</h3>'
            f'<div class="big" data-difference="{group}.pq">{signed(score["difference"])}</div>'
            f'<div class="range">A {number(score["a"], 2)}, B {number(score["b"], 2)}; '
            f"95 % interval {ends(score['interval']) or 'not known'}</div>{_delta(score, limit)}<dl>{rest}</dl></div>"
        )
    rows = [
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td>{number(score["a"], 2)}</td>'
        f"<td>{number(score['b'], 2)}</td><td>{signed(score['difference'])}</td></tr>"
        for name, score in result["others"].items()
    ]
    others = (
        table(
            f"{prefix}other-table",
            "Other scores, without intervals",
            ("Score", "A", "B", "Difference"),
            rows,
            sortable=False,
        )
        if rows
        else ""
    )
    notes = "".join(f"<li>{escape(line)}</li>" for line in result["notes"])
    seeds = "; they also contain the effect of other seeds" if len(result["a"]) + len(result["b"]) > 2 else ""
    sides = "".join(f'<p class="muted side">{side.upper()}: {escape(", ".join(result[side]))}</p>' for side in "ab")
    method = (
        '<p class="muted" style="margin-top:12px">Scores are in percent. Differences are B - A. Intervals are the '
        "middle 95 % of the differences over resampled images, the same images for both sides"
        f"{seeds}. By chance, one of twenty classes that did not change has an interval without 0.</p>"
    )
    return section(
        f"{prefix}overview",
        "Is it better?",
        sides,
        f"<p><strong>{VERDICTS[result['verdict']]}</strong></p>",
        f'<div class="tiles">{"".join(tiles)}</div>',
        method,
        f"<ul>{notes}</ul>" if notes else "",
        others,
    )


def _classes(result: dict[str, Any], prefix: str) -> str:
    scores = result["per_class"].values()
    limit = _limit([row["pq"] for row in scores])
    shown = [row for row in scores if row["pq"]["a"] is not None or row["pq"]["b"] is not None]
    rows = [
        f'<tr><th scope="row" title="{escape(row["name"])}">{escape(row["name"])}</th>'
        f"{_difference_cells(row['pq'], limit)}"
        + "".join(
            f'<td class="num" data-value="{row[name]["difference"] or 0.0!r}">{signed(row[name]["difference"])}</td>'
            for name in ("sq", "rq")
        )
        + "</tr>"
        for row in sorted(shown, key=lambda row: row["pq"]["difference"] or 0.0)
    ]
    head = ("Class", *_SCORE_HEAD, "SQ", "RQ")
    return section(
        f"{prefix}classes",
        "Classes",
        table(
            f"{prefix}class-table", "Largest loss first; SQ and RQ: differences", head, rows, text=_INTERVAL, tall=True
        ),
    )


def _slices(result: dict[str, Any], prefix: str) -> str:
    found = [(name, label, row) for name, values in result["slices"].items() for label, row in values.items()]
    if not found:
        return section(f"{prefix}slices", "Slices", "<p>The evaluations do not list segments.</p>")
    limit = _limit([row["All"]["pq"] for _, _, row in found])
    rows = [
        f'<tr><th scope="row">{escape(label)}</th><td class="text">{escape(name.replace("_", " "))}</td>'
        f"{_difference_cells(row['All']['pq'], limit)}{cell(row['images'])}</tr>"
        for name, label, row in found
    ]
    head = ("Value", "Attribute", *_SCORE_HEAD, "Images")
    text = ("Attribute", *_INTERVAL)
    return section(
        f"{prefix}slices",
        "Slices",
        table(f"{prefix}slice-table", "PQ by part of the data", head, rows, text=text, tall=True),
    )


def _causes(result: dict[str, Any], prefix: str) -> str:
    if not result["causes"]:
        return section(f"{prefix}errors", "Causes of errors", "<p>The evaluations do not list segments.</p>")
    limit = _limit([result["causes"][name]["lost_pq"] for name in CAUSES])
    rows = []
    for name in CAUSES:
        errors, lost = result["causes"][name]["errors"], result["causes"][name]["lost_pq"]
        counts = "".join(cell(errors[side], number(errors[side], 0)) for side in ("a", "b"))
        rows.append(
            f'<tr><th scope="row">{swatch(css(name))}{name}</th>{counts}'
            f"{cell(errors['difference'], signed(errors['difference'], 0))}"
            f'<td class="text muted">{ends(errors["interval"], 0)}</td>'
            f"{_difference_cells(lost, limit, is_cost=True)}</tr>"
        )
    head = (
        "Cause",
        "Errors A",
        "Errors B",
        "More errors",
        "95 % interval",
        "Cost in A, PQ",
        "Cost in B, PQ",
        "Difference of cost",
        "Interval",
    )
    note = (
        '<p class="muted">Errors are missed true segments and spurious predictions. The cost of a cause is what PQ '
        "would gain if all its errors were fixed. A difference above 0 means that the cause costs B more.</p>"
    )
    listed = table(
        f"{prefix}cause-table", "Errors by cause", head, rows, text=("95 % interval", "Interval"), sortable=False
    )
    return section(f"{prefix}errors", "Causes of errors", note, listed)


def _images(result: dict[str, Any], images: Mapping[Any, Mapping[str, bytes]], prefix: str) -> str:
    changes = result["images"]
    lost = [row for row in changes if row["difference"] < 0]
    gained = [row for row in reversed(changes) if row["difference"] > 0]
    intro = (
        f"<p>PQ falls in {plural(len(lost), 'image', 'images')} and rises in {len(gained)} of "
        f"{result['num_images']:,}. PQ of an image: the mean over the classes in it.</p>"
    )
    by_id = {row["image_id"]: row for row in changes}
    shots = "".join(_shot(by_id[key], panels) for key, panels in images.items())
    note = (
        '<p class="muted">The largest loss first. In the panels of errors, coloured pixels belong to an error; grey '
        "pixels are correct, void or crowd. Click a panel to enlarge it; the arrow keys then show the other "
        "panels of the image.</p>"
    )
    tables = "".join(
        f"<div>{_image_table(f'{prefix}{name}-table', title, rows[:MAX_ROWS])}</div>"
        for name, title, rows in (("loss", "Largest losses", lost), ("gain", "Largest gains", gained))
        if rows
    )
    return section(
        f"{prefix}images", "Images", intro, f"{note}{shots}" if shots else "", f'<div class="pair">{tables}</div>'
    )


def _image_table(name: str, title: str, rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f'<tr><th scope="row" title="{escape(_title(row))}">{escape(_title(row))}</th>{cell(row["a"])}{cell(row["b"])}'
        f"{cell(row['difference'], signed(row['difference'], 1))}</tr>"
        for row in rows
    ]
    return table(name, title, ("Image", "A", "B", "Difference"), lines, tall=True)


def _title(row: dict[str, Any]) -> str:
    return row["file_name"] or str(row["image_id"])


def _shot(row: dict[str, Any], panels: Mapping[str, bytes]) -> str:
    buttons = "".join(picture_button(name, _title(row), data) for name, data in panels.items())
    facts = f"PQ {number(row['a'])} in A, {number(row['b'])} in B: {signed(row['difference'], 1)}"
    return (
        f'<article class="shot"><h4>{escape(_title(row))}</h4><p class="muted">{facts}</p>'
        f'<div class="panels sides">{buttons}</div></article>'
    )
