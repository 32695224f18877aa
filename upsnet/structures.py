"""The records that travel between the stages: Sample -> PanopticBatch -> PanopticOutput -> PanopticPrediction.

Letters in the shapes: B images, N ground-truth instances (padded), K detection slots, S stuff classes,
T thing classes, H and W in pixels. ARCHITECTURE.md holds the number conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One image and its panoptic truth, as a reader gives it and as augmentation changes it.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        segment_map: int32 [H, W]; `0` is void, `i + 1` is row `i` of `classes` and `is_crowd`.
        classes: int64 [n], semantic channel of each segment (stuff first, then things).
        is_crowd: bool [n], a region of several instances that nobody separated.
        image_id: the data set's own identifier.
        file_name: for messages and outputs.
    """

    image: npt.NDArray[np.uint8]
    segment_map: npt.NDArray[np.int32]
    classes: npt.NDArray[np.int64]
    is_crowd: npt.NDArray[np.bool_]
    image_id: int | str
    file_name: str

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the segment map."""
        return int(self.segment_map.shape[0]), int(self.segment_map.shape[1])


@dataclass(frozen=True)
class PanopticTarget:
    """What the losses need, derived from the segment map after augmentation; of one image, or stacked for a batch.

    Attributes:
        boxes: float32 [B, N, 4], XYXY, tight around the visible pixels, x2 and y2 exclusive.
        labels: int64 [B, N], 1..T, 0 for padding.
        is_crowd: bool [B, N].
        instance_map: int32 [B, H, W]; 0 where no thing is, else slot + 1.
        semantic_map: uint8 [B, H, W], semantic channel, or `IGNORE_LABEL` on void and padding.
        seeds: int64 [B], the random stream of each image in this epoch.
    """

    boxes: Tensor
    labels: Tensor
    is_crowd: Tensor
    instance_map: Tensor
    semantic_map: Tensor
    seeds: Tensor

    @property
    def is_instance(self) -> Tensor:
        """bool [B, N]: real, and no crowd."""
        return (self.labels > 0) & ~self.is_crowd

    @property
    def is_crowd_region(self) -> Tensor:
        """bool [B, N]: real, and a crowd."""
        return (self.labels > 0) & self.is_crowd


@dataclass(frozen=True)
class PanopticBatch:
    """Images padded to one size at the bottom and the right, with their truth while training.

    Attributes:
        images: uint8, or float32 in 0..255, [B, 3, H, W], RGB.
        image_sizes: int64 [B, 2], (H, W) of the valid part of each image; network_sizes: the same on the host.
        original_sizes: (H, W) of each image as it was read.
        file_names: one per image.
        target: for the losses.
        truths: the samples as read (without pixels), for evaluation.
        unreadable: training images that others replace, as index -> reason.
        views: the same images at other sizes, for test-time augmentation; one batch for each scale.
    """

    images: Tensor
    image_sizes: Tensor
    network_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    file_names: list[str] = field(default_factory=list)
    target: PanopticTarget | None = None
    truths: list[Sample] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    views: list[PanopticBatch] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str) -> PanopticBatch:
        """Copies every tensor to `device`, asynchronously from pinned memory."""
        return map_tensors(self, lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> PanopticBatch:
        """Moves every tensor into page-locked memory (called by the data loader)."""
        return map_tensors(self, Tensor.pin_memory)


def map_tensors(record: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a record with every tensor in it changed."""
    changed: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, Tensor):
            changed[f.name] = change(value)
        elif isinstance(value, PanopticTarget):
            changed[f.name] = map_tensors(value, change)
        elif f.name == "views":
            changed[f.name] = [map_tensors(view, change) for view in value]
    return replace(record, **changed)


def list_tensors(record: Any) -> list[Tensor]:
    """Every tensor of a record, in a fixed order."""
    found: list[Tensor] = []
    map_tensors(record, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


@dataclass(frozen=True)
class Detections:
    """A fixed number of slots per image in order of falling score; empty slots last.

    Attributes:
        boxes: float32 [B, K, 4], XYXY in network-input pixels.
        scores: float32 [B, K], 0..1; 0 in empty slots.
        labels: int64 [B, K], 1..T; 1 in empty slots.
        valid: bool [B, K].
        mask_logits: float32 [B, K, M, M] of the slot's own class.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    mask_logits: Tensor

    @classmethod
    def none(cls, batch: int, device: torch.device) -> Detections:
        """One empty slot per image."""
        boxes, labels = torch.zeros(batch, 1, 4, device=device), torch.ones(batch, 1, dtype=torch.long, device=device)
        return cls(boxes, boxes[..., 0], labels, labels == 0, boxes.new_zeros(batch, 1, 1, 1))

    def __getitem__(self, images: slice) -> Detections:
        """Those of some images."""
        return replace(self, **{f.name: getattr(self, f.name)[images] for f in fields(self)})


@dataclass(frozen=True)
class Instances:
    """The instances of one image, each with a mask of its own, for AP; masks may overlap.

    Attributes:
        scores: float32 [K], 0..1.
        labels: int64 [K], 1..T.
        valid: bool [K]; the other slots are empty.
        windows: makes the masks of the valid slots in their order, one at a time: a bool mask [h, w] on the host, and
            row and column of its first pixel in the image. All pixels outside are False.
    """

    scores: Tensor
    labels: Tensor
    valid: Tensor
    windows: Callable[[], Iterator[tuple[Tensor, int, int]]]


@dataclass(frozen=True)
class PanopticOutput:
    """What a model predicts for a batch; the same for every architecture.

    Attributes:
        segment_ids: int32 [H, W] for each image at its output size; 0 = void, `i + 1` = row `i` of the table.
        segment_classes: int64 [B, R], semantic channel of each row.
        segment_scores: float32 [B, R]; 1 for stuff.
        semantic: int32 [H, W] for each image: the semantic head alone (None unless asked for).
        instances: the instances of each image (None unless asked for).
    """

    segment_ids: list[Tensor]
    segment_classes: Tensor
    segment_scores: Tensor
    semantic: list[Tensor] | None = None
    instances: list[Instances] | None = None


@dataclass(frozen=True)
class Segment:
    """One segment of a prediction: a thing, or all pixels of a stuff class.

    Attributes:
        id: value in `PanopticPrediction.segment_ids`.
        category_id: the data set's own category id.
        score: 0..1; 1.0 for stuff.
        area: pixels.
        box: (x1, y1, x2, y2) in pixels of the image, x2 and y2 exclusive.
    """

    id: int
    category_id: int
    category_name: str
    is_thing: bool
    score: float
    area: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class PanopticPrediction:
    """The prediction for one image, on the host.

    Attributes:
        segment_ids: int32 [H, W] at the image's own size; 0 = void.
        segments: one per id that occurs.
    """

    segment_ids: npt.NDArray[np.int32]
    segments: list[Segment]

    def mask(self, segment: Segment | int) -> npt.NDArray[np.bool_]:
        """The pixels of a segment as bool [H, W].

        Args:
            segment: one of `segments`, or its id.

        Raises:
            ValueError: the prediction has no segment of this id.
        """
        number = segment.id if isinstance(segment, Segment) else segment
        if all(number != known.id for known in self.segments):
            raise ValueError(f"segment id {number} is not in the prediction, which has {len(self.segments)} segments")
        return self.segment_ids == number

    def to_coco(self, image_id: int | str, *, polygons: bool = False) -> list[dict[str, Any]]:
        """The segments, things and stuff, as COCO results, one for each segment in their order.

        Args:
            image_id: of the image, as in the data set.
            polygons: give outlines instead of masks. A polygon has no holes: pixels of other segments within the
                outline count as part of the segment. If pycocotools fills the polygons of a segment without holes, the
                result is its mask.

        Returns:
            Rows of `image_id`, `category_id`, `segmentation`, `bbox` (x, y, width, height in pixels), `area` (pixels of
            the mask), `score` (1 for stuff) and `iscrowd` (0), of plain values. `segmentation` is a compressed RLE, or
            a list of polygons [x1, y1, x2, y2, ...], whose points are corners of pixels. The rows have no `id`;
            annotation files need one, which is unique in the file.
        """
        rows = []
        for segment in self.segments:
            x1, y1, x2, y2 = segment.box
            mask = self.mask(segment)
            row = {
                "image_id": image_id,
                "category_id": segment.category_id,
                "segmentation": _outlines(mask, segment.box) if polygons else _compressed(mask),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": segment.area,
                "score": segment.score,
                "iscrowd": 0,
            }
            rows.append(row)
        return rows

    def to_supervision(self) -> Any:
        """The segments, things and stuff, as `supervision.Detections`, one row for each segment in their order.

        Returns:
            Detections with `xyxy` float32 [n, 4] (x2 and y2 exclusive), `mask` bool [n, H, W], `confidence` float32 [n]
            (1 for stuff), `class_id` int64 [n] (category ids of the data set) and `data["class_name"]`.

        Raises:
            ImportError: the package supervision is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            raise ImportError("to_supervision needs the package supervision: pip install supervision") from None
        count = len(self.segments)
        masks = np.zeros((count, *self.segment_ids.shape), dtype=bool)
        for mask, segment in zip(masks, self.segments, strict=True):
            np.equal(self.segment_ids, segment.id, out=mask)
        return supervision.Detections(
            xyxy=np.array([segment.box for segment in self.segments], dtype=np.float32).reshape(count, 4),
            mask=masks,
            confidence=np.array([segment.score for segment in self.segments], dtype=np.float32),
            class_id=np.array([segment.category_id for segment in self.segments], dtype=np.int64),
            data={"class_name": np.array([segment.category_name for segment in self.segments], dtype=str)},
        )


def _compressed(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed RLE of a mask, with text that JSON can hold."""
    from pycocotools import mask as coco_mask

    found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode("ascii")}


def _outlines(mask: npt.NDArray[np.bool_], box: tuple[int, int, int, int]) -> list[list[int]]:
    """The outer contours of a mask along the edges of its pixels, each as [x1, y1, x2, y2, ...].

    OpenCV gives the centres of border pixels. In a mask of twice the size, pixel x covers columns 2x and 2x + 1, whose
    border pixels lie at the edges x and x + 1 of the original pixel: column c lies at edge (c + 1) // 2.
    """
    import cv2

    x1, y1, x2, y2 = box
    doubled = mask[y1:y2, x1:x2].repeat(2, axis=0).repeat(2, axis=1).astype(np.uint8)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:
        points = (contour[:, 0].astype(np.int64) + 1) // 2
        points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
        polygons.append((points + (x1, y1)).ravel().tolist())
    return polygons
