"""A source of annotations -> a data set in COCO's panoptic layout, whole or not at all.

Everything is made in a folder of its own, and moved when the last picture is done; the JSON comes last.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from upsnet.convert import orientation
from upsnet.convert.classes import require_same_classes, write_classes
from upsnet.convert.layers import Composition, OnTop, compose
from upsnet.convert.source import Item, Source
from upsnet.convert.summary import Summary
from upsnet.io.files import link_or_copy, remove_leftovers, temporary_folder, write_json
from upsnet.io.images import save_upright
from upsnet.io.panoptic_png import write_panoptic_png
from upsnet.io.parallel import in_order
from upsnet.io.predictions import truth_rows

CLASSES_FILE = "classes.yaml"
MOST_MISTAKES = 20
"""After so many pictures with mistakes the conversion ends: more of them tell nothing new."""


class MistakesError(ValueError):
    """Several pictures cannot be converted.

    Attributes:
        lines: what is wrong with each, naming its file.
    """

    def __init__(self, lines: Sequence[str], total: int) -> None:
        self.lines = list(lines)
        count = f"{len(lines)} or more" if len(lines) == MOST_MISTAKES else str(len(lines))
        super().__init__(f"{count} of {total} pictures cannot be converted, the first: {lines[0]}")


@dataclass(frozen=True)
class _Converted:
    """What is told of a picture whose files are written."""

    size: tuple[int, int]
    rows: list[dict[str, Any]]
    composition: dict[str, int]
    skipped: dict[str, int]
    turned: bool
    undecided: bool


class _Conversion:
    """Converts picture by picture; a mistake in the data is a result, so that it crosses processes unchanged."""

    def __init__(self, source: Source, splits: Sequence[str], folder: Path, on_top: OnTop) -> None:
        self.source, self.splits, self.folder, self.on_top = source, splits, folder, on_top

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
        made = compose(layers, classes.categories, classes.background, self.on_top)
        (save_upright if turn else link_or_copy)(picture.path, self.folder / split / item.name)
        write_panoptic_png(self.folder / "annotations" / f"panoptic_{split}" / _png_name(item), made.segment_map)
        rows = truth_rows(made.segment_map, made.classes, made.is_crowd, classes.categories)
        undecided = picture.orientation != 1 and picture.stored == picture.upright and not applies_exif
        return _Converted(layers.size, rows, _counts(made), dict(layers.skipped), turn, undecided)


def _counts(made: Composition) -> dict[str, int]:
    void = int((made.segment_map == 0).sum())
    counts = {"overlapped": made.overlapped, "covered": made.covered, "empty": made.empty}
    return {"pixels": made.segment_map.size, "void": void, **counts}


def convert(
    source: Source,
    output: Path,
    splits: Sequence[str],
    *,
    on_top: OnTop = "smaller",
    workers: int | None = None,
    progress: bool = True,
) -> Summary:
    """Writes `output/SPLIT/`, `output/annotations/panoptic_SPLIT/` and `.json`, and `output/classes.yaml`.

    Args:
        source: the annotated pictures.
        output: folder of the data set; other splits may be there already.
        splits: the split of each of `source.items`.
        on_top: see `layers.compose`.
        workers: processes; None: one per core.
        progress: show a bar.

    Raises:
        OSError, ValueError: one line that names the file; nothing new remains in `output`.
        MistakesError: the same of several pictures.
    """
    names = sorted(set(splits))
    if not names:
        raise ValueError(f"{output}: no annotated picture to convert")
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
        summary, documents = _convert_all(source, splits, folder, on_top, workers, progress)
        write_classes(output / CLASSES_FILE, source.classes.categories)
        (output / "annotations").mkdir(exist_ok=True)
        for name in names:
            for part in (name, f"annotations/panoptic_{name}"):
                (folder / part).rename(output / part)
        for name in names:
            write_json(output / "annotations" / f"panoptic_{name}.json", documents[name])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed:
            with suppress(OSError):
                output.rmdir()  # if it is empty
    return summary


def _convert_all(
    source: Source, splits: Sequence[str], folder: Path, on_top: OnTop, workers: int | None, progress: bool
) -> tuple[Summary, dict[str, dict[str, list[Any]]]]:
    """Writes pictures and PNGs below `folder`; gives the contents of each split's JSON.

    After a mistake it goes on, to name those of the other pictures, too.
    """
    categories = source.classes.categories
    summary = Summary(categories, on_top, left_out=source.left_out)
    documents: dict[str, dict[str, list[Any]]] = {}
    for split in sorted(set(splits)):
        documents[split] = {"images": [], "annotations": [], "categories": categories.to_json()}
    work = _Conversion(source, splits, folder, on_top)
    results = in_order(work, workers, chunk=4)
    bar = tqdm(results, total=len(source.items), desc="convert", disable=not progress, leave=False)
    mistakes: list[Exception] = []
    for item, split, result in zip(source.items, splits, bar, strict=True):
        if isinstance(result, Exception):
            mistakes.append(result)
            if len(mistakes) == MOST_MISTAKES:
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
    return summary, documents


def _add(summary: Summary, item: Item, split: str, result: _Converted) -> None:
    summary.images[split] += 1
    for row in result.rows:
        (summary.crowds if row["iscrowd"] else summary.segments)[split, row["category_id"]] += 1
    for name, count in result.composition.items():
        setattr(summary, name, getattr(summary, name) + count)
    summary.skipped.update(result.skipped)
    summary.turned += [item.path] * result.turned
    summary.undecided += [item.path] * result.undecided


def _png_name(item: Item) -> str:
    return str(PurePosixPath(item.name).with_suffix(".png"))


def split_by_name(names: Sequence[str], share: float, seed: int) -> list[str]:
    """Deals pictures out to `train` and `val`: the same names, share and seed give the same split anywhere.

    Args:
        names: of the pictures, in any order.
        share: of the validation pictures, 0..1; both splits get at least one.
        seed: another number, another split.

    Raises:
        ValueError: fewer than two pictures, or the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"--split-val {share}: expected a share between 0 and 1, for example 0.2")
    if len(names) < 2:
        raise ValueError(f"--split-val {share}: {len(names)} annotated picture, expected two or more")
    by_hash = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    held_out = set(by_hash[: min(len(names) - 1, max(1, round(share * len(names))))])
    return ["val" if name in held_out else "train" for name in names]
