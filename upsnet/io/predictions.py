"""From a model's output to predictions with the data set's category ids, and into files in COCO panoptic layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.io.files import png_names, require_inside, write_json
from upsnet.io.images import write_image
from upsnet.io.panoptic_png import write_panoptic_png
from upsnet.ops.id_maps import segment_geometry
from upsnet.structures import PanopticOutput, PanopticPrediction, Sample, Segment


def to_prediction(output: PanopticOutput, row: int, categories: CategorySet) -> PanopticPrediction:
    """The prediction of one image of a batch, on the host.

    Args:
        output: of the model.
        row: which image.
        categories: the classes.
    """
    ids = output.segment_ids[row].cpu().numpy()
    segments = list_segments(ids, output.segment_classes[row].tolist(), output.segment_scores[row].tolist(), categories)
    return PanopticPrediction(ids, segments)


def truth_as_prediction(truth: Sample, categories: CategorySet) -> PanopticPrediction:
    """A sample's truth in the form of a prediction, for pictures and files."""
    scores = [1.0] * len(truth.classes)
    return PanopticPrediction(
        truth.segment_map, list_segments(truth.segment_map, truth.classes.tolist(), scores, categories)
    )


def truth_rows(
    segment_map: npt.NDArray[np.int32],
    classes: npt.NDArray[np.int64],
    is_crowd: npt.NDArray[np.bool_],
    categories: CategorySet,
) -> list[dict[str, Any]]:
    """COCO-panoptic `segments_info` rows of a truth, whose arrays are those of a `Sample`."""
    segments = list_segments(segment_map, classes.tolist(), [1.0] * len(classes), categories)
    rows = prediction_rows(PanopticPrediction(segment_map, segments))
    for row in rows:
        del row["score"]
        row["iscrowd"] = int(is_crowd[row["id"] - 1])
    return rows


def list_segments(
    ids: npt.NDArray[np.int32], classes: list[int], scores: list[float], categories: CategorySet
) -> list[Segment]:
    """Describes the segments that occur in a dense map.

    Args:
        ids: int32 [H, W]; 0 = void, `i + 1` = row `i` of the lists.
        classes: semantic channels; scores: 0..1, NaN where there is none.
        categories: the classes.
    """
    areas, boxes = segment_geometry(ids, len(classes))
    segments = []
    for index in np.flatnonzero(areas).tolist():
        category = categories[classes[index]]
        x1, y1, x2, y2 = boxes[index].tolist()
        box, area = (x1, y1, x2, y2), int(areas[index])
        segments.append(Segment(index + 1, category.id, category.name, category.is_thing, scores[index], area, box))
    return segments


def prediction_rows(prediction: PanopticPrediction) -> list[dict[str, Any]]:
    """COCO-panoptic `segments_info` rows, with score, name and isthing beside the standard fields."""
    return [
        {
            "id": s.id,
            "category_id": s.category_id,
            "area": s.area,
            "bbox": [s.box[0], s.box[1], s.box[2] - s.box[0], s.box[3] - s.box[1]],
            "iscrowd": 0,
            "score": s.score,
            "category_name": s.category_name,
            "isthing": int(s.is_thing),
        }
        for s in prediction.segments
    ]


class PanopticWriter:
    """Writes COCO-panoptic predictions or truth: a PNG per image at once, the JSON at `close`.

    Args:
        json_path: the JSON to write; the PNGs go into the folder of the same name without `.json`.
        categories: the classes.
        file_names: of all images of the data set, so that every image has a PNG of its own whichever process writes it
            (`io.files.png_names`); by default each PNG is named after its image.

    Raises:
        ValueError: a name leaves its folder, or two images have one name.
    """

    def __init__(self, json_path: Path, categories: CategorySet, file_names: Sequence[str] = ()) -> None:
        self.json_path = json_path
        self.categories = categories
        for name in file_names:
            require_inside(name, source="the data set")
        if len(set(file_names)) < len(file_names):
            twice = next(name for name, times in Counter(file_names).items() if times > 1)
            raise ValueError(f"{twice}: names two images of the data set, expected a file for each")
        self.png_of = dict(zip(file_names, png_names(file_names), strict=True))
        self.png_names: set[str] = set()
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(
        self, image_id: int | str, file_name: str, segment_ids: npt.NDArray[np.int32], rows: list[dict[str, Any]]
    ) -> None:
        """Adds one image.

        Args:
            image_id: as in the data set.
            file_name: of the image.
            segment_ids: int32 [H, W], 0 = void.
            rows: `segments_info` rows, as `prediction_rows` makes them.
        """
        require_inside(file_name, source="the data set")
        png_name = self.png_of.get(file_name) or str(PurePosixPath(file_name).with_suffix(".png"))
        if png_name in self.png_names:
            raise ValueError(f"{file_name}: another image has this name but for the suffix; rename one")
        self.png_names.add(png_name)
        write_panoptic_png(self.json_path.with_suffix("") / png_name, segment_ids)
        height, width = segment_ids.shape
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        self.annotations.append({"image_id": image_id, "file_name": png_name, "segments_info": rows})

    def close(self) -> None:
        """Writes the JSON."""
        write_json(
            self.json_path,
            {"images": self.images, "annotations": self.annotations, "categories": self.categories.to_json()},
        )


def write_samples(samples: Iterable[Sample], categories: CategorySet, root: Path, split: str) -> None:
    """Writes samples as a data set in COCO panoptic layout: `root/split/*.png` and `root/annotations/`."""
    writer = PanopticWriter(root / "annotations" / f"panoptic_{split}.json", categories)
    for sample in samples:
        write_image(root / split / sample.file_name, sample.image)
        rows = truth_rows(sample.segment_map, sample.classes, sample.is_crowd, categories)
        writer.add(sample.image_id, sample.file_name, sample.segment_map, rows)
    writer.close()
