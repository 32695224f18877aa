"""The part of the page that shows images."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from upsnet.metrics.error_causes import CAUSES
from upsnet.report.collector import ImageRow, Ranked, ReportCollector
from upsnet.report.html import columns, css, legend, number, rgb, section
from upsnet.report.panels import CAUSE_COLORS, EDGE, EDGE_COLOR
from upsnet.report.statistics import Statistics


def images(collector: ReportCollector, stats: Statistics) -> str:
    """The worst and the best images with their pictures."""
    worst, best = collector.shown()
    bins = np.histogram(stats.image_pq, bins=20, range=(0, 100))[0].tolist()
    label = f"Histogram of the PQ of {len(stats.image_pq)} images"
    spread = columns([((css("accent"), float(count)),) for count in bins], label, ("0", "25", "50", "75", "100"))
    intro = "<p>No image has segments.</p>"
    if len(stats.image_pq):
        middle, low, high = (f"{f(stats.image_pq):.1f}" for f in (np.median, np.min, np.max))
        intro = (
            "<p>PQ of an image here: over all its segments as if they were of one class. "
            f"Median {middle}, from {low} to {high}.</p>{spread}"
        )
    colors = [(rgb(color), name) for name, color in ((*CAUSE_COLORS.items(), (EDGE, EDGE_COLOR)))]
    note = (
        '<p class="muted">Errors: coloured pixels belong to an error of that cause; grey ones are right, void or '
        "crowd. Click a picture to enlarge it; the arrow keys then change between the pictures of the image.</p>"
    )
    shots = [
        f"<h3>{title} ({len(shown)})</h3>" + "".join(_shot(image, collector.rows[image.key]) for image in shown)
        for title, shown in (("Worst images", worst), ("Best images", best))
        if shown
    ]
    return section("images", "Images", intro, *((note, legend(colors)) if shots else ()), *shots)


def picture_button(name: str, file_name: str, data: bytes) -> str:
    """HTML of a JPEG file that a click enlarges, with its name below."""
    return (
        f'<button type="button" class="panel"><img loading="lazy" alt="{escape(f"{name}: {file_name}")}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(data).decode()}"><span>{escape(name)}</span></button>'
    )


def _shot(image: Ranked, row: ImageRow) -> str:
    tp, fp, fn = row.counts
    causes = np.bincount(
        np.concatenate([row.truth["cause"], row.predicted["cause"]]).astype(np.int64) + 1, minlength=8
    )[1:]
    listed = ", ".join(f"{name} {int(n)}" for name, n in zip(CAUSES, causes.tolist(), strict=True) if n)
    panels = "".join(picture_button(name, row.file_name, data) for name, data in image.panels.items())
    facts = f"PQ {number(row.pq)}: {tp} found, {fn} missed, {fp} spurious." + (f" Causes: {listed}." if listed else "")
    return (
        f'<article class="shot"><h4>{escape(row.file_name)}</h4><p class="muted">{facts}</p>'
        f'<div class="panels">{panels}</div></article>'
    )
