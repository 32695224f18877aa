"""The parts of the page that say what went wrong: the causes of the errors, and the classes that are confused."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.metrics.error_causes import CAUSES, POOR_IOU
from upsnet.report.html import bar, cell, class_swatch, css, legend, section, stack, swatch, table
from upsnet.report.statistics import Statistics

MAX_CONFUSIONS = 40
MAX_HEAT = 24
EXPLAINED = {
    "wrong class": "truth and prediction overlap with IoU above 1/2, but their classes differ",
    "split": "one truth is covered by several predictions of its class",
    "merge": "one prediction covers several truths of its class",
    "poor mask": f"class and place are right, but the IoU is only {POOR_IOU} to 0.5",
    "void": "the model abstained on more than half of the truth",
    "missed": "no prediction of the class means this truth; its pixels went to others",
    "spurious": "the prediction means no truth",
}


def error_causes(stats: Statistics, metrics: dict[str, Any], categories: CategorySet) -> str:
    """Causes of the errors: together, and for each class."""
    now = metrics["panoptic"]["All"]["pq"] or 0.0  # None without a segment, and then there is no error either
    missed, spurious = stats.missed.sum(0), stats.spurious.sum(0)
    both = missed + spurious
    order = np.argsort(-(stats.mended - now), kind="stable").tolist()
    highest = max(float((stats.mended - now).max()), 1e-9)
    rows = []
    for k in order:
        gain = float(stats.mended[k] - now) if both[k] else 0.0
        gained = cell(gain, f"{gain:+.1f}", extra=bar(max(0.0, gain), highest), kind="pq")
        share = cell(100 * float(both[k]) / max(1, int(both.sum())))
        rows.append(
            f'<tr data-cause="{CAUSES[k]}"><th scope="row">{swatch(css(CAUSES[k]))}{CAUSES[k]}</th>{gained}'
            f"{cell(int(missed[k]))}{cell(int(spurious[k]))}{share}"
            f'<td class="wrap">{EXPLAINED[CAUSES[k]]}</td></tr>'
        )
    head = ("Cause", "PQ gain if mended", "Missed (FN)", "Spurious (FP)", "Share of errors, %", _MEANING)
    lead = "<p><strong>No errors.</strong></p>"
    if both.sum():
        lead = (
            f"<p><strong>{int(missed.sum()):,} true segments are not found, and {int(spurious.sum()):,} predictions "
            f"match nothing. The cause that costs most: {CAUSES[order[0]]}; without it PQ would be "
            f"{stats.mended[order[0]]:.1f} in place of {now:.1f}.</strong></p>"
        )
    note = (
        '<p class="muted">Each error has one cause, the first that holds in the order wrong class, split, merge, poor '
        "mask, void, missed or spurious. Mended: each of its true segments counts as a match with the mean IoU of its "
        "class, and its spurious predictions are gone. Gains do not add up.</p>"
    )
    parts = [(name, int(count)) for name, count in zip(CAUSES, both.tolist(), strict=True)]
    chart = stack(parts, large=True) + legend(
        (css(n), f"{n} {int(c):,}") for n, c in zip(CAUSES, both.tolist(), strict=True)
    )
    return section(
        "errors",
        "Where the errors come from",
        lead,
        chart,
        table("cause-table", "Errors by cause", head, rows, text=(_MEANING,), falling=head[1]),
        note,
        "<h3>By class</h3>",
        _by_class(stats, categories),
    )


_MEANING = "What it means"
_ERROR_HEAD = ("Class", "Errors", "Shares", *(name.capitalize() for name in CAUSES))


def _by_class(stats: Statistics, categories: CategorySet) -> str:
    counts = stats.missed + stats.spurious
    rows = []
    for channel in np.argsort(-counts.sum(1), kind="stable").tolist():
        total = int(counts[channel].sum())
        if total:
            category = categories[channel]
            parts = [(n, int(c)) for n, c in zip(CAUSES, counts[channel].tolist(), strict=True)]
            cells = "".join(cell(count) for count in counts[channel].tolist())
            rows.append(
                f'<tr data-id="{category.id}"><th scope="row" title="{escape(category.name)}">{class_swatch(category)}'
                f"{escape(category.name)}</th>{cell(total)}"
                f'<td data-value="{total}">{stack(parts)}</td>{cells}</tr>'
            )
    return table("error-table", "Errors by class and cause: FN + FP", _ERROR_HEAD, rows, falling="Errors", tall=True)


def confusion(stats: Statistics, categories: CategorySet) -> str:
    """Which classes are taken for which: a list, and a heat map of the classes that are confused most."""
    matrix, names = stats.confusion, [c.name for c in categories.categories]
    off = matrix - np.diag(np.diag(matrix))
    totals = matrix.sum(1)
    intro = (
        '<p class="muted">True segments that a prediction covers with IoU above 1/2, by the class of that prediction. '
        "Segments without such a prediction are not in it. Shares are of the true class's segments that are.</p>"
    )
    if not off.any():
        return section("confusion", "Confusion of classes", intro, "<p>No class was taken for another.</p>")
    pairs = np.argwhere(off > 0)
    pairs = pairs[np.argsort(-off[tuple(pairs.T)], kind="stable")][:MAX_CONFUSIONS].tolist()
    rows = []
    for t, p in pairs:
        share = 100 * float(off[t, p]) / int(totals[t])
        true, guess = (f"{class_swatch(categories[c])}{escape(names[c])}" for c in (t, p))
        numbers = cell(int(off[t, p])) + cell(share, extra=bar(share), kind="pq")
        rows.append(f'<tr><th scope="row">{true}</th><td class="text">{guess}</td>{numbers}</tr>')
    head = ("True class", "Predicted as", "Segments", "Share, %")
    listed = table("confusion-table", "Top confusions", head, rows, text=head[1:2], falling=head[2], tall=True)
    involved = off.sum(0) + off.sum(1)
    wanted = np.sort(np.argsort(-involved, kind="stable")[: min(MAX_HEAT, int((involved > 0).sum()))])
    return section(
        "confusion",
        "Confusion of classes",
        intro,
        f'<div class="pair"><div>{listed}</div><div>{_heat_map(matrix, wanted, categories)}</div></div>',
    )


def _heat_map(matrix: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64], categories: CategorySet) -> str:
    rows = []
    for t in wanted.tolist():
        cells = []
        for p in wanted.tolist():
            count, share = int(matrix[t, p]), float(matrix[t, p]) / max(1, int(matrix[t].sum()))
            kind = "own" if t == p else "off"
            cells.append(f'<td class="{kind}" style="--v:{share:.3f}">{count or ""}</td>')
        rows.append(f'<tr><th scope="row">{escape(categories[t].name)}</th>{"".join(cells)}</tr>')
    head = ("true \\ predicted", *(categories[p].name for p in wanted.tolist()))
    caption = "Segments; the shade is the share of the true class"
    return table("confusion-map", caption, head, rows, sortable=False).replace('class="fixed"', 'class="heat"', 1)
