"""What one image is looked at for, from its files (COCO layout) or from its sample (any data set)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.doctor.checks import Problem
from upsnet.doctor.coco_files import CocoFiles
from upsnet.doctor.image_files import Pixels, examine_picture, fingerprint, read_picture, reason
from upsnet.doctor.segments import Segments, Size, Use, examine_segments, measure
from upsnet.io.annotation import Annotation
from upsnet.io.images import ValueLimits
from upsnet.io.panoptic_png import HEADER, SIGNATURE, read_panoptic_png
from upsnet.ops.id_maps import rows_of_ids
from upsnet.structures import Sample

RGB, RGBA = 2, 6
KINDS = {0: "grey", 3: "palette", 4: "grey with alpha", RGB: "RGB", RGBA: "RGBA"}
BLENDED_IDS, BLENDED_PIXELS = 8, 4
"""An image with so many unknown ids, half of which have at most so many pixels, was blended."""
BOX_TOLERANCE = 1.5
"""Pixels: some programs count a box to its last pixel, or round it outwards."""


@dataclass
class ImageFacts:
    """What is kept of an image.

    Attributes:
        name: of the picture.
        problems: what was found.
        size: (H, W) of the map, None if it cannot be used.
        segments: those with pixels, None likewise.
        thumbnail, digest: of the picture (`pictures.Picture`), None if it cannot be read.
        limits: of the picture's values, if it has more than 8 bits (COCO layout).
        measured: int32 [n, 5], area and box of each segment that the JSON names, in its order (COCO layout).
    """

    name: str
    problems: list[Problem] = field(default_factory=list)
    size: Size | None = None
    segments: Segments | None = None
    thumbnail: Pixels | None = None
    digest: bytes | None = None
    limits: ValueLimits | None = None
    measured: npt.NDArray[np.int32] | None = None

    @property
    def can_be_drawn(self) -> bool:
        """Whether picture and map can be read and lie on each other."""
        return self.segments is not None and not self.checks() & {"size-picture", "exif-rotated"}

    def checks(self) -> set[str]:
        """Names of the checks that found something."""
        return {problem.check for problem in self.problems}


class Examiner(Protocol):
    """Looks at the images of a split, by number."""

    categories: CategorySet

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ImageFacts: ...

    def picture(self, index: int) -> Pixels:
        """The whole picture, uint8 [H, W, 3]."""
        ...

    def sample(self, index: int) -> Sample:
        """Picture and truth, where both can be read and fit."""
        ...


class PanopticDataset(Protocol):
    """The part of a reader that is needed here."""

    categories: CategorySet

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class SampleExaminer:
    """Of any data set: what the samples tell.

    Args:
        dataset: the reader.
        use: what the training makes of the split.
    """

    def __init__(self, dataset: PanopticDataset, use: Use) -> None:
        self.dataset, self.use, self.categories = dataset, use, dataset.categories

    def __len__(self) -> int:
        return len(self.dataset)

    def picture(self, index: int) -> Pixels:
        """The whole picture."""
        return self.dataset[index].image

    def sample(self, index: int) -> Sample:
        """As the reader gives it."""
        return self.dataset[index]

    def __getitem__(self, index: int) -> ImageFacts:
        try:
            sample = self.dataset[index]
        except (OSError, ValueError) as error:
            name = f"image {index}"
            return ImageFacts(name, [Problem("sample-unreadable", name, str(error))])
        facts = ImageFacts(sample.file_name, size=sample.size)
        facts.thumbnail, facts.digest = fingerprint(sample.image)
        count = len(sample.classes)
        found, ids = measure(sample.segment_map, count + 1).part(1, count + 1), np.arange(1, count + 1)
        facts.segments, odd = examine_segments(
            found, sample.classes, sample.is_crowd, ids,
            num_stuff=self.categories.num_stuff, size=sample.size, use=self.use,
        )  # fmt: skip
        facts.problems = [Problem(check, sample.file_name, detail) for check, detail in odd]
        return facts


class CocoExaminer:
    """Of a data set in COCO panoptic layout: what the files tell.

    Args:
        files: of the split.
        use: what the training makes of it.
    """

    def __init__(self, files: CocoFiles, use: Use) -> None:
        self.files, self.use, self.categories = files, use, files.categories
        self.ids = list(files.annotations)

    def __len__(self) -> int:
        return len(self.ids)

    def picture(self, index: int) -> Pixels:
        """The whole picture, as stored."""
        return read_picture(self._picture(index), self.use.value_range)

    def sample(self, index: int) -> Sample:
        """With void where an id is unknown."""
        annotation = self.files.annotations[self.ids[index]]
        rows = rows_of_ids(read_panoptic_png(self.files.png_dir / annotation.file_name), annotation.known)
        image, name = self.picture(index), self.files.images[self.ids[index]].file_name
        if image.shape[:2] != rows.shape:
            raise ValueError(f"{name}: size {image.shape[:2]}, expected {rows.shape} like its PNG")
        segment_map = np.maximum(rows - 1, 0).astype(np.int32)
        return Sample(image, segment_map, annotation.classes, annotation.is_crowd, self.ids[index], name)

    def _picture(self, index: int) -> Path:
        return self.files.image_dir / self.files.images[self.ids[index]].file_name

    def __getitem__(self, index: int) -> ImageFacts:
        row = self.files.images[self.ids[index]]
        annotation = self.files.annotations[self.ids[index]]
        facts = ImageFacts(row.file_name)
        picture = examine_picture(self._picture(index), row.file_name, facts.problems, self.use.value_range)
        if picture is not None:
            facts.thumbnail, facts.digest, facts.limits = picture.thumbnail, picture.digest, picture.limits
        ids = read_ids(self.files.png_dir / annotation.file_name, annotation.file_name, facts.problems)
        if picture is None or ids is None:
            return facts
        size = (int(ids.shape[0]), int(ids.shape[1]))
        if picture.size != size:
            check = "exif-rotated" if picture.upright_size == size else "size-picture"
            facts.problems.append(Problem(check, row.file_name, f"{text(picture.size)}, PNG {text(size)}"))
        elif picture.orientation != 1:
            facts.problems.append(Problem("exif-orientation", row.file_name, f"orientation {picture.orientation}"))
        stated = (row.height, row.width)
        if stated != size and (picture.size == size or stated != picture.size):
            facts.problems.append(Problem("size-json", row.file_name, f"JSON {text(stated)}, PNG {text(size)}"))
        facts.size = size
        self._examine_map(facts, ids, annotation, self.files.boxes[self.ids[index]])
        return facts

    def _examine_map(
        self, facts: ImageFacts, ids: npt.NDArray[np.int32], annotation: Annotation, boxes: npt.NDArray[np.float32]
    ) -> None:
        listed = np.concatenate([annotation.known, np.array(annotation.unknown, dtype=np.int32)])
        rows = rows_of_ids(ids, listed)  # 0: unknown ids, 1: void, then the segments
        found = measure(rows, len(listed) + 1)
        name = annotation.file_name
        if found.areas[0]:
            facts.problems.append(unlisted(name, ids[rows == 0]))
        count = len(annotation.classes)
        found = found.part(2, 2 + count)
        numbers = annotation.known[1:].astype(np.int64)
        facts.measured = np.concatenate([found.areas[:, None], found.boxes], 1).astype(np.int32)
        facts.segments, odd = examine_segments(
            found, annotation.classes, annotation.is_crowd, numbers,
            num_stuff=self.categories.num_stuff, size=ids.shape, use=self.use,
        )  # fmt: skip
        odd += contradictions(found.areas, found.boxes, annotation, boxes)
        facts.problems += [Problem(check, name, detail) for check, detail in odd]


def contradictions(
    areas: npt.NDArray[np.int64], boxes: npt.NDArray[np.int64], said: Annotation, said_boxes: npt.NDArray[np.float32]
) -> list[tuple[str, str]]:
    """(check, detail) where the JSON says something else of its segments than the pixels."""
    numbers = said.known[1:]
    there = areas > 0
    odd = [("segment-without-pixels", f"segment {number}") for number in numbers[~there].tolist()]
    wrong = there & (said.areas != areas) & (said.areas != -1)
    odd += [
        ("area-wrong", f"segment {numbers[row]}: {said.areas[row]}, is {areas[row]}")
        for row in np.flatnonzero(wrong).tolist()
    ]
    ends = np.concatenate([said_boxes[:, :2], said_boxes[:, :2] + said_boxes[:, 2:]], 1)
    wrong = there & (np.abs(ends - boxes) > BOX_TOLERANCE).any(1)
    odd += [("box-wrong", f"segment {numbers[row]}") for row in np.flatnonzero(wrong).tolist()]
    return odd


def unlisted(name: str, pixels: npt.NDArray[np.int32]) -> Problem:
    """What to call ids [n] that are not in the JSON."""
    ids, times = np.unique(pixels, return_counts=True)
    is_blended = len(ids) >= BLENDED_IDS and np.median(times) <= BLENDED_PIXELS
    first = ", ".join(map(str, ids[:5].tolist())) + (", ..." if len(ids) > 5 else "")
    return Problem("png-blended" if is_blended else "id-not-in-json", name, f"{len(ids)} ids: {first}")


def read_ids(path: Path, name: str, problems: list[Problem]) -> npt.NDArray[np.int32] | None:
    """The ids of a PNG [H, W]; None with a problem where it cannot be trusted."""
    try:
        with path.open("rb") as file:
            head = file.read(33)
        if head.startswith(b"\xff\xd8"):
            problems.append(Problem("png-lossy", name))
            return None
        if head.startswith(SIGNATURE) and len(head) == 33:
            depth, kind = HEADER.unpack_from(head, 16)[2:4]
            if kind not in (RGB, RGBA) or depth != 8:
                problems.append(Problem("png-mode", name, f"{KINDS.get(kind, kind)}, {depth} bits"))
                return None
            if kind == RGBA:
                problems.append(Problem("png-alpha", name))
        return read_panoptic_png(path)
    except FileNotFoundError:
        problems.append(Problem("png-missing", name))
    except (OSError, ValueError) as error:
        problems.append(Problem("png-unreadable", name, reason(error, path)))
    return None


def text(size: Size) -> str:
    """As people write sizes, width first."""
    return f"{size[1]} x {size[0]}"
