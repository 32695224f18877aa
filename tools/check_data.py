#!/usr/bin/env python
"""Examines a data set for everything that would ruin a training, and writes a corrected copy.

python tools/check_data.py --config configs/nuclei_r18.yaml --json report.json --overlays overlays
python tools/check_data.py --config mine.yaml --fix corrected
python tools/check_data.py --images train2017 --annotations panoptic_train2017.json

Exit code: 0 without errors (there may be warnings), 1 with errors, 2 if arguments or files allow no examination.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from upsnet.config import load_config
from upsnet.data.doctor.coco_files import read_coco
from upsnet.data.doctor.diagnosis import Diagnosis, Source, diagnose, most_troubled
from upsnet.data.doctor.repair import annotations_of, repair, require_new
from upsnet.data.doctor.screen import describe
from upsnet.data.predictions import truth_as_prediction
from upsnet.engine.data_check import examine
from upsnet.errors import run_tool
from upsnet.files import write_json, write_picture
from upsnet.inference.visualize import overlay


def main() -> None:
    """Parses the command line and examines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file of the run whose data to examine")
    parser.add_argument(
        "--split", choices=("train", "val", "both"), default="both", help="with --config (default: both)"
    )
    parser.add_argument("--images", type=Path, help="without a config: folder of the pictures")
    parser.add_argument("--annotations", type=Path, help="without a config: COCO-panoptic JSON")
    parser.add_argument("--panoptic-dir", type=Path, help="its PNGs (default: --annotations without .json)")
    parser.add_argument("--json", type=Path, help="write all findings, class balance, sizes and anchors to this file")
    parser.add_argument("--overlays", type=Path, help="draw the truth over some pictures into this folder, worst first")
    parser.add_argument("--num-overlays", type=int, default=20, help="how many, of each split (default: 20)")
    parser.add_argument("--fix", type=Path, metavar="DIR", help="write a corrected copy into this new folder")
    parser.add_argument("--workers", type=int, help="processes that read images (default: one per core)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args()
    if (args.config is None) == (args.images is None and args.annotations is None):
        parser.error("either --config, or --images and --annotations")
    if args.config is None and (args.images is None or args.annotations is None):
        parser.error("--images and --annotations go together")
    if args.config is None and (args.overrides or args.split != "both"):
        parser.error("key=value and --split need --config")
    if args.config is not None and args.panoptic_dir is not None:
        parser.error("--panoptic-dir goes with --annotations")
    if args.workers is not None and args.workers < 1:
        parser.error(f"--workers is {args.workers}, expected 1 or more")
    if args.num_overlays < 1:
        parser.error(f"--num-overlays is {args.num_overlays}, expected 1 or more")
    if args.fix is not None:
        require_new(args.fix)
    diagnosis = _examine(args)
    print(describe(diagnosis, max(80, min(160, shutil.get_terminal_size((120, 40)).columns))))
    if args.json is not None:
        write_json(args.json, diagnosis.to_json())
    if args.overlays is not None:
        _draw(diagnosis, args.overlays, args.num_overlays)
    if args.fix is not None:
        print("\n".join(["", f"corrected copy in {args.fix}:", *repair(diagnosis, args.fix)]))
        _tell_use(diagnosis, args.fix.absolute())
    sys.exit(1 if diagnosis.findings.counts()["error"] else 0)


def _examine(args: argparse.Namespace) -> Diagnosis:
    if args.config is None:
        files = read_coco(args.annotations, args.images, args.panoptic_dir)
        return diagnose({"data": Source(files)}, workers=args.workers)
    splits = ("train", "val") if args.split == "both" else (args.split,)
    config = load_config(args.config, args.overrides)
    other = [name for name in splits if getattr(config.data, name).format != "coco"]
    if args.fix is not None and other:
        raise ValueError(f"--fix: data.{other[0]} is not in COCO panoptic layout, expected format: coco")
    return examine(config, splits, workers=args.workers)


def _tell_use(diagnosis: Diagnosis, folder: Path) -> None:
    """Prints the overrides with which a run reads the copy."""
    for split in diagnosis.splits:
        name = split.name if split.name == "val" else "train"
        places = {"image_dir": folder / split.name, "annotation_file": annotations_of(folder, split.name)}
        quoted = ", ".join(f"{key}: {json.dumps(str(path), ensure_ascii=False)}" for key, path in places.items())
        print("use it:", shlex.quote(f"data.{name}={{format: coco, {quoted}}}"))


def _draw(diagnosis: Diagnosis, folder: Path, count: int) -> None:
    """Writes `folder/SPLIT/NUMBER_STEM.jpg`, in the order of trouble."""
    for split in diagnosis.splits:
        chosen = most_troubled(split, count)
        for number, index in enumerate(tqdm(chosen, desc=f"overlays of {split.name}", leave=False)):
            sample = split.examiner.sample(index)
            categories = split.examiner.categories
            picture = overlay(sample.image, truth_as_prediction(sample, categories), categories)
            name = f"{number:03d}_{Path(sample.file_name).stem}.jpg"
            write_picture(folder / split.name / name, picture)


if __name__ == "__main__":
    run_tool(main)
