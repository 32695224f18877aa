"""The report: one HTML file that needs nothing else.

upsnet evaluate --checkpoint runs/demo/model.pt --output out --report     # out/report.html
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

from upsnet.io.files import atomic_path
from upsnet.report import gallery, mistakes, sections
from upsnet.report.collector import ReportCollector
from upsnet.report.html import plural, section
from upsnet.report.statistics import summarize
from upsnet.version import __version__

DIGEST_LENGTH = 12
SECTIONS = (
    ("headline", "Overview"),
    ("classes", "Classes"),
    ("errors", "Errors"),
    ("confusion", "Confusion"),
    ("sizes", "Sizes and scores"),
    ("slices", "Slices"),
    ("suspects", "Suspected label errors"),
    ("images", "Images"),
    ("identity", "Identity"),
)
"""Ids and titles for the navigation."""


@dataclass(frozen=True)
class Identity:
    """What was evaluated, so that a page found years later still says it.

    Attributes:
        title: of the page.
        facts: names and values.
        config: the resolved config as YAML, if a model was evaluated.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    config: str | None = None


def digest(content: Path | str) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a file or a text."""
    if isinstance(content, str):
        return hashlib.sha256(content.encode()).hexdigest()[:DIGEST_LENGTH]
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_LENGTH]


def surroundings() -> list[tuple[str, str]]:
    """Date and versions."""
    versions = [f"upsnet {__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {metadata.version(name)}" for name in ("torch", "numpy")]
    program = Path(sys.argv[0]).name
    return [
        ("Date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("Versions", ", ".join(versions)),
        ("Command", " ".join(["upsnet" if program.startswith("__main__") else program, *sys.argv[1:]])),
    ]


def render(collector: ReportCollector, metrics: dict[str, Any], identity: Identity) -> str:
    """The page.

    Args:
        collector: has seen all images.
        metrics: the contents of `metrics.json`.
        identity: what was evaluated.

    Raises:
        ValueError: there are no panoptic metrics to report.
    """
    if metrics["panoptic"] is None:
        raise ValueError(
            "the report needs panoptic metrics, expected a model that predicts panoptic (model.heads=both)"
        )
    stats = summarize(collector)
    parts = (
        sections.overview(metrics, len(collector.rows)),
        sections.class_table(metrics, collector.categories),
        mistakes.error_causes(stats, metrics, collector.categories),
        mistakes.confusion(stats, collector.categories),
        sections.sizes_and_scores(stats),
        sections.slices(metrics),
        sections.suspects(stats, collector.categories),
        gallery.images(collector, stats),
        identity_section(identity),
    )
    counts = plural(len(collector.rows), "image", "images"), plural(len(collector.categories), "class", "classes")
    subtitle = f"{', '.join(counts)}, {identity.facts[0][1]}"
    return fill_template("Panoptic evaluation", identity.title, subtitle, SECTIONS, parts)


def fill_template(
    kicker: str, title: str, subtitle: str, links: Sequence[tuple[str, str]], parts: Sequence[str]
) -> str:
    """The page around the sections.

    Args:
        kicker, title, subtitle: texts of the head.
        links: id and title of each section, for the navigation.
        parts: the sections, as HTML.
    """
    files = resources.files("upsnet.report")
    text = {name: (files / name).read_text() for name in ("template.html", "style.css", "script.js")}
    return Template(text["template.html"]).substitute(
        kicker=escape(kicker),
        title=escape(title),
        subtitle=escape(subtitle),
        nav="".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in links),
        style=text["style.css"],
        script=text["script.js"],
        sections="\n".join(parts),
    )


def write_report(path: Path, collector: ReportCollector, metrics: dict[str, Any], identity: Identity) -> None:
    """Writes the page atomically (see `render`)."""
    text = render(collector, metrics, identity)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def identity_section(identity: Identity) -> str:
    """What was evaluated, when, and with which versions."""
    rows = [*identity.facts, *surroundings()]
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    config = (
        f'<details><summary>Resolved config</summary><pre tabindex="0">{escape(identity.config)}</pre></details>'
        if identity.config is not None
        else ""
    )
    return section("identity", "Identity", f'<dl class="facts">{facts}</dl>{config}')
