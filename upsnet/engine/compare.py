"""Compares evaluation folders: the differences of scores with intervals, as JSON and as a page.

| file | content |
| --- | --- |
| `compare.json` | `comparisons`: the result of `metrics.comparison.compare` for each other side |
| `compare.html` | the same as a page, with images if the ground truth is given |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upsnet.io.files import atomic_path, write_json
from upsnet.io.panoptic_json import PanopticJson
from upsnet.metrics.comparison import FORMAT, Side, compare, read_sides
from upsnet.metrics.slices import read_attributes
from upsnet.report.compare_images import PREDICTIONS, draw_images
from upsnet.report.compare_page import render_comparison
from upsnet.report.page import Identity

SHOWN_PROBLEMS = 10
"""Lines of the page about images that cannot be shown."""

Folders = Path | str | Sequence[Path | str]


def compare_evaluations(
    a: Folders,
    *others: Folders,
    output: Path | str | None = None,
    truth: Path | str | None = None,
    truth_dir: Path | str | None = None,
    image_dir: Path | str | None = None,
    report_images: int = 8,
    slices: Path | str | None = None,
) -> list[dict[str, Any]]:
    """Compares evaluations of the same images with the evaluation `a`.

    Args:
        a: folder that `upsnet evaluate` wrote, or the folders of several trainings with different seeds.
        others: the sides to compare with `a`, each like `a`.
        output: folder for `compare.json` and `compare.html`; None writes nothing.
        truth: COCO-panoptic JSON of the ground truth, for the images on the page.
        truth_dir: folder of its PNGs; by default the JSON's path without `.json`.
        image_dir: folder of the images to draw on.
        report_images: number of images on the page: two thirds with the largest losses, one third with the largest
            gains.
        slices: CSV file with attributes of the images (`metrics.slices`).

    Returns:
        The result of `metrics.comparison.compare` for each of `others`, in percent.

    Raises:
        FileNotFoundError, ValueError: a file is missing or unusable, or the evaluations are not of the same images and
            classes; one line says what to change.
    """
    sides = read_sides([_paths(a), *(_paths(side) for side in others)])
    attributes = None if slices is None else read_attributes(Path(slices))
    results = [compare(sides[0], side, attributes) for side in sides[1:]]
    if output is None:
        return results
    shown_truth = None if truth is None else PanopticJson(Path(truth), None if truth_dir is None else Path(truth_dir))
    folder = None if image_dir is None else Path(image_dir)
    images = [
        _draw(sides[0], side, result, shown_truth, folder, report_images)
        for side, result in zip(sides[1:], results, strict=True)
    ]
    write_json(Path(output) / "compare.json", {"format": FORMAT, "a": results[0]["a"], "comparisons": results})
    facts = [
        ("A", sides[0].name),
        *((f"B{number}" if len(sides) > 2 else "B", side.name) for number, side in enumerate(sides[1:], 1)),
    ]
    title = " against ".join(side.runs[0].folder.absolute().name for side in reversed(sides[:2]))
    text = render_comparison(
        results, images, Identity(title if len(sides) == 2 else f"{len(sides)} evaluations", facts)
    )
    with atomic_path(Path(output) / "compare.html") as path:
        path.write_text(text, encoding="utf-8", errors="replace")
    return results


def _paths(side: Folders) -> list[Path]:
    return [Path(side)] if isinstance(side, str | Path) else [Path(folder) for folder in side]


def _draw(
    a: Side, b: Side, result: dict[str, Any], truth: PanopticJson | None, image_dir: Path | None, count: int
) -> dict[int | str, dict[str, bytes]]:
    """Draws the images for the page; if there are none, a note says why."""
    folders = a.runs[0].folder, b.runs[0].folder
    absent = [folder / PREDICTIONS for folder in folders if not (folder / PREDICTIONS).is_file()]
    if truth is None or absent:
        reason = f"{absent[0]} does not exist" if absent else "the ground truth (--gt) is not given"
        result["notes"].append(f"The page shows no images: {reason}")
        return {}
    if len(a.runs) + len(b.runs) > 2:
        result["notes"].append("The images on the page are those of the first run of each side")
    rows = result["images"]
    gained = [row["image_id"] for row in reversed(rows) if row["difference"] > 0][: count // 3]
    lost = [row["image_id"] for row in rows if row["difference"] < 0][: count - len(gained)]
    drawn, problems = draw_images(truth, folders, [*lost, *gained], image_dir)
    result["notes"] += problems[:SHOWN_PROBLEMS]
    if len(problems) > SHOWN_PROBLEMS:
        result["notes"].append(f"{len(problems) - SHOWN_PROBLEMS} more images or files could not be shown")
    return drawn
