"""Packs what `upsnet predict` wrote for a test set into the archives that benchmark servers take."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from upsnet.categories import CategorySet, known_categories
from upsnet.data import cityscapes
from upsnet.io.annotation import ImageFile
from upsnet.io.files import atomic_path, read_json
from upsnet.io.images import open_image
from upsnet.io.panoptic_json import image_files
from upsnet.io.panoptic_png import read_panoptic_png
from upsnet.json_values import whole_number
from upsnet.ops.id_maps import rows_of_ids
from upsnet.text import shown


@dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        archives: the zip files.
        images: how many images they hold.
    """

    archives: tuple[Path, ...]
    images: int


def pack_coco(image_info: Path, predictions: Path, algorithm: str, output: Path) -> Packed:
    """Packs predictions of a COCO test set for its server.

    Args:
        image_info: `image_info_SET.json`, the list of the images; SET names the results.
        predictions: folder that `upsnet predict` wrote; predictions of other images are ignored.
        algorithm: name of the results: letters, digits, `-` and `_`.
        output: folder for the zip file.

    Raises:
        FileNotFoundError, ValueError: a name has another form, or as in `pack_predictions`.
    """
    name = re.fullmatch(r"image_info_(.+)", image_info.stem)
    if name is None:
        raise ValueError(
            f"{image_info}: expected image_info_SET.json, whose SET (such as test-dev2017) names the results"
        )
    if not re.fullmatch(r"[\w-]+", algorithm):
        raise ValueError(f"--algorithm {algorithm!r}: expected letters, digits, - and _")
    document = read_json(image_info)
    if not isinstance(document, dict) or not document.get("images"):
        raise ValueError(f"{image_info}: no images, expected a list such as image_info_test-dev2017.json")
    images = image_files(image_info, document["images"])
    archive = output / f"panoptic_{name[1]}_{algorithm}_results.zip"
    pack_predictions(predictions, images, known_categories("coco"), archive)
    return Packed((archive,), len(images))


def pack_cityscapes(root: Path, predictions: Path, output: Path, warn: Callable[[str], None]) -> Packed:
    """Packs predictions of the Cityscapes test set for its server.

    Args:
        root: folder of leftImg8bit, which lists the test images.
        predictions: folder that `upsnet predict` wrote for all cities.
        output: folder for the two zip files, panoptic and semantic.
        warn: called with a warning if the test set is not complete.

    Raises:
        FileNotFoundError, ValueError: as in `pack_predictions`.
    """
    images: dict[int | str, ImageFile] = {}
    for path in cityscapes.list_images(root, "test"):
        with open_image(path, streamed=True) as image:
            images[cityscapes.image_id(path)] = ImageFile(path.name, image.height, image.width)
    expected = cityscapes.SPLIT_SIZES["test"]
    if len(images) != expected:
        warn(f"{root} has {len(images)} test images, the server expects {expected}")
    archive, labels = (output / f"cityscapes_{task}_test.zip" for task in ("panoptic", "semantic"))
    pack_predictions(predictions, images, known_categories("cityscapes"), archive, labels=labels)
    return Packed((archive, labels), len(images))


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
        predictions: folder with a STEM.png and a STEM.json for each picture; files of other images are ignored.
        images: every picture of the test set, by the server's image id.
        categories: the classes that the server knows; their ids are written.
        archive: the zip file to write.
        labels: second zip file, for semantic segmentation: STEM.png in 8 bits with the category id of each pixel (up to
            255), 0 where there is none.
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
    """Opens a zip file that replaces `path` when the stack exits without an error; PNGs are compressed already."""
    return zipfile.ZipFile(stack.enter_context(atomic_path(path)), "w", zipfile.ZIP_STORED)


def _require_all(predictions: Path, images: Mapping[int | str, ImageFile]) -> None:
    """Asks before the long work, not after it."""
    if not predictions.is_dir():
        raise FileNotFoundError(f"{predictions}: no such folder, expected the --output of `upsnet predict`")
    present = {path.name for path in predictions.iterdir()}
    stems = [Path(image.file_name).stem for image in images.values()]
    missing = [stem for stem in stems if f"{stem}.png" not in present or f"{stem}.json" not in present]
    if missing:
        raise FileNotFoundError(
            f"{predictions}: no prediction for {len(missing)} of {len(stems)} pictures ({', '.join(missing[:5])}), "
            "expected STEM.png and STEM.json of each: run `upsnet predict` on them too"
        )


def _read(png: Path, image: ImageFile, categories: CategorySet) -> tuple[npt.NDArray[np.int32], list[dict[str, int]]]:
    """The ids of a prediction and its segments, checked against each other and the picture."""
    ids = read_panoptic_png(png)
    if ids.shape != (image.height, image.width):
        raise ValueError(f"{png}: size {ids.shape}, expected {(image.height, image.width)} as {image.file_name}")
    path = png.with_suffix(".json")
    document = read_json(path)
    try:
        segments = [{key: _whole(row[key]) for key in ("id", "category_id")} for row in document["segments_info"]]
        names = [str(row["category_name"]) for row in document["segments_info"]]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: segments_info lacks id, category_id or category_name; expected a file of `upsnet predict`"
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
        raise ValueError(
            f"{png}: its segment ids differ from those in {path.name}; run `upsnet predict` on this image again"
        )
    return ids, segments


def _whole(value: Any) -> int:
    found = whole_number(value)
    if found is None:
        raise ValueError(f"{shown(value)}, expected a whole number")
    return found


def _label_png(ids: npt.NDArray[np.int32], segments: list[dict[str, int]]) -> bytes:
    """A grey PNG of category ids."""
    known = np.array([segment["id"] for segment in segments], dtype=np.int32)
    table = np.array([0, *(segment["category_id"] for segment in segments)], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(table[rows_of_ids(ids, known)]).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
