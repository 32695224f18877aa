"""Checks a data set for errors that stop a training or lower its result, proposes a config, writes a corrected copy.

examples:
  upsnet doctor datasets/mine --write-config mine.yaml --overlays overlays
  upsnet doctor --config nuclei_r18 --json report.json --overlays overlays
  upsnet doctor --config mine.yaml --fix corrected
  upsnet doctor --images train2017 --annotations panoptic_train2017.json

exit codes: 0 no errors (there may be warnings); 1 errors were found; 2 a mistake in the arguments or files that cannot
be examined; 3 a bug
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upsnet.doctor.diagnosis import Diagnosis


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    args = _parse(argv)
    from upsnet.doctor.config_file import require_no_file
    from upsnet.doctor.repair import repair, require_new
    from upsnet.doctor.screen import describe
    from upsnet.io.files import write_json

    if args.fix is not None:
        require_new(args.fix)
    if args.write_config is not None:
        require_no_file(args.write_config)
    diagnosis, section = _examine(args)
    print(describe(diagnosis, _columns()))
    if args.json is not None:
        write_json(args.json, diagnosis.to_json())
    if args.overlays is not None:
        _draw(diagnosis, args.overlays, args.num_overlays)
    if args.fix is not None:
        print("\n".join(["", f"corrected copy in {args.fix}:", *repair(diagnosis, args.fix)]))
        _print_overrides(diagnosis, args.fix.absolute())
    if args.write_config is not None:
        _write_config(args, diagnosis, section)
    return 1 if diagnosis.findings.counts()["error"] else 0


def _examine(args: argparse.Namespace) -> tuple[Diagnosis, dict[str, Any]]:
    """Examines the data; also returns the part of a `data` section that names them."""
    from upsnet.config import load_config
    from upsnet.doctor.check_run import examine
    from upsnet.doctor.coco_files import read_coco
    from upsnet.doctor.data_section import read_folder, section_of_config, section_of_files
    from upsnet.doctor.diagnosis import Source, diagnose

    if args.config is None:
        if args.folder is not None:
            files = read_folder(args.folder)
        else:
            files = {"data": read_coco(args.annotations, args.images, args.panoptic_dir)}
        sources = {name: Source(one) for name, one in files.items()}
        return diagnose(sources, workers=args.workers), section_of_files(files)
    splits = ("train", "val") if args.split == "both" else (args.split,)
    config = load_config(args.config, args.overrides)
    other = [name for name in splits if getattr(config.data, name).format != "coco"]
    if args.fix is not None and other:
        raise ValueError(
            f"--fix: data.{other[0]} is not in COCO panoptic layout, expected format: coco; "
            "convert it with `upsnet convert`"
        )
    return examine(config, splits, workers=args.workers), section_of_config(config.data)


def _write_config(args: argparse.Namespace, diagnosis: Diagnosis, section: dict[str, Any]) -> None:
    """Proposes a config for the examined data, or for their corrected copy, and prints what it advises."""
    from upsnet.doctor.config_file import write_config
    from upsnet.doctor.data_section import section_of_copy, statistics_of, with_value_range
    from upsnet.doctor.plan import this_device
    from upsnet.doctor.proposal import propose
    from upsnet.doctor.screen import describe_proposal

    train, val = statistics_of(diagnosis, section)
    if args.fix is not None:
        section = section_of_copy(diagnosis, args.fix, section)
    section = with_value_range(section, diagnosis)
    source = str(args.folder or args.config or args.annotations)
    proposal = propose(train, val, section, this_device(), source=source, has_timm=find_spec("timm") is not None)
    write_config(args.write_config, proposal)
    print("\n" + describe_proposal(proposal, args.write_config, _columns()))
    if args.fix is None and diagnosis.findings.counts()["error"]:
        print("the data have errors, see above; correct them before training, or add --fix DIR for a corrected copy")


def _columns() -> int:
    return max(80, min(160, shutil.get_terminal_size((120, 40)).columns))


def _print_overrides(diagnosis: Diagnosis, folder: Path) -> None:
    """Prints the overrides with which a run reads the copy."""
    from upsnet.doctor.repair import annotations_of

    for split in diagnosis.splits:
        name = split.name if split.name == "val" else "train"
        places = {"image_dir": folder / split.name, "annotation_file": annotations_of(folder, split.name)}
        quoted = ", ".join(f"{key}: {json.dumps(str(path), ensure_ascii=False)}" for key, path in places.items())
        print("override to train on the copy:", shlex.quote(f"data.{name}={{format: coco, {quoted}}}"))


def _draw(diagnosis: Diagnosis, folder: Path, count: int) -> None:
    """Writes `folder/SPLIT/NUMBER_STEM.jpg`, the images with the most problems first."""
    from tqdm import tqdm

    from upsnet.doctor.diagnosis import most_troubled
    from upsnet.inference.drawing import overlay
    from upsnet.io.images import write_image
    from upsnet.io.predictions import truth_as_prediction

    for split in diagnosis.splits:
        chosen = most_troubled(split, count)
        for number, index in enumerate(tqdm(chosen, desc=f"overlays of {split.name}", leave=False)):
            sample = split.examiner.sample(index)
            categories = split.examiner.categories
            drawn = overlay(sample.image, truth_as_prediction(sample, categories), categories)
            name = f"{number:03d}_{Path(sample.file_name).stem}.jpg"
            write_image(folder / split.name / name, drawn)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "upsnet doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="config of the run whose data to examine: a path, or a name")
    parser.add_argument(
        "--split", choices=("train", "val", "both"), default="both", help="with --config (default: both)"
    )
    parser.add_argument("--images", type=Path, help="one split of another layout: folder of the images")
    parser.add_argument("--annotations", type=Path, help="and its COCO-panoptic JSON")
    parser.add_argument("--panoptic-dir", type=Path, help="its PNGs (default: --annotations without .json)")
    parser.add_argument(
        "--write-config",
        type=Path,
        metavar="FILE",
        help="write a run config that fits the data and this machine, with a reason for each value, into a new file",
    )
    parser.add_argument("--json", type=Path, help="write all findings, class balance, sizes and anchors to this file")
    parser.add_argument(
        "--overlays",
        type=Path,
        help="draw the ground truth over images into this folder, those with the most problems first",
    )
    parser.add_argument("--num-overlays", type=int, default=20, help="number of overlays per split (default: 20)")
    parser.add_argument("--fix", type=Path, metavar="DIR", help="write a corrected copy into this new folder")
    parser.add_argument("--workers", type=int, help="processes that read images (default: one per core)")
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="DIR or key=value",
        help="a data set folder that `upsnet convert` wrote (train, val, annotations); or changes to --config",
    )
    args = parser.parse_intermixed_args(argv)
    args.overrides = [text for text in args.inputs if "=" in text]
    folders = [Path(text) for text in args.inputs if "=" not in text]
    args.folder = folders[0] if folders else None
    has_files = args.images is not None or args.annotations is not None
    if len(folders) > 1 or [args.folder is not None, args.config is not None, has_files].count(True) != 1:
        parser.error("expected one of: DIR, --config, or --images and --annotations")
    if has_files and (args.images is None or args.annotations is None):
        parser.error("--images and --annotations go together")
    if args.config is None and (args.overrides or args.split != "both"):
        parser.error("key=value and --split need --config")
    if not has_files and args.panoptic_dir is not None:
        parser.error("--panoptic-dir needs --images and --annotations")
    if args.write_config is not None and args.split != "both":
        parser.error("--write-config needs both splits, expected no --split")
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers is {args.workers}, expected 1 or more")
    if args.num_overlays < 1:
        parser.error(f"--num-overlays is {args.num_overlays}, expected 1 or more")
    return args
