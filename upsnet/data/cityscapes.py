"""Cityscapes as its archives unpack: reader for training and evaluation, and the conversion to COCO panoptic format.

    ROOT/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png        images
    ROOT/gtFine/SPLIT/CITY/*_gtFine_instanceIds.png      16 bits: a label's id, or 1000 id + number for an instance

Labels have two numberings: `id`, in these files and in everything that is written, and `trainId`, which is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet, known_categories
from upsnet.io.images import ValueRange, open_image, read_image
from upsnet.io.panoptic_png import write_panoptic_png
from upsnet.ops.id_maps import segment_geometry
from upsnet.structures import Sample

IMAGE_ENDING = "_leftImg8bit.png"
TRUTH = "_gtFine_instanceIds.png"
PANOPTIC = "_gtFine_panoptic.png"
SPLIT_SIZES = {"train": 2975, "val": 500, "test": 1525}
LICENCE_PLATE = 65535
"""Label -1 in 16 bits."""
NUM_LABELS = 34
"""Ids 0..33 exist, of which 19 are evaluated."""
FIRST_INSTANCE_LABEL = 24
DOWNLOAD = (
    "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of www.cityscapes-dataset.com (free account)"
)


@dataclass(frozen=True)
class Truth:
    """An instanceIds file with everything but the evaluated classes made void.

    Attributes:
        segment_map: int32 [H, W]; 0 = void, `i + 1` = row i of the others.
        ids: int64 [n], rising, as in the file.
        category_ids: int64 [n], label ids.
        is_crowd: bool [n]; a group, whose instances nobody separated.
    """

    segment_map: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int64]
    category_ids: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]


def read_truth(path: Path) -> Truth:
    """Reads an instanceIds file.

    Raises:
        FileNotFoundError, ValueError: it is missing, unreadable, or holds other numbers, such as trainIds.
    """
    values = _read_instance_ids(path)
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=LICENCE_PLATE + 1))
    labels = np.where(present < 1000, present, present // 1000)
    exists = (labels < NUM_LABELS) & ((present < 1000) | (labels >= FIRST_INSTANCE_LABEL)) | (present == LICENCE_PLATE)
    if not exists.all():
        listed = ", ".join(str(value) for value in present[~exists][:5])
        raise ValueError(
            f"{path}: holds {listed}, expected ids of labels (0 to {NUM_LABELS - 1}, or 1000 times "
            f"{FIRST_INSTANCE_LABEL} to {NUM_LABELS - 1} plus a number) and no trainIds: "
            f"take the *{TRUTH} of the archive"
        )
    categories = known_categories("cityscapes")
    is_kept = np.isin(labels, list(categories.channels))
    ids, labels = present[is_kept], labels[is_kept]
    rows = np.zeros(LICENCE_PLATE + 1, dtype=np.int32)
    rows[ids] = np.arange(1, len(ids) + 1)
    return Truth(rows.take(values), ids, labels, (ids < 1000) & (labels >= FIRST_INSTANCE_LABEL))


def _read_instance_ids(path: Path) -> npt.NDArray[np.uint16]:
    """uint16 [H, W]."""
    with open_image(path, what="instanceIds", formats=("PNG",)) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"pixel mode {image.mode}, expected 16 bits: is it of labelIds or labelTrainIds?")
        return np.asarray(image).astype(np.uint16, copy=False)


def list_images(root: Path, split: str) -> list[Path]:
    """The images of a split, sorted by city and name.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    return _list_files(root, "leftImg8bit", split, IMAGE_ENDING)


def list_truth(root: Path, split: str) -> list[Path]:
    """The instanceIds files of a split, sorted by city and name.

    Raises:
        FileNotFoundError: there is no such folder, or no such file in it.
    """
    return _list_files(root, "gtFine", split, TRUTH)


def _list_files(root: Path, part: str, split: str, ending: str) -> list[Path]:
    folder = root / part / split
    files = sorted(folder.glob(f"*/*{ending}"))
    if not files:
        reason = f"no */*{ending}" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(f"{folder}: {reason}; {DOWNLOAD} into {root}")
    return files


def image_id(path: Path) -> str:
    """`frankfurt_000000_000294` of an image or an instanceIds file."""
    return path.name.removesuffix(IMAGE_ENDING).removesuffix(TRUTH)


class Cityscapes:
    """The fine annotations, read one `Sample` at a time; an image without its instanceIds is an error.

    Args:
        root: folder that holds `leftImg8bit` and `gtFine`.
        split: `train` or `val` (the public truth of `test` is void).
        value_range: of images of more than 8 bits (`io.images.read_image`).

    Raises:
        FileNotFoundError: a folder, or the instanceIds of an image, is missing; the message says what to download.
    """

    categories: CategorySet

    def __init__(self, root: Path, split: str, value_range: ValueRange | None = None) -> None:
        self.value_range = value_range
        self.categories = known_categories("cityscapes")
        self.images = list_images(root, split)
        truth = {image_id(path): path for path in list_truth(root, split)}
        missing = [path for path in self.images if image_id(path) not in truth]
        if missing:
            raise FileNotFoundError(
                f"{missing[0]}: no *{TRUTH} in {root / 'gtFine' / split} ({len(missing)} of {len(self.images)} "
                f"images have none); {DOWNLOAD} into {root}"
            )
        self.image_ids = [image_id(path) for path in self.images]
        self.truth = [truth[name] for name in self.image_ids]
        self._channels = np.zeros(NUM_LABELS, dtype=np.int64)
        for label, channel in self.categories.channels.items():
            self._channels[label] = channel

    def __len__(self) -> int:
        return len(self.images)

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) from the head of the image's file."""
        with open_image(self.images[index], streamed=True) as image:
            return image.height, image.width

    def file_name(self, index: int) -> str:
        """The image's file."""
        return self.images[index].name

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def read(self, index: int, reduction: int = 1) -> Sample:
        """One image, always whole: a PNG has no smaller size to read.

        Raises:
            FileNotFoundError, ValueError: a file cannot be read, or the two have different sizes.
        """
        path = self.images[index]
        image = read_image(path, apply_exif=False, value_range=self.value_range)
        truth = read_truth(self.truth[index])
        if image.shape[:2] != truth.segment_map.shape:
            raise ValueError(
                f"{path}: size {image.shape[:2]}, expected {truth.segment_map.shape} like {self.truth[index].name}"
            )
        classes = self._channels[truth.category_ids]
        return Sample(image, truth.segment_map, classes, truth.is_crowd, image_id(path), path.name)


def write_panoptic(source: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the panoptic PNG of an instanceIds file; ids stay as they are.

    Returns:
        The rows of `images` and `annotations`, as the data set's own scripts write them: `file_name` of an image is no
        image's name.
    """
    truth, name = read_truth(source), image_id(source)
    known = np.array([0, *truth.ids], dtype=np.int32)
    write_panoptic_png(folder / f"{name}{PANOPTIC}", known[truth.segment_map])
    areas, boxes = segment_geometry(truth.segment_map, len(truth.ids))
    boxes[:, 2:] -= boxes[:, :2]
    columns = (truth.ids, truth.category_ids, areas, boxes, truth.is_crowd.astype(int))
    rows = [
        dict(zip(("id", "category_id", "area", "bbox", "iscrowd"), row, strict=True))
        for row in zip(*(column.tolist() for column in columns), strict=True)
    ]
    height, width = truth.segment_map.shape
    image = {"id": name, "file_name": f"{name}_gtFine{IMAGE_ENDING}", "height": height, "width": width}
    return image, {"image_id": name, "file_name": f"{name}{PANOPTIC}", "segments_info": rows}
