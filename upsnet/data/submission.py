"""Packs what `tools/predict.py` wrote about a test set into the archives that benchmark servers take."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from upsnet.data.annotation import ImageFile
from upsnet.data.categories import CategorySet
from upsnet.data.panoptic_png import read_panoptic_png
from upsnet.files import atomic_path, read_json
from upsnet.ops.id_maps import rows_of_ids


def pack_predictions(
    predictions: Path,
    images: Mapping[int | str, ImageFile],
    categories: CategorySet,
    archive: Path,
    *,
    labels: Path | None = None,
    progress: bool = True,
) -> None:
    """Writes a zip file with a COCO-panoptic JSON and the folder of its PNGs, both named like the archive.

    Args:
        predictions: folder with a STEM.png and a STEM.json for each picture; what belongs to others is left aside.
        images: every picture of the test set, by the server's image id.
        categories: the classes that the server knows; their ids are written.
        archive: the zip file to write.
        labels: another one, for semantic segmentation: STEM.png in 8 bits with each pixel's category id (up to 255),
            0 where there is none.
        progress: show a bar.

    Raises:
        FileNotFoundError, ValueError: a picture has no prediction, or one that contradicts itself, the list or the
            classes; nothing is written.
    """
    for path in (archive, labels):
        if path is not None and path.suffix != ".zip":
            raise ValueError(f"{path}: expected a name that ends in .zip")
    _require_all(predictions, images)
    annotations: list[dict[str, Any]] = []
    with ExitStack() as stack:
        whole = stack.enter_context(_zip_file(stack, archive))
        semantic = None if labels is None else stack.enter_context(_zip_file(stack, labels))
        for image_id, image in tqdm(images.items(), desc="pack", disable=not progress):
            png = predictions / f"{Path(image.file_name).stem}.png"
            ids, segments = _read(png, image, categories)
            whole.write(png, f"{archive.stem}/{png.name}")
            annotations.append({"image_id": image_id, "file_name": png.name, "segments_info": segments})
            if semantic is not None:
                semantic.writestr(png.name, _label_png(ids, segments))
        text = json.dumps({"annotations": annotations})
        whole.writestr(f"{archive.stem}.json", text, compress_type=zipfile.ZIP_DEFLATED)


def _zip_file(stack: ExitStack, path: Path) -> zipfile.ZipFile:
    """Renamed onto `path` when the stack ends well; PNGs are compressed already."""
    return zipfile.ZipFile(stack.enter_context(atomic_path(path)), "w", zipfile.ZIP_STORED)


def _require_all(predictions: Path, images: Mapping[int | str, ImageFile]) -> None:
    """Asks before the long work, not after it."""
    if not predictions.is_dir():
        raise FileNotFoundError(f"{predictions}: no such folder, expected the --output of tools/predict.py")
    present = {path.name for path in predictions.iterdir()}
    stems = [Path(image.file_name).stem for image in images.values()]
    missing = [stem for stem in stems if f"{stem}.png" not in present or f"{stem}.json" not in present]
    if missing:
        raise FileNotFoundError(
            f"{predictions}: no prediction for {len(missing)} of {len(stems)} pictures ({', '.join(missing[:5])}), "
            "expected STEM.png and STEM.json of each: run tools/predict.py on them, too"
        )


def _read(png: Path, image: ImageFile, categories: CategorySet) -> tuple[npt.NDArray[np.int32], list[dict[str, int]]]:
    """The ids of a prediction and its segments, checked against each other and the picture."""
    ids = read_panoptic_png(png)
    if ids.shape != (image.height, image.width):
        raise ValueError(f"{png}: size {ids.shape}, expected {(image.height, image.width)} as {image.file_name}")
    path = png.with_suffix(".json")
    document = read_json(path)
    try:
        segments = [{key: int(row[key]) for key in ("id", "category_id")} for row in document["segments_info"]]
        names = [str(row["category_name"]) for row in document["segments_info"]]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: no segments_info with id, category_id, category_name, expected a file of tools/predict.py"
        ) from None
    for segment, name in zip(segments, names, strict=True):
        channel = categories.channels.get(segment["category_id"])
        if channel is None or categories[channel].name != name:
            expected = "no such id" if channel is None else repr(categories[channel].name)
            raise ValueError(
                f"{path}: category_id {segment['category_id']} is {name!r}, expected {expected}: "
                "the model has other classes than the test set"
            )
    listed = [segment["id"] for segment in segments]
    if np.setdiff1d(ids, 0).tolist() != sorted(listed):
        raise ValueError(f"{png}: its ids are not those of {path.name}, expected both of one prediction")
    return ids, segments


def _label_png(ids: npt.NDArray[np.int32], segments: list[dict[str, int]]) -> bytes:
    """A grey PNG of category ids."""
    known = np.array([segment["id"] for segment in segments], dtype=np.int32)
    table = np.array([0, *(segment["category_id"] for segment in segments)], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(table[rows_of_ids(ids, known)]).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
