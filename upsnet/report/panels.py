"""The pictures of one image: photograph, prediction, truth, and a map of its errors."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from upsnet.categories import CategorySet
from upsnet.inference.drawing import overlay
from upsnet.io.predictions import list_segments
from upsnet.metrics.error_causes import CAUSES, Causes
from upsnet.metrics.panoptic_quality import Matching
from upsnet.structures import PanopticPrediction

Picture = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.integer]

MAX_SIDE = 640
"""Longest side of a picture."""

MIN_SIDE = 512
"""Smaller pictures are enlarged by whole numbers up to it, so that labels can be read."""

MAX_BYTES = 6_500_000
"""Of all pictures of a page together; base64 makes a third more of it."""

LABEL_FIT = 1.3
"""Least width of a labelled segment, in widths of its label: fewer labels than in a single overlay."""

PANELS = ("Photograph", "Prediction", "Truth", "Errors")

CAUSE_COLORS = {
    "wrong class": (226, 116, 176),
    "split": (150, 100, 220),
    "merge": (0, 170, 125),
    "poor mask": (240, 228, 66),
    "void": (205, 210, 216),
    "missed": (224, 88, 0),
    "spurious": (40, 140, 235),
}
"""After the palette of Okabe and Ito, whose colours colour-blind people can tell apart."""

EDGE = "edge of a match"
EDGE_COLOR = (255, 180, 84)


class PanelMaker:
    """Makes the pictures of an image.

    Args:
        categories: the classes.
        num_images: how many images share `MAX_BYTES`.
    """

    def __init__(self, categories: CategorySet, num_images: int) -> None:
        self.categories = categories
        self.limit = MAX_BYTES // (len(PANELS) * max(1, num_images))

    def make(
        self,
        image: Picture | None,
        truth_map: IntArray,
        predicted_map: IntArray,
        scores: npt.NDArray[np.floating] | None,
        found: Matching,
        causes: Causes,
    ) -> dict[str, bytes]:
        """The panels as JPEG files under their names in `PANELS`; without a photograph the first is left out.

        Args:
            image: uint8 RGB of any size.
            truth_map, predicted_map: [H, W], dense ids.
            scores: [m], or None.
            found, causes: of the maps.
        """
        size = _shown_size(truth_map.shape)
        truth_ids, predicted_ids = (_resize_ids(ids, size) for ids in (truth_map, predicted_map))
        base: Picture
        if image is None:
            base = np.full((*size, 3), 110, dtype=np.uint8)
        else:
            shrinks = image.shape[0] > size[0]
            base = np.asarray(
                cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
            )
        sides = ((predicted_ids, found.predicted.classes, scores), (truth_ids, found.truth.classes, None))
        panels = {"Photograph": base} if image is not None else {}
        for name, (ids, classes, values) in zip(("Prediction", "Truth"), sides, strict=True):
            shown = [math.nan] * len(classes) if values is None else values.tolist()
            segments = list_segments(ids, classes.tolist(), shown, self.categories)
            panels[name] = overlay(base, PanopticPrediction(ids, segments), self.categories, label_fit=LABEL_FIT)
        panels["Errors"] = error_map(base, truth_ids, predicted_ids, found, causes)
        return {name: encode(panel, self.limit) for name, panel in panels.items()}


def _resize_ids(ids: IntArray, size: tuple[int, int]) -> npt.NDArray[np.int32]:
    return np.asarray(cv2.resize(ids.astype(np.int32), size[::-1], interpolation=cv2.INTER_NEAREST), dtype=np.int32)


def _shown_size(size: tuple[int, ...]) -> tuple[int, int]:
    longest = max(size[:2])
    scale = MAX_SIDE / longest if longest > MAX_SIDE else max(1, MIN_SIDE // longest)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def error_map(
    base: Picture,
    truth_map: npt.NDArray[np.int32],
    predicted_map: npt.NDArray[np.int32],
    found: Matching,
    causes: Causes,
) -> Picture:
    """Colours the pixels that are wrong, by the cause of the error they belong to.

    A pixel of a missed truth takes its cause; any other pixel of a spurious prediction takes that one's; where truth
    and prediction differ although neither is an error, it lies at the edge of a match. The rest is the photograph,
    dark and grey.

    Args:
        base: uint8 RGB [H, W, 3]; truth_map, predicted_map: int32 [H, W], dense ids.
        found, causes: of these maps, at any resolution.

    Returns:
        uint8 RGB [H, W, 3].
    """
    colors = np.array([CAUSE_COLORS[name] for name in CAUSES] + [EDGE_COLOR], dtype=np.float32)
    edge, fine = len(CAUSES), -1
    of_truth, of_predicted = (np.concatenate([[fine], c]) for c in (causes.truth, causes.predicted))
    partner = np.zeros(len(of_truth), dtype=np.int64)
    partner[found.hit_truth + 1] = found.hit_predicted + 1
    is_matched = partner > 0
    is_taken = np.zeros(len(of_predicted), dtype=bool)
    is_taken[found.hit_predicted + 1] = True

    code = of_truth[truth_map]
    code = np.where(code == fine, of_predicted[predicted_map], code)
    differs = partner[truth_map] != predicted_map
    labelled = (truth_map > 0) & (is_matched[truth_map] | is_taken[predicted_map])
    code = np.where((code == fine) & differs & labelled, edge, code)

    grey = np.repeat(base.mean(2, keepdims=True), 3, axis=2) * 0.55
    wrong = code != fine
    grey[wrong] = 0.25 * grey[wrong] + 0.85 * colors[code[wrong]]
    return np.asarray(grey.clip(0, 255), dtype=np.uint8)


def encode(picture: Picture, limit: int) -> bytes:
    """A JPEG file of at most `limit` bytes: in lower quality, then smaller, until it fits.

    (WebP files are a little smaller, but take twenty times as long to make.)
    """
    image = Image.fromarray(picture)
    while True:
        for quality in (80, 60, 40):
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=quality, subsampling=0)
            if buffer.tell() <= limit or max(image.size) <= 16:
                return buffer.getvalue()
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
