#!/usr/bin/env python
"""Converts annotations of your own into COCO's panoptic layout, which the configs read (see datasets/README.md).

    python datasets/convert.py coco --annotations instances.json --images photos --output datasets/mine
    python datasets/convert.py labelme --annotations photos --background table --split-val 0.2 --output datasets/mine
    python datasets/convert.py id-pngs --images I --instances N --semantic S --classes C.yaml --output OUT
    python datasets/convert.py masks --images photos --masks masks --background soil --output datasets/mine

Each pixel gets one segment. Instances lie upon crowds, crowds upon stuff, stuff upon the background. Of two instances
the smaller lies on top: it is mostly the one in front, and would vanish under the other. (--overlap later or
earlier: by the order in the annotation.) An instance that others cover whole is dropped; the summary counts it.

Classes: without --classes, the labels that are found are things, but for those of --stuff and --background; COCO's keep
their ids, others are numbered from 1 in alphabetical order. A classes file (a YAML or JSON list of {name, isthing, id,
color, value}) settles them for all runs; the first conversion writes one, OUTPUT/classes.yaml.

Pictures are hard-linked where the disk allows it, else copied. Nothing is left behind by a run that fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from upsnet.data.convert.classes import ClassOptions, parse_stuff
from upsnet.data.convert.coco_instances import CocoInstances
from upsnet.data.convert.id_pngs import IdPngs
from upsnet.data.convert.labelme import LabelMe
from upsnet.data.convert.mask_files import MaskFiles
from upsnet.data.convert.run import MistakesError, convert, split_by_name
from upsnet.data.convert.source import Source
from upsnet.errors import run_tool


def main() -> None:
    """Parses the command line and converts."""
    args = _parser().parse_args()
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers is {args.workers}, expected 1 or more")
    options = ClassOptions(args.classes, parse_stuff(args.stuff) if args.stuff else (), args.background)
    source = _open(args, options)
    if args.split_val is None:
        splits = [args.split] * len(source.items)
    else:
        splits = split_by_name([item.name for item in source.items], args.split_val, args.seed)
    try:
        summary = convert(source, args.output, splits, on_top=args.overlap, workers=args.workers)
    except MistakesError as error:
        print("\n".join(f"mistake: {line}" for line in error.lines), file=sys.stderr)
        raise
    print("\n".join(summary.lines()))
    print(f"written: {args.output}")


def _open(args: argparse.Namespace, options: ClassOptions) -> Source:
    if args.form == "coco":
        return CocoInstances(args.annotations, args.images, options, args.semantic)
    if args.form == "id-pngs":
        return IdPngs(args.images, args.instances, args.semantic, options)
    if args.form == "labelme":
        return LabelMe(args.annotations, options, args.images)
    return MaskFiles(args.images, options, args.masks, args.label)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, required=True, help="folder of the data set")
    which = common.add_mutually_exclusive_group()
    which.add_argument("--split", default="train", help="name of the split that is written (default: train)")
    which.add_argument("--split-val", type=float, metavar="SHARE", help="write train and val, with this share in val")
    common.add_argument("--seed", type=int, default=0, help="of --split-val (default: 0)")
    common.add_argument("--classes", type=Path, help="classes file: the same classes and ids for every run")
    common.add_argument("--background", metavar="NAME", help="stuff that fills unlabelled pixels (default: void)")
    common.add_argument(
        "--overlap",
        choices=["smaller", "later", "earlier"],
        default="smaller",
        help="the instance on top (default: smaller)",
    )
    common.add_argument("--workers", type=int, help="processes (default: one per core)")
    stuff = argparse.ArgumentParser(add_help=False)
    stuff.add_argument(
        "--stuff", metavar="NAMES", help="labels that are stuff, NAME or VALUE=NAME, as in road,sky or 7=road,8=sky"
    )
    forms = parser.add_subparsers(dest="form", required=True, metavar="FORM")

    coco = forms.add_parser("coco", parents=[common, stuff], help="COCO instance JSON: polygons, run lengths, crowds")
    coco.add_argument("--annotations", type=Path, required=True, help="the JSON")
    coco.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    coco.add_argument(
        "--semantic", type=Path,
        help="folder of class maps STEM.png; --stuff VALUE=NAME or --classes tell the values, 0 and 255 are unlabelled",
    )  # fmt: skip
    ids = forms.add_parser("id-pngs", parents=[common], help="instance-id PNGs and class-id PNGs")
    ids.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    ids.add_argument("--instances", type=Path, required=True, help="folder of instance maps STEM.png, 0 = none")
    ids.add_argument("--semantic", type=Path, required=True, help="folder of class maps STEM.png (needs --classes)")
    ids.set_defaults(stuff=None)
    labelme = forms.add_parser("labelme", parents=[common, stuff], help="LabelMe's JSON files")
    labelme.add_argument("--annotations", type=Path, required=True, help="folder of the JSON files")
    labelme.add_argument(
        "--images", type=Path, help="folder of the pictures (default: where the files say, or beside them)"
    )
    masks = forms.add_parser("masks", parents=[common, stuff], help="one mask file an instance")
    masks.add_argument(
        "--images", type=Path, required=True, help="folder of the pictures, or of STEM/images + STEM/masks"
    )
    masks.add_argument("--masks", type=Path, help="folder of STEM/CLASS_k.png, or of STEM_CLASS_k.png")
    masks.add_argument("--label", metavar="NAME", help="class of all instances, whatever the files are called")
    return parser


if __name__ == "__main__":
    run_tool(main)
