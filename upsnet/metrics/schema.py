"""The keys of `metrics.json` as types. The command below writes `docs/metrics.schema.json` from them.

python -m upsnet.metrics.schema > docs/metrics.schema.json

All scores are in percent. A score is null if there is nothing to score.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from upsnet.metrics.document import FORMAT
from upsnet.text import cut

Percent = Annotated[float | None, Field(ge=0, le=100)]
Interval = Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=2, max_length=2)]
Count = Annotated[int, Field(ge=0)]
CategoryId = str


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Group(_Section):
    """Means over the classes that occur."""

    pq: Percent = Field(description="panoptic quality: SQ x RQ of each class, then the mean")
    sq: Percent = Field(description="mean IoU of the matched segments")
    rq: Percent = Field(description="F1 score of the matching")
    n: Count = Field(description="classes that occur: with a true segment or a spurious prediction")


class PanopticClass(_Section):
    """PQ of a class, and the sums from which it is computed."""

    name: str
    pq: Percent
    sq: Percent
    rq: Percent
    iou: float = Field(ge=0, description="sum of the IoU of the matches, 0 to tp")
    tp: Count = Field(description="matched segments")
    fp: Count = Field(description="spurious predictions")
    fn: Count = Field(description="missed true segments")


class Groups(_Section):
    """All classes, things, stuff, and each class by its category id."""

    All: Group
    Things: Group
    Stuff: Group
    per_class: dict[CategoryId, PanopticClass]


class Dagger(_Section):
    """PQ-dagger (Porzi et al. 2019): PQ without an IoU threshold for stuff."""

    All: Percent
    Things: Percent
    Stuff: Percent
    per_class: dict[CategoryId, Percent]


class Ends(_Section):
    """The ends of intervals, [low, high]."""

    pq: Interval
    sq: Interval
    rq: Interval


class Intervals(_Section):
    """Intervals of the bootstrap over the images."""

    level: Literal[95] = Field(description="percent of the resamples inside an interval")
    resamples: Count
    seed: Count
    All: Ends | None
    Things: Ends | None
    Stuff: Ends | None
    per_class: dict[CategoryId, Ends | None]


class SliceIntervals(_Section):
    """Intervals of a part of the data set, from the same bootstrap."""

    All: Ends | None
    Things: Ends | None
    Stuff: Ends | None


class Slice(_Section):
    """Scores of a part of the data set."""

    images: Count = Field(description="images of the part; for object_size, images that have a segment of this size")
    segments: Count = Field(description="true segments")
    All: Group
    Things: Group
    Stuff: Group
    interval: SliceIntervals | None = Field(description="null with fewer than two images in the data set")


class Panoptic(Groups):
    """Scores of the panoptic map."""

    pq_dagger: Dagger
    interval: Intervals | None = Field(description="null with fewer than two images")
    slices: dict[str, dict[str, Slice]] = Field(
        description="attribute -> value -> scores; object_size, crowding, image_size, and the columns of --slices"
    )
    boundary: Groups | None = Field(description="Boundary PQ (Cheng et al. 2021); null without --boundary")
    confusion: dict[CategoryId, dict[CategoryId, Count]] = Field(
        description="true category id -> predicted category id -> segments with IoU above 1/2"
    )


class ClassIoU(_Section):
    """IoU of a class."""

    name: str
    iou: Percent


class Semantic(_Section):
    """Scores of a map of classes."""

    miou: Percent = Field(description="mean over the classes that occur")
    pixel_accuracy: Percent
    per_class: dict[CategoryId, ClassIoU]


class ClassAP(_Section):
    """AP of a class of things."""

    name: str
    ap: Percent


class AveragePrecision(_Section):
    """COCO's AP of masks."""

    ap: Percent = Field(description="mean over IoU 0.50 to 0.95")
    ap50: Percent
    ap75: Percent
    ap_small: Percent = Field(description="objects below 32^2 pixels")
    ap_medium: Percent = Field(description="objects from 32^2 to 96^2 pixels")
    ap_large: Percent = Field(description="objects above 96^2 pixels")
    ground_truth: Literal["panoptic", "instances"] = Field(
        description="what the detections are compared with: things of the panoptic ground truth, or --instances"
    )
    per_class: dict[CategoryId, ClassAP]


class Metrics(_Section):
    """`metrics.json` of an evaluation. A section that does not apply is null."""

    format: Literal[2]
    panoptic: Panoptic | None = Field(description="PQ and related scores of the panoptic map")
    semantic: Semantic | None = Field(description="of the semantic head; null for prediction files")
    semantic_from_panoptic: Semantic | None = Field(description="of the panoptic map; predicted void is wrong")
    instance_ap: AveragePrecision | None = Field(description="of the list of instances; null for prediction files")
    panoptic_ap: AveragePrecision | None = Field(description="of the panoptic map; null unless all things have scores")
    iteration: Count | None = Field(default=None, description="iteration of the evaluation, if training wrote the file")


def check_metrics(document: dict[str, Any], *, source: str) -> None:
    """Checks that a document is a `metrics.json` of the current format.

    Args:
        document: the contents of the file.
        source: the file, for the error.

    Raises:
        ValueError: a key is missing or unknown, or its value has the wrong type; the message names the key.
    """
    try:
        Metrics.model_validate(document, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = cut(".".join(map(str, first["loc"])), 200)
        raise ValueError(f"{source}: {place}: {first['msg']}; write it again with `upsnet evaluate`") from None


def schema_text() -> str:
    """The contents of `docs/metrics.schema.json`: a JSON Schema."""
    schema: dict[str, Any] = Metrics.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"metrics.json of upsnet, format {FORMAT}"
    return json.dumps(schema, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
