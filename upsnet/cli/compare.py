"""Compares evaluations of the same images: is B better than A, where, and is it more than chance?

examples:
  upsnet compare runs/old/evaluation runs/new/evaluation
  upsnet compare runs/old/evaluation runs/new/evaluation --max-drop 0.5          # exit code 1 if PQ falls by more
  upsnet compare --a old_0 old_1 old_2 --b new_0 new_1 new_2                     # several seeds of two configurations
  upsnet compare A B --output out --gt panoptic_val.json --images val            # a page with the images that changed

The folders are those of `upsnet evaluate --output`. Each further folder is compared with the first. A difference is B
less A, in percent. Its 95 % interval comes from a paired bootstrap: it tells how far the difference may move with other
images of this kind and, with several seeds, with other seeds. If it holds 0, no difference is shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHOWN = 5
"""Classes and images that are listed at each end."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = _parse(argv)
    from upsnet.engine.compare import compare_evaluations

    results = compare_evaluations(
        *args.sides,
        output=args.output,
        truth=args.gt,
        truth_dir=args.gt_dir,
        image_dir=args.images,
        report_images=args.report_images,
        slices=args.slices,
    )
    for result in results:
        _show(result)
    if args.output is not None:
        print(f"page: {args.output / 'compare.html'}")
    drops = [-(result["All"]["pq"]["difference"] or 0.0) for result in results]
    for result, drop in zip(results, drops, strict=True):
        if args.max_drop is not None and drop > args.max_drop:
            sides = f"{', '.join(result['b'])} has {drop:.3f} less PQ than {', '.join(result['a'])}"
            sys.stdout.flush()
            print(f"error: {sides}, --max-drop allows {args.max_drop:g}", file=sys.stderr)
    return int(args.max_drop is not None and max(drops) > args.max_drop)


def _show(result: dict[str, Any]) -> None:
    print(f"A: {', '.join(result['a'])}\nB: {', '.join(result['b'])}\n{result['num_images']} images")
    print(f"{'':20s} {'A':>8s} {'B':>8s} {'B - A':>8s}   95 % interval")
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for name in ("pq", "sq", "rq"):
            print(_line(f"{name}{suffix}", result[group][name]))
    for name, score in result["others"].items():
        print(_line(name, score))
    rows = [row for row in result["per_class"].values() if row["pq"]["difference"] is not None]
    rows.sort(key=lambda row: row["pq"]["difference"])
    shown = rows if len(rows) <= 2 * SHOWN else [*rows[:SHOWN], *rows[-SHOWN:]]
    print(f"PQ of classes, the largest loss first ({len(shown)} of {len(rows)}):")
    for row in shown:
        print(_line(f"  {row['name']}", row["pq"]))
    for attribute, values in result["slices"].items():
        print(f"PQ by {attribute}:")
        for label, row in values.items():
            print(_line(f"  {label}", row["All"]["pq"]))
    if result["causes"]:
        print("errors by cause:")
        for cause, row in result["causes"].items():
            print(_line(f"  {cause}", row["errors"], digits=1))
    changed = [row for row in result["images"] if row["difference"]]
    print(f"images with another PQ, the largest loss first ({min(SHOWN, len(changed))} of {len(changed)}):")
    for row in changed[:SHOWN]:
        print(_line(f"  {row['file_name'] or row['image_id']}", {**row, "interval": None}))
    for note in result["notes"]:
        print(f"note: {note}")
    verdicts = {
        "better": "B is better than A: the interval of the difference of PQ is above 0",
        "worse": "B is worse than A: the interval of the difference of PQ is below 0",
        "not shown": "no difference is shown: the interval of the difference of PQ holds 0",
    }
    no_interval = result["All"]["pq"]["interval"] is None
    print("no interval: nothing can be said about chance" if no_interval else verdicts[result["verdict"]])


def _line(name: str, score: dict[str, Any], digits: int = 3) -> str:
    numbers = " ".join(f"{_text(score[key], f'.{digits}f'):>8s}" for key in ("a", "b"))
    interval = score["interval"]
    ends = "" if interval is None else f"   {interval[0]:+.{digits}f} to {interval[1]:+.{digits}f}"
    return f"{name:20s} {numbers} {_text(score['difference'], f'+.{digits}f'):>8s}{ends}"


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "upsnet compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="A, B and more evaluations, one run each"
    )
    parser.add_argument("--a", nargs="+", type=Path, metavar="FOLDER", help="A: several seeds of one configuration")
    parser.add_argument("--b", nargs="+", type=Path, metavar="FOLDER", help="B: several seeds of another")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="PQ",
        help="exit with code 1 if PQ of B (the number itself, not its interval) is more than this below that of A",
    )
    parser.add_argument(
        "--slices", type=Path, metavar="CSV", help="PQ by attribute, too: a column `image` and one for each attribute"
    )
    parser.add_argument("--output", type=Path, help="folder for compare.json and compare.html")
    parser.add_argument("--gt", type=Path, help="COCO-panoptic JSON of the ground truth, for the images on the page")
    parser.add_argument("--gt-dir", type=Path, help="PNGs of the ground truth (default: --gt without .json)")
    parser.add_argument("--images", type=Path, help="folder of the images, for the page")
    parser.add_argument(
        "--report-images", type=int, default=8, metavar="N", help="show N images on the page (default: 8)"
    )
    args = parser.parse_args(argv)
    if (args.a is None) != (args.b is None):
        parser.error("--a and --b go together")
    if args.a is not None and args.folders:
        parser.error("give either folders or --a and --b")
    args.sides = [args.a, args.b] if args.a is not None else args.folders
    if len(args.sides) < 2:
        parser.error("nothing to compare, expected two folders or more, or --a and --b")
    if args.max_drop is not None and not args.max_drop >= 0:
        parser.error(f"--max-drop is {args.max_drop}, expected 0 or more")
    if args.report_images < 0:
        parser.error(f"--report-images is {args.report_images}, expected 0 or more")
    if (args.gt or args.gt_dir or args.images) and (args.output is None or args.gt is None):
        parser.error("--gt needs --output; --gt-dir and --images need --gt")
    return args
