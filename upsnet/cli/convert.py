r"""Converts annotations into COCO panoptic layout, which the configs read.

examples:
  upsnet convert photos                             # says what annotations are there, and which command converts them
  upsnet convert coco --annotations instances.json --images photos --split-val 0.2 --output datasets/mine
  upsnet convert coco --annotations train/_annotations.coco.json valid/_annotations.coco.json --output datasets/mine
  upsnet convert yolo --annotations data.yaml --output datasets/mine
  upsnet convert cvat --annotations annotations.xml --images photos --split-val 0.2 --output datasets/mine
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
order of the annotation instead, and --order 'tree > window > facade' names classes from top to bottom. An instance that
others cover completely is dropped and counted in the summary.

Classes: without --classes, every label is a thing, except those of --stuff and --background. COCO categories keep
their ids; other labels are numbered from 1, in the order of the project or the alphabet. A classes file (a YAML or JSON
list of {name, isthing, id, color, value}) gives all conversions the same classes and ids. A conversion writes its
classes to OUTPUT/classes.yaml, if there is no such file, and it can serve as classes file. Unlabelled pixels are void,
which no loss and no metric counts. If no class is stuff, they are a stuff class `background` instead.

A mistake in an annotation ends the conversion. --skip-bad leaves out what is wrong and lists it in
OUTPUT/annotations/SPLIT_mistakes.txt. Images are hard-linked if the file system allows it, else copied. A conversion
that fails leaves nothing behind.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upsnet.class_edits import ClassEdits
    from upsnet.convert.classes import ClassOptions
    from upsnet.convert.source import Item, Source, Tolerance
    from upsnet.convert.summary import Summary

CITYSCAPES_SPLITS = ("train", "val", "test")
COCO_SPLITS = ("train2017", "val2017")
CLASSES_SUFFIXES = (".yaml", ".yml", ".json")
SHOWN_PROBLEMS = 10


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    if list(argv[:2]) == ["coco", "check"]:
        return _check_coco(_parse_coco_check(argv[2:]))
    parser = _parser()
    if argv and argv[0] not in FORMS and not argv[0].startswith("-"):
        return _tell_form(argv)
    args = parser.parse_args(argv)
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


def _tell_form(argv: Sequence[str]) -> int:
    """Says what annotations a path holds, and which commands convert them; nothing is converted."""
    from upsnet.convert.detect import detect

    path = Path(argv[0])
    if len(argv) > 1 or not path.exists():
        raise ValueError(f"{argv[0]}: no such form, file or folder, expected a path or one of: {', '.join(FORMS)}")
    found = detect(path)
    if not found:
        raise ValueError(f"{path}: no annotations that upsnet knows, expected one of: {', '.join(CONVERTED)}")
    for one in found:
        print(one.what if one.form is None else f"{one.what}:\n  {one.command()}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from upsnet.convert.classes import ClassOptions, parse_stuff
    from upsnet.convert.layers import Order, parse_order
    from upsnet.convert.run import MistakesError, convert
    from upsnet.convert.source import Tolerance

    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers is {args.workers}, expected 1 or more")
    if args.group_by is not None and args.split_val is None:
        raise ValueError("--group-by goes with --split-val, which splits the images")
    file, edits = _classes_and_edits(args)
    stuff = parse_stuff(args.stuff) if args.stuff else ()
    options = ClassOptions(file, stuff, args.background, args.no_background, edits)
    source = _open_source(args, options, Tolerance(args.skip_bad, args.skip_missing))
    if args.drop_unannotated:
        _drop_unannotated(source)
    if args.split is not None:
        _select_split(source, args.split)
    splits = _splits(args, source.items)
    levels = parse_order(args.order, source.classes.categories) if args.order else {}
    order = Order(args.overlap, levels)
    try:
        summary = convert(source, args.output, splits, order=order, workers=args.workers)
    except MistakesError as error:
        print("\n".join(f"mistake: {line}" for line in error.lines), file=sys.stderr)
        raise
    _print(summary, args.output)
    return 0


def _print(summary: Summary, output: Path) -> None:
    print("\n".join(summary.lines()))
    print(f"written: {output}")


def _classes_and_edits(args: argparse.Namespace) -> tuple[Path | None, ClassEdits]:
    """The classes file, and the changes to labels."""
    from upsnet.class_edits import ClassEdits

    merge: dict[str, tuple[str, ...]] = {}
    for option, pairs in (("--merge", args.merge), ("--rename", args.rename)):
        for pair in pairs or ():
            left, equals, right = pair.partition("=")
            names = _names(right if option == "--merge" else left)
            new = (left if option == "--merge" else right).strip()
            if not equals or not new or not names or new in merge:
                expected = "NEW=A,B,... with each NEW once" if option == "--merge" else "OLD=NEW"
                raise ValueError(f"{option} {pair}: expected {expected}")
            merge[new] = names
    file, keep = None, None
    if args.classes is not None:
        if args.classes.lower().endswith(CLASSES_SUFFIXES) or Path(args.classes).is_file():
            file = Path(args.classes)
        else:
            keep = _names(args.classes)
            if args.background is not None:
                keep = (*keep, args.background)
    return file, ClassEdits(merge, keep and tuple(dict.fromkeys(keep)), _names(args.drop or ""))


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _drop_unannotated(source: Source) -> None:
    kept = [item for item in source.items if item.is_annotated]
    if dropped := len(source.items) - len(kept):
        source.notes.append(f"{dropped} images that show no object were left out")
    source.items = kept


def _select_split(source: Source, split: str) -> None:
    """Keeps the images of one split, if the annotations have splits."""
    there = sorted({item.split for item in source.items if item.split is not None})
    if not there:
        return
    if split not in there:
        raise ValueError(f"--split {split}: the annotations have {', '.join(there)}; --split-val divides them anew")
    source.items = [item for item in source.items if item.split == split]


def _splits(args: argparse.Namespace, items: Sequence[Item]) -> list[str]:
    """The split of each image: the one of --split, a new division by --split-val, or that of the source."""
    from upsnet.convert.run import split_by_name

    if args.split_val is not None:
        names = [item.name if args.group_by is None else item.given_name or item.name for item in items]
        return split_by_name(names, args.split_val, args.seed, args.group_by)
    if args.split is not None:
        return [args.split] * len(items)
    return [item.split or "train" for item in items]


def _open_source(args: argparse.Namespace, options: ClassOptions, tolerance: Tolerance) -> Source:
    """Opens the annotations. If they cannot be read and look like another form, the error names it."""
    from upsnet.convert.detect import detect

    try:
        return _source_of_form(args, options, tolerance)
    except (OSError, ValueError) as error:
        path = args.annotations if "annotations" in args else args.images
        path = path[0] if isinstance(path, list) else path
        found = detect(path) if path is not None and path.exists() else []
        others = [one for one in found if one.form not in (args.form, None)]
        if not others or any(one.form == args.form for one in found):
            raise
        raise type(error)(f"{error}; it looks like {others[0].what}: {others[0].command()}") from None


def _source_of_form(args: argparse.Namespace, options: ClassOptions, tolerance: Tolerance) -> Source:
    images: list[Path] = args.images or []
    if args.form == "coco":
        from upsnet.convert.coco_instances import CocoInstances

        return CocoInstances(args.annotations, images, options, tolerance, semantic=args.semantic, crowds=args.crowds)
    if args.form == "id-pngs":
        from upsnet.convert.id_pngs import IdPngs

        return IdPngs(args.instances, args.semantic, images, options, tolerance)
    if args.form == "masks":
        from upsnet.convert.mask_files import MaskFiles

        return MaskFiles(args.masks, images, options, tolerance, label=args.label)
    if args.form == "labelme":
        from upsnet.convert.labelme import LabelMe

        return LabelMe(args.annotations, images, options, tolerance)
    if args.form == "yolo":
        from upsnet.convert.yolo import Yolo

        return Yolo(args.annotations, images, options, tolerance)
    if args.form == "cvat":
        from upsnet.convert.cvat import Cvat

        return Cvat(args.annotations, images, options, tolerance)
    if args.form == "label-studio":
        from upsnet.convert.label_studio import LabelStudio

        return LabelStudio(args.annotations, images, options, tolerance)
    if args.form == "supervisely":
        from upsnet.convert.supervisely import Supervisely

        return Supervisely(args.annotations, images, options, tolerance)
    from upsnet.convert.voc import Voc

    return Voc(args.annotations, images, options, tolerance)


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


ANNOTATIONS: dict[str, tuple[str, str, bool]] = {
    "coco": ("COCO instance JSON: polygons, run lengths, crowds", "the JSON, or several", True),
    "labelme": ("LabelMe and X-AnyLabeling", "folder of the JSON files", False),
    "cvat": ("CVAT for images 1.1", "the XML, or several", True),
    "label-studio": ("Label Studio, export JSON", "the JSON, or several", True),
    "yolo": ("YOLO segmentation", "data.yaml, or the folder of images and labels", False),
    "supervisely": ("Supervisely project", "folder of meta.json", False),
    "voc": ("Pascal VOC segmentation, and CVAT's Segmentation mask 1.1", "folder of SegmentationObject", False),
}
"""Form: help, help of --annotations, and whether --annotations takes several files."""
CONVERTED = (*ANNOTATIONS, "id-pngs", "masks")
FORMS = (*CONVERTED, "cityscapes", "shapes", "nuclei")
NEEDS_IMAGES = ("cvat", "label-studio")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "upsnet convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    forms = parser.add_subparsers(dest="form", required=True, metavar="FORM")
    added = {}
    for form, (text, what, takes_several) in ANNOTATIONS.items():
        added[form] = one = forms.add_parser(form, help=text)
        one.add_argument("--annotations", type=Path, required=True, nargs="+" if takes_several else None, help=what)
        default = "" if form in NEEDS_IMAGES else " (default: where the annotations are)"
        one.add_argument(
            "--images", type=Path, nargs="+", required=form in NEEDS_IMAGES, help=f"folders of the images{default}"
        )
        _add_common(one)
    added["coco"].epilog = "`upsnet convert coco check` checks an unpacked COCO panoptic."
    added["coco"].add_argument(
        "--semantic", type=Path,
        help="folder of class maps STEM.png, named by --stuff VALUE=NAME or --classes; 0 is unlabelled, 255 void",
    )  # fmt: skip
    added["coco"].add_argument(
        "--crowds",
        choices=["objects", "crowds"],
        help="what annotations with iscrowd 1 are (default: crowds; an error if they look like objects)",
    )
    ids = forms.add_parser("id-pngs", help="instance-id PNGs and class-id PNGs")
    ids.add_argument("--images", type=Path, nargs="+", required=True, help="folders of the images")
    ids.add_argument("--instances", type=Path, required=True, help="folder of instance maps STEM.png, 0 = none")
    ids.add_argument("--semantic", type=Path, required=True, help="folder of class maps STEM.png (needs --classes)")
    _add_common(ids, with_stuff=False)
    masks = forms.add_parser("masks", help="one mask file per instance")
    masks.add_argument(
        "--images", type=Path, nargs="+", required=True, help="folders of the images, or of STEM/images + STEM/masks"
    )
    masks.add_argument(
        "--masks", type=Path, help="folder of STEM/CLASS_k.png, CLASS/STEM_k.png, STEM_CLASS_k.png and the like"
    )
    masks.add_argument("--label", metavar="NAME", help="class of all instances, regardless of the file names")
    _add_common(masks)

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


def _add_common(common: argparse.ArgumentParser, *, with_stuff: bool = True) -> None:
    """Adds the options of all forms that are converted."""
    common.add_argument("--output", type=Path, required=True, help="folder of the data set")
    splits = common.add_argument_group("splits (default: those of the annotations, else all images are in train)")
    which = splits.add_mutually_exclusive_group()
    which.add_argument(
        "--split", help="write one split: the one of this name if the annotations have splits, else all images"
    )
    which.add_argument("--split-val", type=float, metavar="SHARE", help="write train and val, with this share in val")
    splits.add_argument("--seed", type=int, default=0, help="random seed of --split-val (default: 0)")
    splits.add_argument(
        "--group-by",
        metavar="REGEX",
        help="--split-val keeps images together whose names have the same match, such as frames of a video: '^[^_]+'",
    )
    classes = common.add_argument_group("classes")
    classes.add_argument(
        "--classes", metavar="FILE|NAMES", help="classes file, or the classes to keep, as in date,fig; others are void"
    )
    classes.add_argument("--merge", action="append", metavar="NEW=A,B", help="labels that become one class; repeatable")
    classes.add_argument("--rename", action="append", metavar="OLD=NEW", help="a new name for a label; repeatable")
    classes.add_argument("--drop", metavar="NAMES", help="classes whose pixels are void")
    if with_stuff:
        classes.add_argument(
            "--stuff", metavar="NAMES", help="labels that are stuff, NAME or VALUE=NAME, as in road,sky or 7=road,8=sky"
        )
    else:
        common.set_defaults(stuff=None)
    background = classes.add_mutually_exclusive_group()
    background.add_argument("--background", metavar="NAME", help="stuff that fills unlabelled pixels")
    background.add_argument(
        "--no-background", action="store_true", help="unlabelled pixels are void even if no class is stuff"
    )
    overlaps = common.add_argument_group("overlaps")
    overlaps.add_argument(
        "--overlap",
        choices=["smaller", "later", "earlier"],
        default="smaller",
        help="which of two overlapping instances is on top (default: smaller)",
    )
    overlaps.add_argument(
        "--order", metavar="'A > B'", help="classes from top to bottom, as in 'tree > window > facade'"
    )
    mistakes = common.add_argument_group("mistakes")
    mistakes.add_argument(
        "--skip-bad", action="store_true", help="leave out objects and images with mistakes, and list them"
    )
    mistakes.add_argument(
        "--skip-missing", action="store_true", help="leave out annotations whose image does not exist"
    )
    mistakes.add_argument("--drop-unannotated", action="store_true", help="leave out images that show no object")
    common.add_argument("--workers", type=int, help="processes (default: one per core)")
