"""Pictures of predictions: segments in their classes' colours, contours, and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.io.predictions import truth_as_prediction
from upsnet.structures import PanopticPrediction, Sample, Segment

Picture = npt.NDArray[np.uint8]


def overlay(
    image: Picture,
    prediction: PanopticPrediction,
    categories: CategorySet,
    *,
    alpha: float = 0.5,
    label_fit: float = 0.6,
) -> Picture:
    """Draws a prediction over its picture.

    Args:
        image: uint8 RGB [H, W, 3].
        prediction: of the same size.
        categories: for the colours.
        alpha: opacity of the segments, 0..1.
        label_fit: least width of a segment with a label, in widths of the label.

    Returns:
        uint8 RGB [H, W, 3]; void stays as it was.
    """
    ids = prediction.segment_ids
    palette = np.zeros((max([s.id for s in prediction.segments], default=0) + 1, 3), dtype=np.float32)
    for segment in prediction.segments:
        palette[segment.id] = _color(segment, categories)
    mixed = image * (1 - alpha) + palette[ids] * alpha
    mixed[ids == 0] = image[ids == 0]
    canvas = mixed.round().astype(np.uint8)
    canvas[_edges(ids)] = 255
    for segment in sorted(prediction.segments, key=lambda s: -s.area):
        _label(canvas, ids, segment, label_fit)
    return canvas


def comparison(image: Picture, prediction: PanopticPrediction, truth: Sample, categories: CategorySet) -> Picture:
    """The prediction (left) beside the truth (right), a white line between them: uint8 RGB [H, 2 W + 4, 3]."""
    pictures = [overlay(image, p, categories) for p in (prediction, truth_as_prediction(truth, categories))]
    line = np.full((image.shape[0], 4, 3), 255, dtype=np.uint8)
    return np.concatenate([pictures[0], line, pictures[1]], axis=1)


def grid(pictures: Sequence[Picture], width: int = 640) -> Picture:
    """Stacks pictures of any sizes in one column of `width` pixels."""
    rows = [cv2.resize(p, (width, max(1, round(p.shape[0] * width / p.shape[1])))) for p in pictures]
    framed = [cv2.copyMakeBorder(row, 0, 4, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255)) for row in rows]
    return np.asarray(np.concatenate(framed), dtype=np.uint8)


def _color(segment: Segment, categories: CategorySet) -> npt.NDArray[np.float32]:
    """The class's colour; things of one class differ in brightness."""
    base = np.array(categories[categories.channels[segment.category_id]].color, dtype=np.float32)
    shade = 1 + 0.35 * np.cos(2.4 * segment.id) if segment.is_thing else 1.0
    return np.clip(base * shade, 0, 255).astype(np.float32)


def _edges(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    edges = np.zeros(ids.shape, dtype=bool)
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edges[1:] |= ids[1:] != ids[:-1]
    return edges


def _label(canvas: Picture, ids: npt.NDArray[np.int32], segment: Segment, label_fit: float) -> None:
    """Writes name and score at the innermost point of a segment that is large enough to carry them."""
    x1, y1, x2, y2 = segment.box
    scale = float(np.clip(min(ids.shape) / 900, 0.35, 1.0))
    has_score = segment.is_thing and not math.isnan(segment.score)
    text = segment.category_name + (f" {segment.score:.2f}" if has_score else "")
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    if x2 - x1 < label_fit * width or y2 - y1 < 1.5 * height:
        return
    mask = np.pad((ids[y1:y2, x1:x2] == segment.id).astype(np.uint8), 1)
    _, _, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(mask, cv2.DIST_L2, 3))
    left, bottom = x1 + x - 1 - width // 2, y1 + y - 1 + height // 2
    cv2.rectangle(canvas, (left - 2, bottom - height - 2), (left + width + 2, bottom + 3), (0, 0, 0), cv2.FILLED)
    cv2.putText(canvas, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
