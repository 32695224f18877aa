"""Writes a corrected copy of a data set: only what has one right repair, and never over the original."""

from __future__ import annotations

import shutil
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import Category
from upsnet.doctor.checks import CHECKS
from upsnet.doctor.coco_files import BOXES, CocoFiles, pack_with_boxes
from upsnet.doctor.diagnosis import Diagnosis, Split
from upsnet.doctor.images import ImageFacts
from upsnet.io.annotation import Annotation
from upsnet.io.files import link_or_copy, png_names, read_json, remove_leftovers, temporary_folder, write_json
from upsnet.io.images import open_image, save_upright
from upsnet.io.panoptic_json import read_image_row
from upsnet.io.panoptic_png import read_panoptic_png, write_panoptic_png
from upsnet.json_values import ImageId
from upsnet.ops.id_maps import rows_of_ids, segment_geometry

LOST = frozenset(
    ("picture-missing", "picture-unreadable", "png-missing", "png-unreadable", "png-lossy", "size-picture")
)
"""Checks whose images are left out."""
BROKEN_CATEGORIES = frozenset(("category-field", "category-id-twice", "category-name-twice"))
"""Checks after which the class of some segments is not known."""
REDRAWN = frozenset(("id-not-in-json", "png-blended", "png-mode", "stuff-split", "stuff-crowd"))
"""Checks after which the PNG is written anew."""


def repair(diagnosis: Diagnosis, folder: Path) -> list[str]:
    """Writes `folder/SPLIT/*` and `folder/annotations/panoptic_SPLIT.json` with its PNGs, as a whole or not at all.

    Files that stay as they are become hard links where the file system allows, else copies. Of a segment's row the
    standard fields are written.

    Args:
        diagnosis: of splits in COCO layout.
        folder: new, or empty.

    Returns:
        What was done and what is left to do, a line each.

    Raises:
        FileExistsError, ValueError: the folder holds something, a split has no files, or a category or an iscrowd is
            wrong, so that nobody knows what the segments are.
    """
    require_new(folder)
    for split in diagnosis.splits:
        _require_categories(split)
        _require_crowd_flags(split)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    work = temporary_folder(folder.parent)
    try:
        lines = _write(diagnosis, work)
        work.chmod(0o755)
        if folder.exists():
            folder.rmdir()  # it is empty
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    by_hand = [f for f in diagnosis.findings if f.check.level == "error" and "--fix" not in f.check.remedy]
    return lines + [f"{f.split}: left to you: {f.check.name} ({f.check.remedy}): {f.count}" for f in by_hand]


def _require_categories(split: Split) -> None:
    """Raises ValueError if segments have a category whose row cannot be used: they would become void in the copy."""
    problems = split.source.data.problems if isinstance(split.source.data, CocoFiles) else []
    wrong = [problem for problem in problems if problem.check in BROKEN_CATEGORIES]
    are_used = any(problem.check in ("segment-category", "category-id-twice") for problem in problems)
    if wrong and are_used:
        path = split.source.data.json_path  # type: ignore[union-attr]
        raise ValueError(
            f"--fix: {path}: 'categories' has wrong rows that segments may have, the first: {wrong[0].detail}; "
            "correct them first: --fix would turn their segments into void"
        )


def _require_crowd_flags(split: Split) -> None:
    """Raises ValueError if nobody knows whether a segment is a crowd."""
    if isinstance(split.source.data, CocoFiles):
        for problem in split.source.data.problems:
            if problem.check == "segment-crowd":
                raise ValueError(f"--fix: {split.source.data.json_path}: {problem}; correct it first")


def _write(diagnosis: Diagnosis, folder: Path) -> list[str]:
    """Writes all splits; gives what was done, a line each."""
    lines = []
    repeated = {
        first for first, second, kind in diagnosis.twins if kind == "equal" and first[0] != second[0]
    }  # of equal pictures in train and val, the one in train goes
    for number, split in enumerate(diagnosis.splits):
        if not isinstance(split.source.data, CocoFiles):
            raise ValueError(f"--fix: {split.name} is not in COCO panoptic layout, only that can be written anew")
        left_out = {index for at, index in repeated if at == number}
        done = _Copy(split, split.source.data, folder, left_out).write()
        lines += [f"{split.name}: {text}: {count}" for text, count in done.items()]
    return lines


def annotations_of(folder: Path, split: str) -> Path:
    """The JSON of a split in a corrected copy."""
    return folder / "annotations" / f"panoptic_{split}.json"


def require_new(folder: Path) -> None:
    """Raises FileExistsError if a folder holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: is not empty, expected a new folder for the corrected copy")


class _Copy:
    """The corrected copy of a split."""

    def __init__(self, split: Split, files: CocoFiles, folder: Path, left_out: set[int]) -> None:
        self.split, self.files, self.left_out = split, files, left_out
        self.pictures = folder / split.name
        self.json_path = annotations_of(folder, split.name)
        self.done: Counter[str] = Counter()

    def write(self) -> Counter[str]:
        """Writes everything; gives what was done how often."""
        document = read_json(self.files.json_path, pack_with_boxes)
        rows: dict[ImageId, dict[str, Any]] = {
            key: _without_packed(row)
            for row in document["images"]
            if (key := _usable_id(row)) is not None and key in self.files.images
        }
        names = [annotation.file_name for annotation in self.files.annotations.values()]
        png_of = dict(zip(self.files.annotations, png_names(names), strict=True))
        images, annotations = [], []
        self._count_json_problems()
        for index, (image_id, annotation) in enumerate(self.files.annotations.items()):
            facts = self.split.facts[index]
            made = None
            if index in self.left_out:
                self.done["picture that val has too, left out"] += 1
            elif facts.checks() & LOST:
                self.done["image whose files are missing, damaged or do not fit, left out"] += 1
            else:
                made = self._segments(facts, annotation, png_of[image_id])
            if made is None:
                continue
            segments, size = made
            row = {**rows[image_id], "id": image_id, "height": size[0], "width": size[1]}
            if "size-json" in facts.checks():
                self.done["size in the JSON corrected"] += 1
            self._place_picture(facts)
            images.append(row)
            annotations.append({"image_id": image_id, "file_name": png_of[image_id], "segments_info": segments})
        if not images:
            raise ValueError(f"--fix: {self.split.name}: no image can be used, so there is nothing to copy")
        kept = {
            key: document[key] for key in ("info", "licenses") if key in document and not _holds_packed(document[key])
        }
        categories = [
            _with_numbers(_without_packed(document["categories"][index]), category)
            for index, category in self.files.usable_categories.items()
        ]
        write_json(self.json_path, {**kept, "images": images, "annotations": annotations, "categories": categories})
        return self.done

    def _count_json_problems(self) -> None:
        counts = Counter(problem.check for problem in self.files.problems)
        for check, count in counts.items():
            if CHECKS[check].remedy.startswith("--fix"):
                self.done[f"{CHECKS[check].text}: left out"] += count
        if counts["image-without-annotation"]:
            self.done["image without annotation, left out"] += counts["image-without-annotation"]

    def _segments(
        self, facts: ImageFacts, annotation: Annotation, png_name: str
    ) -> tuple[list[dict[str, Any]], tuple[int, int]] | None:
        """Writes the PNG; the segments that are left and the size, None if the image must be left out."""
        source = self.files.png_dir / annotation.file_name
        target = self.json_path.with_suffix("") / png_name
        checks = facts.checks()
        if not checks & REDRAWN and not annotation.unknown and facts.measured is not None and facts.size is not None:
            link_or_copy(source, target)
            measured, size, keep = facts.measured, facts.size, None
        else:
            ids = ids_of_other_kind(source, annotation.known) if "png-mode" in checks else read_panoptic_png(source)
            if ids is None or ("png-mode" in checks and ids.shape != self._picture_size(facts)):
                self.done["PNG of another mode whose ids or size cannot be right, image left out"] += 1
                return None
            rows = np.maximum(rows_of_ids(ids, annotation.known) - 1, 0)
            keep = merged(annotation.classes, annotation.is_crowd, self.files.categories.num_stuff)
            rows = np.concatenate([[0], keep + 1])[rows].astype(np.int32)
            write_panoptic_png(target, annotation.known[rows])
            areas, boxes = segment_geometry(rows, len(annotation.classes))
            measured, size = np.concatenate([areas[:, None], boxes], 1), (int(ids.shape[0]), int(ids.shape[1]))
            self.done["PNG written anew (unknown ids to void, one segment for each stuff class, RGB)"] += 1
        self._count(facts, annotation)
        return self._rows(annotation, measured), size

    def _count(self, facts: ImageFacts, annotation: Annotation) -> None:
        empty = sum(problem.check == "segment-without-pixels" for problem in facts.problems)
        self.done["segment without pixels dropped"] += empty
        self.done["image whose areas or boxes were recomputed"] += bool(facts.checks() & {"area-wrong", "box-wrong"})
        is_stuff = annotation.classes < self.files.categories.num_stuff
        self.done["iscrowd of a stuff segment cleared"] += int((is_stuff & annotation.is_crowd).sum())
        self.done = +self.done

    def _rows(self, annotation: Annotation, measured: npt.NDArray[Any]) -> list[dict[str, Any]]:
        """`segments_info` of the segments that have pixels."""
        rows = []
        columns = (annotation.known[1:], annotation.classes, annotation.is_crowd, measured)
        for number, channel, crowd, (area, x1, y1, x2, y2) in zip(*(c.tolist() for c in columns), strict=True):
            category = self.files.categories[channel]
            if area:
                row = {"id": number, "category_id": category.id, "area": area, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                rows.append({**row, "iscrowd": int(crowd and category.is_thing)})
        return rows

    def _picture_size(self, facts: ImageFacts) -> tuple[int, int]:
        with open_image(self.files.image_dir / facts.name, streamed=True) as image:
            return image.height, image.width

    def _place_picture(self, facts: ImageFacts) -> None:
        source, target = self.files.image_dir / facts.name, self.pictures / facts.name
        if "exif-rotated" not in facts.checks():
            link_or_copy(source, target)
            return
        save_upright(source, target)
        self.done["picture stored upright, as EXIF says"] += 1


def merged(channels: npt.NDArray[np.int64], is_crowd: npt.NDArray[np.bool_], num_stuff: int) -> npt.NDArray[np.int64]:
    """For each segment the one that it becomes part of: the first of its class if it is stuff, else itself."""
    first: dict[int, int] = {}
    kept = []
    for at, channel in enumerate(channels.tolist()):
        kept.append(first.setdefault(channel, at) if channel < num_stuff else at)
    return np.array(kept, dtype=np.int64)


def ids_of_other_kind(path: Path, known: Sequence[int] | npt.NDArray[np.int32]) -> npt.NDArray[np.int32] | None:
    """The ids [H, W] of a palette or grey PNG if they can only mean one thing: all of them are known. Else None.

    Readings: the palette's (or grey's) colours as R + 256 G + 65536 B, and the stored numbers themselves.
    """
    with open_image(path, formats=("PNG",)) as image:
        plain: Any = np.asarray(image).astype(np.int32) if image.mode[0] in "PLI" and image.mode != "LA" else None
        colours = np.asarray(image.convert("RGB")).astype(np.int32)
    readings = [colours[..., 0] | colours[..., 1] << 8 | colours[..., 2] << 16]
    readings += [] if plain is None or plain.ndim != 2 else [plain]
    fitting = [ids for ids in readings if ids.any() and np.isin(np.unique(ids), known).all()]
    return fitting[0] if len(fitting) == 1 else None


def _with_numbers(row: dict[str, Any], category: Category) -> dict[str, Any]:
    """A row of `categories` whose values are written as the reader takes them: "1" becomes 1."""
    color = {"color": list(category.color)} if row.get("color") else {}
    return {**row, "id": category.id, "name": category.name, "isthing": int(category.is_thing), **color}


def _without_packed(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row that are as in the file; a row that is no annotation has no use for the others."""
    return {key: value for key, value in row.items() if not _holds_packed(value) and key != BOXES}


def _holds_packed(value: Any) -> bool:
    """Whether a value of the JSON holds columns in the place of `segments_info`."""
    if isinstance(value, dict):
        return any(_holds_packed(inner) for inner in value.values())
    if isinstance(value, list):
        return any(_holds_packed(inner) for inner in value)
    return isinstance(value, tuple | array)


def _usable_id(row: Any) -> ImageId | None:
    """The id of a row of `images`; None if the row cannot be used."""
    try:
        return read_image_row(row)[0] if isinstance(row, dict) else None
    except ValueError:
        return None
