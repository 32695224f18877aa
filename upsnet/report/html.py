"""Small pieces of HTML. Every text goes through `escape`; numbers are shown short and kept whole in `data-value`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape

from upsnet.categories import Category

DASH = "\N{EN DASH}"


def number(value: float | None, digits: int = 1) -> str:
    """A number as people read it; a dash for None."""
    return DASH if value is None else f"{value:,.{digits}f}"


def plural(count: int, one: str, many: str) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many}"


def no_cell() -> str:
    """The cell of a number that does not exist; it sorts below all."""
    return f'<td class="num" data-value="-1">{DASH}</td>'


def cell(value: float, text: str | None = None, *, extra: str = "", kind: str = "num") -> str:
    """A cell of a number; `text` is shown in its place, `extra` is HTML below it."""
    shown = (number(value) if isinstance(value, float) else f"{value:,}") if text is None else text
    return f'<td class="{kind}" data-value="{value!r}">{escape(shown)}{extra}</td>'


def bar(value: float, highest: float = 100.0) -> str:
    """A bar from 0 to `highest` that fills the width it is given."""
    width = 100 * value / highest if highest else 0
    return f'<span class="bar" aria-hidden="true"><i style="width:{width:.1f}%"></i></span>'


def meter(value: float, interval: Sequence[float] | None) -> str:
    """A bar from 0 to 100 with the interval as a whisker."""
    whisker = ""
    if interval is not None:
        low, high = interval
        whisker = f'<b style="left:{low:.2f}%;width:{max(high - low, 0.3):.2f}%"></b>'
    return f'<span class="meter" aria-hidden="true"><i style="width:{value:.2f}%"></i>{whisker}</span>'


def rgb(color: Sequence[int]) -> str:
    """A CSS colour of three integers 0..255."""
    red, green, blue = (int(v) for v in color)
    return f"rgb({red} {green} {blue})"


def css(name: str) -> str:
    """The CSS colour of a cause, or another one of style.css."""
    return f"var(--{name.replace(' ', '-')})"


def swatch(color: str) -> str:
    """A small square of a CSS colour."""
    return f'<span class="swatch" aria-hidden="true" style="background:{escape(color)}"></span>'


def class_swatch(category: Category) -> str:
    """A small square in a class's colour."""
    return swatch(rgb(category.color))


def stack(parts: Iterable[tuple[str, int]], *, large: bool = False) -> str:
    """Counts as shares of one bar: name (see `css`) and count of each part."""
    pieces = [
        f'<i style="flex:{count};background:{css(name)}" title="{escape(name)}: {count:,}"></i>'
        for name, count in parts
        if count
    ]
    return f'<div class="stack{" large" if large else ""}" aria-hidden="true">{"".join(pieces)}</div>'


def legend(items: Iterable[tuple[str, str]]) -> str:
    """CSS colours and what they mean."""
    rows = "".join(f"<li>{swatch(color)}{escape(text)}</li>" for color, text in items)
    return f'<ul class="legend">{rows}</ul>'


def table(
    name: str,
    caption: str,
    head: Sequence[str],
    rows: Iterable[str],
    *,
    text: Collection[str] = (),
    falling: str | None = None,
    sortable: bool = True,
    tall: bool = False,
) -> str:
    """A table in a container of its own that scrolls.

    Args:
        name: its id.
        caption: what it shows.
        head: column titles as text; the first column is that of the row headers.
        rows: `<tr>` elements.
        text: titles of columns that hold text.
        falling: title of the column by which the rows are sorted already.
        sortable: by click on the titles.
        tall: with a limited height.
    """
    cells = []
    for title in head:
        kind = ' class="text"' if title in text else ""
        if sortable:
            order = "descending" if title == falling else "none"
            button = f'<button type="button">{escape(title)}</button>'
            cells.append(f'<th scope="col"{kind} aria-sort="{order}">{button}</th>')
        else:
            cells.append(f'<th scope="col"{kind}>{escape(title)}</th>')
    kind, box = ("sortable" if sortable else "fixed"), ("scroll tall" if tall else "scroll")
    return (
        f'<div class="{box}" role="region" aria-label="{escape(caption)}" tabindex="0">'
        f'<table id="{name}" class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{''.join(cells)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def columns(parts: Sequence[Sequence[tuple[str, float]]], label: str, axis: Sequence[str]) -> str:
    """A column chart.

    Args:
        parts: of each column, from top to bottom: CSS colour and height, stacked.
        label: what the chart shows, for those who cannot see it.
        axis: texts below the chart, evenly spread.
    """
    highest = max((sum(height for _, height in column) for column in parts), default=0) or 1
    bars = "".join(
        "<div>"
        + "".join(f'<i style="height:{100 * h / highest:.2f}%;background:{color}"></i>' for color, h in column if h)
        + "</div>"
        for column in parts
    )
    ticks = "".join(f"<span>{escape(text)}</span>" for text in axis)
    return f'<div class="columns" role="img" aria-label="{escape(label)}">{bars}</div><div class="axis">{ticks}</div>'


def section(name: str, title: str, *content: str) -> str:
    """A section of the page."""
    heading = f'<h2 id="{name}-title">{escape(title)}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{"".join(content)}</section>'
