"""Converts a source of annotations into a data set in COCO panoptic layout, completely or not at all.

All files are written into a temporary folder and moved when the last image is done; the JSON comes last.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from upsnet.categories import CategorySet
from upsnet.convert import orientation
from upsnet.convert.classes import require_same_classes, write_classes
from upsnet.convert.layers import BY_KIND, Composition, Layers, Order, compose
from upsnet.convert.source import Item, Source
from upsnet.convert.summary import Summary
from upsnet.io.files import atomic_path, link_or_copy, remove_leftovers, temporary_folder, write_json
from upsnet.io.images import save_upright
from upsnet.io.panoptic_png import write_panoptic_png
from upsnet.io.parallel import in_order
from upsnet.io.predictions import truth_rows
from upsnet.text import shown

CLASSES_FILE = "classes.yaml"
MISTAKES_FILE = "mistakes.txt"
SPLIT_NAME = re.compile(r"[\w-]{1,64}")
MAX_MISTAKES = 20
"""A conversion that does not skip mistakes ends after so many images with mistakes."""


class MistakesError(ValueError):
    """Several images cannot be converted.

    Attributes:
        lines: what is wrong with each, naming its file.
    """

    def __init__(self, lines: Sequence[str], total: int) -> None:
        self.lines = list(lines)
        count = f"{len(lines)} or more" if len(lines) == MAX_MISTAKES else str(len(lines))
        super().__init__(
            f"{count} of {total} images cannot be converted, the first: {lines[0]}; --skip-bad leaves mistakes out"
        )


@dataclass(frozen=True)
class _Converted:
    """What the summary needs of an image whose files are written."""

    size: tuple[int, int]
    rows: list[dict[str, Any]]
    composition: dict[str, int]
    crowd_regions: Counter[int]
    skipped: Counter[str]
    mistakes: list[str]
    rotated: bool
    undecided: bool


class _Conversion:
    """Converts image by image; a mistake in the data is a result, so that it crosses processes unchanged."""

    def __init__(self, source: Source, splits: Sequence[str], folder: Path, order: Order) -> None:
        self.source, self.splits, self.folder, self.order = source, splits, folder, order

    def __len__(self) -> int:
        return len(self.source.items)

    def __getitem__(self, index: int) -> _Converted | Exception:
        try:
            return self._convert(self.source.items[index], self.splits[index])
        except (OSError, ValueError) as error:
            return error

    def _convert(self, item: Item, split: str) -> _Converted:
        classes = self.source.classes
        picture = orientation.inspect(item.path)
        layers = self.source.read(item, picture)
        applies_exif = self.source.applies_exif
        turn = orientation.must_turn(
            picture, layers.size, applies_exif=applies_exif, annotation=f"the annotation of {item.name}"
        )
        made = compose(layers, classes.categories, classes.background, self.order)
        (save_upright if turn else link_or_copy)(picture.path, self.folder / split / item.name)
        write_panoptic_png(self.folder / "annotations" / f"panoptic_{split}" / _png_name(item), made.segment_map)
        rows = truth_rows(made.segment_map, made.classes, made.is_crowd, classes.categories)
        fits_both = picture.stored == picture.upright or not layers.is_size_declared
        undecided = picture.orientation != 1 and fits_both and not applies_exif
        return _Converted(
            layers.size,
            rows,
            _counts(made),
            _crowd_regions(layers, classes.categories),
            layers.skipped,
            layers.mistakes,
            turn,
            undecided,
        )


def _counts(made: Composition) -> dict[str, int]:
    void = int((made.segment_map == 0).sum())
    counts = {"overlapped": made.overlapped, "covered": made.covered, "empty_regions": made.empty}
    return {"pixels": made.segment_map.size, "void": void, **counts}


def _crowd_regions(layers: Layers, categories: CategorySet) -> Counter[int]:
    channels = (region.channel for region in layers.regions if region.is_crowd and region.channel < len(categories))
    return Counter(categories[channel].id for channel in channels)


def convert(
    source: Source,
    output: Path,
    splits: Sequence[str],
    *,
    order: Order = BY_KIND,
    workers: int | None = None,
    progress: bool = True,
) -> Summary:
    """Writes `output/SPLIT/`, `output/annotations/panoptic_SPLIT/` and `.json`, and `output/classes.yaml`.

    If the source leaves out mistakes, they are listed in `output/annotations/SPLIT_mistakes.txt`.

    Args:
        source: the annotated images.
        output: folder of the data set; other splits may be there already.
        splits: the split of each of `source.items`.
        order: which of two regions is on top.
        workers: processes; None: one per core.
        progress: show a bar.

    Raises:
        OSError, ValueError: one line that names the file; nothing new remains in `output`.
        MistakesError: the same of several images.
    """
    names = sorted(set(splits))
    if not names:
        raise ValueError(f"{output}: no annotated image to convert")
    for name in names:
        if not SPLIT_NAME.fullmatch(name) or name == "annotations":
            raise ValueError(f"split {shown(name)}, expected a name of letters, digits, '_' and '-' such as train")
    for name in names:
        for path in (output / name, *(output / "annotations" / f"panoptic_{name}{end}" for end in ("", ".json"))):
            if path.exists():
                raise FileExistsError(f"{path}: is there already; remove it, or choose another --output or --split")
    if (output / CLASSES_FILE).exists():
        require_same_classes(output / CLASSES_FILE, source.classes.categories)
    existed = output.exists()
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    folder = temporary_folder(output)
    try:
        summary, documents = _convert_all(source, splits, folder, order, workers, progress)
        write_classes(output / CLASSES_FILE, source.classes)
        (output / "annotations").mkdir(exist_ok=True)
        parts = [part for name in names for part in (name, f"annotations/panoptic_{name}")]
        _move(parts, folder, output)
        for name in names:
            write_json(output / "annotations" / f"panoptic_{name}.json", documents[name])
        if summary.mistakes:
            summary.mistakes_file = output / "annotations" / f"{'_'.join(names)}_{MISTAKES_FILE}"
            with atomic_path(summary.mistakes_file) as temporary:
                temporary.write_text("\n".join([*summary.mistakes, ""]), encoding="utf-8", errors="backslashreplace")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed:
            with suppress(OSError):
                output.rmdir()  # if it is empty
    return summary


def _move(parts: Sequence[str], source: Path, target: Path) -> None:
    """Moves folders; all of them or none."""
    moved: list[str] = []
    try:
        for part in parts:
            (source / part).rename(target / part)
            moved.append(part)
    except OSError:
        for part in moved:
            (target / part).rename(source / part)
        raise


def _convert_all(
    source: Source, splits: Sequence[str], folder: Path, order: Order, workers: int | None, progress: bool
) -> tuple[Summary, dict[str, dict[str, list[Any]]]]:
    """Writes images and PNGs below `folder`; gives the contents of each split's JSON.

    After a mistake it goes on, to name those of the other images, too.
    """
    categories = source.classes.categories
    summary = Summary(categories, order.on_top, source.classes.background, left_out=source.left_out)
    summary.notes, summary.mistakes = list(source.notes), list(source.mistakes.lines)
    documents: dict[str, dict[str, list[Any]]] = {}
    for split in sorted(set(splits)):
        documents[split] = {"images": [], "annotations": [], "categories": categories.to_json()}
    work = _Conversion(source, splits, folder, order)
    results = in_order(work, workers, chunk=4)
    bar = tqdm(results, total=len(source.items), desc="convert", disable=not progress, leave=False)
    mistakes: list[Exception] = []
    for item, split, result in zip(source.items, splits, bar, strict=True):
        if isinstance(result, Exception) and source.mistakes.are_skipped:
            summary.mistakes.append(str(result))
            summary.bad_images += 1
            continue
        if isinstance(result, Exception):
            mistakes.append(result)
            if len(mistakes) == MAX_MISTAKES:
                break
            continue
        _add(summary, item, split, result)
        height, width = result.size
        image = {"id": item.image_id, "file_name": item.name, "height": height, "width": width}
        annotation = {"image_id": item.image_id, "file_name": _png_name(item), "segments_info": result.rows}
        documents[split]["images"].append(image)
        documents[split]["annotations"].append(annotation)
    bar.close()
    if len(mistakes) == 1:
        raise mistakes[0]
    if mistakes:
        raise MistakesError([str(mistake) for mistake in mistakes], len(source.items))
    for split, document in documents.items():
        if not document["images"]:
            raise ValueError(f"no image of the split {split!r} is left, the first mistake: {summary.mistakes[0]}")
    return summary, documents


def _add(summary: Summary, item: Item, split: str, result: _Converted) -> None:
    summary.images[split] += 1
    summary.empty[split] += not item.is_annotated
    for row in result.rows:
        (summary.crowds if row["iscrowd"] else summary.segments)[split, row["category_id"]] += 1
    for name, count in result.composition.items():
        setattr(summary, name, getattr(summary, name) + count)
    summary.skipped.update(result.skipped)
    summary.crowd_regions.update(result.crowd_regions)
    summary.mistakes += result.mistakes
    summary.rotated += [item.path] * result.rotated
    summary.undecided += [item.path] * result.undecided


def _png_name(item: Item) -> str:
    return str(PurePosixPath(item.name).with_suffix(".png"))


def split_by_name(names: Sequence[str], share: float, seed: int, group_by: str | None = None) -> list[str]:
    """Assigns images to `train` and `val`: the same names, share and seed give the same split anywhere.

    Args:
        names: of the images, in any order.
        share: of the validation images, 0..1; both splits get at least one group.
        seed: another number gives another split.
        group_by: regular expression. Images with the same match (of its first group, if it has one) stay together. An
            image whose name does not match is a group of its own.

    Raises:
        ValueError: fewer than two groups, no regular expression, or the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"--split-val {share}: expected a share between 0 and 1, for example 0.2")
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(_group(name, group_by) or name, []).append(index)
    if group_by is not None and not any(_group(name, group_by) for name in names):
        raise ValueError(f"--group-by {shown(group_by)}: no image name matches, the first is {shown(names[0])}")
    if len(groups) < 2:
        what = "annotated image" if group_by is None else f"group of images by --group-by {shown(group_by)}"
        raise ValueError(f"--split-val {share}: {len(groups)} {what}, expected two or more")
    by_hash = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    wanted = max(1, round(share * len(names)))
    held_out: set[int] = set()
    for key in by_hash[:-1]:
        if held_out and len(held_out) + len(groups[key]) / 2 > wanted:
            break
        held_out.update(groups[key])
    return ["val" if index in held_out else "train" for index in range(len(names))]


def _group(name: str, group_by: str | None) -> str | None:
    if group_by is None:
        return None
    try:
        found = re.search(group_by, name)
    except (re.error, RecursionError) as error:
        raise ValueError(f"--group-by {shown(group_by)}: no regular expression ({error})") from None
    if found is None:
        return None
    return found[1] if found.re.groups else found[0]
