r"""Converts annotations into COCO's panoptic layout, which the configs read.

examples:
  upsnet convert coco --annotations instances.json --images photos --background background --split-val 0.2 \
      --output datasets/mine
  upsnet convert labelme --annotations photos --background table --split-val 0.2 --output datasets/mine
  upsnet convert id-pngs --images I --instances N --semantic S --classes C.yaml --output OUT
  upsnet convert masks --images photos --masks masks --background soil --output datasets/mine
  upsnet convert shapes --output datasets/shapes --split train --num-images 1500
  upsnet convert nuclei --archive stage1_train.zip --output datasets/nuclei
  upsnet convert coco check                         # checks an unpacked COCO panoptic; nothing is converted
  upsnet convert cityscapes check                   # checks an unpacked Cityscapes
  upsnet convert cityscapes panoptic                # writes its ground truth as csCreatePanopticImgs does

Each pixel belongs to one segment. Instances cover crowds, crowds cover stuff, and stuff covers the background. Where
two instances overlap, the smaller one is on top, because it is usually in front. --overlap later or earlier uses the
order of the annotation instead. An instance that others cover completely is dropped and counted in the summary.

Classes: without --classes, every label is a thing, except those of --stuff and --background. COCO categories keep
their ids; other labels are numbered from 1 in alphabetical order. A classes file (a YAML or JSON list of
{name, isthing, id, color, value}) gives all conversions the same classes and ids. Every conversion writes its classes
to OUTPUT/classes.yaml, which can serve as this file.

Images are hard-linked if the file system allows it, else copied. A conversion that fails leaves nothing behind.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upsnet.convert.classes import ClassOptions
    from upsnet.convert.source import Source

CITYSCAPES_SPLITS = ("train", "val", "test")
COCO_SPLITS = ("train2017", "val2017")
SHOWN_PROBLEMS = 10


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    if list(argv[:2]) == ["coco", "check"]:
        return _check_coco(_parse_coco_check(argv[2:]))
    args = _parser().parse_args(argv)
    if args.form == "cityscapes":
        if args.step == "check" and args.output is not None:
            raise ValueError("--output goes with `cityscapes panoptic`; check writes nothing")
        return _cityscapes(args)
    if args.form == "shapes":
        return _write_shapes(args)
    if args.form == "nuclei":
        from upsnet.convert.nuclei import convert_nuclei

        convert_nuclei(args.archive, args.output)
        return 0
    return _convert(args)


def _convert(args: argparse.Namespace) -> int:
    from upsnet.convert.classes import ClassOptions, parse_stuff
    from upsnet.convert.run import MistakesError, convert, split_by_name

    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers is {args.workers}, expected 1 or more")
    options = ClassOptions(args.classes, parse_stuff(args.stuff) if args.stuff else (), args.background)
    source = _open_source(args, options)
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
    return 0


def _open_source(args: argparse.Namespace, options: ClassOptions) -> Source:
    from upsnet.convert.coco_instances import CocoInstances
    from upsnet.convert.id_pngs import IdPngs
    from upsnet.convert.labelme import LabelMe
    from upsnet.convert.mask_files import MaskFiles

    if args.form == "coco":
        return CocoInstances(args.annotations, args.images, options, args.semantic)
    if args.form == "id-pngs":
        return IdPngs(args.images, args.instances, args.semantic, options)
    if args.form == "labelme":
        return LabelMe(args.annotations, options, args.images)
    return MaskFiles(args.images, options, args.masks, args.label)


def _check_coco(args: argparse.Namespace) -> int:
    from upsnet.convert.coco_panoptic import check_split
    from upsnet.data.loader import data_root

    root = args.root or data_root() / "coco"
    problems = [problem for split in args.splits for problem in check_split(root, split, print, _warn)]
    for problem in problems[:SHOWN_PROBLEMS]:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        raise ValueError(
            f"{root}: {len(problems)} files are missing or differ from the JSON, the first: {problems[0]}; "
            "unpack the archives of cocodataset.org again"
        )
    return 0


def _cityscapes(args: argparse.Namespace) -> int:
    from upsnet.convert.cityscapes import check_split, convert_split
    from upsnet.data.cityscapes import DOWNLOAD
    from upsnet.data.loader import data_root

    root = args.root or data_root() / "cityscapes"
    splits = [split for split in args.splits if check_split(root, split, print, _warn)]
    if not splits:
        raise FileNotFoundError(
            f"{root}: contains none of the splits {', '.join(args.splits)}; {DOWNLOAD} into this folder"
        )
    if args.step == "panoptic":
        for split in (split for split in splits if (root / "gtFine" / split).is_dir()):
            convert_split(root, split, args.output or root / "gtFine")
    return 0


def _write_shapes(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from upsnet.data.shapes import Shapes
    from upsnet.io.predictions import write_samples

    data = Shapes(args.num_images, (args.size[0], args.size[1]), args.seed)
    samples = (data[index] for index in tqdm(range(len(data)), desc="shapes"))
    write_samples(samples, data.categories, args.output, args.split)
    return 0


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _parse_coco_check(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "upsnet convert coco check", description="Compares the images, PNGs and JSON of an unpacked COCO panoptic."
    )
    parser.add_argument(
        "--root", type=Path, help="folder of train2017, val2017 and annotations (default: coco in $UPSNET_DATASETS)"
    )
    parser.add_argument("--splits", nargs="+", choices=COCO_SPLITS, default=COCO_SPLITS)
    return parser.parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "upsnet convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, required=True, help="folder of the data set")
    which = common.add_mutually_exclusive_group()
    which.add_argument("--split", default="train", help="name of the split that is written (default: train)")
    which.add_argument("--split-val", type=float, metavar="SHARE", help="write train and val, with this share in val")
    common.add_argument("--seed", type=int, default=0, help="random seed of --split-val (default: 0)")
    common.add_argument("--classes", type=Path, help="classes file: the same classes and ids for every run")
    common.add_argument("--background", metavar="NAME", help="stuff that fills unlabelled pixels (default: void)")
    common.add_argument(
        "--overlap",
        choices=["smaller", "later", "earlier"],
        default="smaller",
        help="which of two overlapping instances is on top (default: smaller)",
    )
    common.add_argument("--workers", type=int, help="processes (default: one per core)")
    stuff = argparse.ArgumentParser(add_help=False)
    stuff.add_argument(
        "--stuff", metavar="NAMES", help="labels that are stuff, NAME or VALUE=NAME, as in road,sky or 7=road,8=sky"
    )
    forms = parser.add_subparsers(dest="form", required=True, metavar="FORM")

    coco = forms.add_parser(
        "coco",
        parents=[common, stuff],
        help="COCO instance JSON: polygons, run lengths, crowds",
        epilog="`upsnet convert coco check` checks an unpacked COCO panoptic.",
    )
    coco.add_argument("--annotations", type=Path, required=True, help="the JSON")
    coco.add_argument("--images", type=Path, required=True, help="folder of the images")
    coco.add_argument(
        "--semantic", type=Path,
        help="folder of class maps STEM.png; --stuff VALUE=NAME or --classes name the values, 0 and 255 are unlabelled",
    )  # fmt: skip
    ids = forms.add_parser("id-pngs", parents=[common], help="instance-id PNGs and class-id PNGs")
    ids.add_argument("--images", type=Path, required=True, help="folder of the images")
    ids.add_argument("--instances", type=Path, required=True, help="folder of instance maps STEM.png, 0 = none")
    ids.add_argument("--semantic", type=Path, required=True, help="folder of class maps STEM.png (needs --classes)")
    ids.set_defaults(stuff=None)
    labelme = forms.add_parser("labelme", parents=[common, stuff], help="LabelMe's JSON files")
    labelme.add_argument("--annotations", type=Path, required=True, help="folder of the JSON files")
    labelme.add_argument(
        "--images", type=Path, help="folder of the images (default: the path in each JSON file, else its folder)"
    )
    masks = forms.add_parser("masks", parents=[common, stuff], help="one mask file per instance")
    masks.add_argument(
        "--images", type=Path, required=True, help="folder of the images, or of STEM/images + STEM/masks"
    )
    masks.add_argument("--masks", type=Path, help="folder of STEM/CLASS_k.png, or of STEM_CLASS_k.png")
    masks.add_argument("--label", metavar="NAME", help="class of all instances, regardless of the file names")

    cityscapes = forms.add_parser("cityscapes", help="check an unpacked Cityscapes, or write it in panoptic format")
    cityscapes.add_argument(
        "step", choices=["panoptic", "check"],
        help="check: count the files, and name those that are missing or misnamed; panoptic: also convert",
    )  # fmt: skip
    cityscapes.add_argument(
        "--root", type=Path, help="folder of leftImg8bit and gtFine (default: cityscapes in $UPSNET_DATASETS)"
    )
    cityscapes.add_argument("--splits", nargs="+", choices=CITYSCAPES_SPLITS, default=CITYSCAPES_SPLITS)
    cityscapes.add_argument("--output", type=Path, help="folder for the result of panoptic (default: gtFine)")
    shapes = forms.add_parser("shapes", help="write the generated data set")
    shapes.add_argument("--output", type=Path, required=True, help="folder of the data set")
    shapes.add_argument("--split", default="train", help="name of the split (default: train)")
    shapes.add_argument("--num-images", type=int, default=1500, help="default: 1500")
    shapes.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("H", "W"), help="default: 128 128")
    shapes.add_argument("--seed", type=int, default=0, help="random seed of the images (default: 0)")
    nuclei = forms.add_parser("nuclei", help="160 training and 40 validation images of the 2018 Data Science Bowl")
    nuclei.add_argument("--archive", type=Path, required=True, help="stage1_train.zip")
    nuclei.add_argument("--output", type=Path, required=True, help="folder of the data set")
    return parser
