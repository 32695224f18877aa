"""Compares evaluations of the same images: differences of scores with 95 % intervals, and the images that changed.

examples:
  upsnet compare runs/old/evaluation runs/new/evaluation
  upsnet compare runs/old/evaluation runs/new/evaluation --max-drop 0.5          # exit code 1 if PQ falls by more
  upsnet compare --a old_0 old_1 old_2 --b new_0 new_1 new_2                     # several seeds of two configurations
  upsnet compare A B --output out --gt panoptic_val.json --images val            # a page with the images that changed

`upsnet evaluate --output` writes the folders. The first one is A; each other one is compared with it as B. Differences
are in percent. The intervals come from a paired bootstrap over the images. They show how much a difference would vary
with other images of this kind and, if several seeds are given, with other seeds. If the interval of the difference of
PQ contains 0, the evaluations show no difference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHOWN = 5
"""Number of classes at each end of the list, and of images."""


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
    return 0 if args.max_drop is None else _check_drops(results, args.max_drop)


def _check_drops(results: Sequence[dict[str, Any]], allowed: float) -> int:
    """The exit code of `--max-drop`."""
    code = 0
    for result in results:
        difference = result["All"]["pq"]["difference"]
        if difference is None:
            raise ValueError(
                f"--max-drop: no PQ of {', '.join(result['a'])} or of {', '.join(result['b'])}, expected evaluations "
                "with at least one segment"
            )
        if -difference > allowed:
            code = 1
            sides = f"PQ of {', '.join(result['b'])} is {-difference:.3f} below PQ of {', '.join(result['a'])}"
            sys.stdout.flush()
            print(f"error: {sides}, --max-drop allows {allowed:g}", file=sys.stderr)
    return code


def _show(result: dict[str, Any]) -> None:
    from upsnet.metrics.comparison import VERDICTS

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
    print(f"images whose PQ changed, the largest loss first ({min(SHOWN, len(changed))} of {len(changed)}):")
    for row in changed[:SHOWN]:
        print(_line(f"  {row['file_name'] or row['image_id']}", {**row, "interval": None}))
    for note in result["notes"]:
        print(f"note: {note}")
    print(VERDICTS[result["verdict"]])


def _line(name: str, score: dict[str, Any], digits: int = 3) -> str:
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
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
        "folders", nargs="*", type=Path, metavar="FOLDER", help="A, B and more evaluations of one run each"
    )
    parser.add_argument("--a", nargs="+", type=Path, metavar="FOLDER", help="A: the runs (seeds) of one configuration")
    parser.add_argument("--b", nargs="+", type=Path, metavar="FOLDER", help="B: the runs of another one")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="PQ",
        help="exit with code 1 if PQ of B is lower than PQ of A by more than this number (intervals do not count)",
    )
    parser.add_argument(
        "--slices", type=Path, metavar="CSV", help="also PQ by attribute; columns: `image`, and one for each attribute"
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
