"""The part of a proposed config that names the data which the doctor examined."""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path
from typing import Any

from upsnet.class_edits import ClassEdits
from upsnet.config import DataConfig
from upsnet.data.loader import data_root
from upsnet.doctor.coco_files import CocoFiles, read_coco
from upsnet.doctor.diagnosis import Diagnosis, Split
from upsnet.doctor.repair import annotations_of
from upsnet.doctor.statistics import SplitStatistics
from upsnet.io.images import ValueLimits

KEPT = {"train", "val", "categories", "classes", "value_range"}
"""Keys of the `data` section that say what the data are, and not how a run uses them."""


def read_folder(folder: Path) -> dict[str, CocoFiles]:
    """Reads a data set folder as `upsnet convert` writes it: `train`, and `val` if it is there.

    Raises:
        FileNotFoundError, ValueError: the folder has another layout, or a JSON cannot be read.
    """
    names = [name for name in ("train", "val") if annotations_of(folder, name).is_file()]
    if "train" not in names:
        raise FileNotFoundError(
            f"{folder}: no annotations/panoptic_train.json, expected a folder that `upsnet convert` wrote; "
            "name the files of other layouts with --images and --annotations"
        )
    return {name: read_coco(annotations_of(folder, name), folder / name) for name in names}


def section_of_files(files: dict[str, CocoFiles]) -> dict[str, Any]:
    """The section for splits in COCO layout; a single split is both `train` and `val`."""
    sources = [_source(one.image_dir, one.json_path, one.png_dir) for one in files.values()]
    return {"train": sources[0], "val": sources[-1]}


def section_of_copy(diagnosis: Diagnosis, folder: Path, section: dict[str, Any]) -> dict[str, Any]:
    """The section for a corrected copy of the data that `section` names."""
    names = [split.name for split in diagnosis.splits]
    sources = [_source(folder / name, annotations_of(folder, name)) for name in names]
    return {**section, "train": sources[0], "val": sources[-1]}


def section_of_config(data: DataConfig) -> dict[str, Any]:
    """The section for the data of a config, without what the proposal chooses."""
    return data.model_dump(mode="json", include=KEPT, exclude_defaults=True)


def with_value_range(section: dict[str, Any], diagnosis: Diagnosis) -> dict[str, Any]:
    """The section with the `value_range` that images of more than 8 bits need, unless it has one."""
    limits = [facts.limits for split in diagnosis.splits for facts in split.facts if facts.limits is not None]
    if not limits or "value_range" in section:
        return section
    values = reduce(ValueLimits.union, limits).proposal()
    is_default = values == [0, 65535] and all(one.are_16_bits for one in limits)
    return section if is_default else {**section, "value_range": values}


def statistics_of(diagnosis: Diagnosis, section: dict[str, Any]) -> tuple[SplitStatistics, SplitStatistics | None]:
    """The statistics of `train`, and of `val` if it is another split."""
    edits = DataConfig.model_validate(section).classes.edits()
    found = [_statistics(split, edits) for split in diagnosis.splits]
    return found[0], found[1] if len(found) > 1 else None


def _statistics(split: Split, edits: ClassEdits) -> SplitStatistics:
    images = [(facts.name, facts.size, facts.segments) for facts in split.facts]
    usable = [(name, size, segments) for name, size, segments in images if size is not None and segments is not None]
    # A reader has changed the classes already; the files of the COCO layout are examined as they are.
    changes = edits if isinstance(split.source.data, CocoFiles) else ClassEdits()
    return SplitStatistics.of(usable, split.examiner.categories, changes)


def _source(image_dir: Path, annotation_file: Path, panoptic_dir: Path | None = None) -> dict[str, Any]:
    source = {"format": "coco", "image_dir": _path(image_dir), "annotation_file": _path(annotation_file)}
    if panoptic_dir is not None and panoptic_dir != annotation_file.with_suffix(""):
        source["panoptic_dir"] = _path(panoptic_dir)
    return source


def _path(path: Path) -> str:
    """As the config names a file or folder: relative to the data root if it lies below it, else absolute."""
    absolute, root = (Path(os.path.abspath(one)) for one in (path, data_root()))  # noqa: PTH100 - keeps links
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)
