"""Reader of the COCO panoptic layout: an image folder, a JSON, and a folder of id PNGs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from upsnet.io.images import ValueRange, read_image
from upsnet.io.panoptic_json import PanopticJson
from upsnet.structures import Sample


class CocoPanoptic:
    """A data set in COCO panoptic layout, read one `Sample` at a time.

    Args:
        image_dir: folder of the pictures.
        annotation_file: COCO-panoptic JSON.
        panoptic_dir: folder of the PNGs; by default the JSON's path without `.json`.
        value_range: of images of more than 8 bits (`io.images.read_image`).

    Raises:
        FileNotFoundError, ValueError: naming the file, see `PanopticJson`.
    """

    def __init__(
        self,
        image_dir: Path,
        annotation_file: Path,
        panoptic_dir: Path | None = None,
        value_range: ValueRange | None = None,
    ) -> None:
        self.value_range = value_range
        self.truth = PanopticJson(annotation_file, panoptic_dir)
        self.categories = self.truth.categories
        self.image_dir = image_dir
        self.pictures = np.array([self.truth.images.position(image_id) for image_id in self.truth.annotations])
        if not image_dir.is_dir():
            raise FileNotFoundError(f"{image_dir}: no such image folder")
        if not len(self.pictures):
            raise ValueError(f"{annotation_file}: no annotated image")

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def image_ids(self) -> list[int | str]:
        """In the order of the indices."""
        return list(self.truth.annotations)

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) from the JSON, without opening the picture."""
        return self.truth.images.size_at(self.pictures[index])

    def file_name(self, index: int) -> str:
        """The picture's path below its folder."""
        return self.truth.images.at(self.pictures[index]).file_name

    def classes(self, index: int) -> npt.NDArray[np.int64]:
        """Semantic channels of an image's segments, from the JSON."""
        return self.truth.annotations.at(index).classes.copy()

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def read(self, index: int, reduction: int = 1) -> Sample:
        """One image; a JPEG at a part of its size, as `io.images.read_image` says, its segment map always whole.

        Raises:
            FileNotFoundError, ValueError: the picture or the PNG cannot be read, or they contradict each other or the
                JSON; the message names the file.
        """
        index = range(len(self))[index]  # -1 is the last, too
        file_name, annotation = self.file_name(index), self.truth.annotations.at(index)
        path = self.image_dir / file_name
        image = read_image(path, apply_exif=False, reduction=reduction, value_range=self.value_range)
        segment_map = self.truth.map_of(annotation)
        size, reduced = segment_map.shape, tuple(-(-side // reduction) for side in segment_map.shape)
        if image.shape[:2] not in (size, reduced):
            raise ValueError(f"{self.image_dir / file_name}: size {image.shape[:2]}, expected {size} like its PNG")
        image_id = self.truth.annotations.id_at(index)
        return Sample(image, segment_map, annotation.classes.copy(), annotation.is_crowd.copy(), image_id, file_name)
