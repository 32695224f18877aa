"""Predicts image files and videos, and writes the id PNG, JSON and overlay of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from upsnet.inference.drawing import overlay
from upsnet.inference.predictor import PanopticPredictor
from upsnet.io.files import atomic_path, remove_leftovers, write_json
from upsnet.io.images import read_image, write_image
from upsnet.io.panoptic_png import write_panoptic_png
from upsnet.io.predictions import prediction_rows
from upsnet.structures import PanopticPrediction

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm"})


def predict_images(predictor: PanopticPredictor, images: list[Path], output: Path) -> list[str]:
    """Predicts each image; an image that cannot be read is skipped.

    Args:
        predictor: the model.
        images: image files; no two may have the same stem.
        output: folder for STEM.png, STEM.json and STEM_overlay.jpg of each.

    Returns:
        One line for each image that cannot be read.
    """
    remove_leftovers(output)
    failures: list[str] = []
    for path in tqdm(images, desc="predict", disable=len(images) == 1):
        try:
            prediction = predictor(path)  # as training reads it: a large JPEG at a part of its size
            image = read_image(path, apply_exif=True)
        except (OSError, ValueError) as error:
            failures.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        write_prediction(prediction, output / f"{path.stem}.png", path.name)
        write_image(output / f"{path.stem}_overlay.jpg", overlay(image, prediction, predictor.categories))
    return failures


def predict_video(predictor: PanopticPredictor, path: Path, output: Path) -> None:
    """Predicts every frame of a video.

    Args:
        predictor: the model.
        path: the video.
        output: folder for STEM_overlay.mp4, and for the PNG and JSON of each frame (STEM/000000.png).

    Raises:
        ValueError: OpenCV cannot read the video, or cannot write one.
    """
    capture = cv2.VideoCapture(str(path))
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    writer: cv2.VideoWriter | None = None
    count = 0
    with atomic_path(output / f"{path.stem}_overlay.mp4") as temporary:
        for frame in tqdm(_frames(capture), desc="predict", total=int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) or None):
            prediction = predictor(frame)
            write_prediction(prediction, output / path.stem / f"{count:06d}.png", path.name)
            if writer is None:
                size = (frame.shape[1], frame.shape[0])
                writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise ValueError(
                        f"{path}: this OpenCV cannot write mp4v video; predict the frames as images instead"
                    )
            writer.write(overlay(frame, prediction, predictor.categories)[..., ::-1])
            count += 1
        if writer is None:
            raise ValueError(
                f"{path}: no frame could be read, expected a video that OpenCV decodes; convert it to .mp4"
            )
        writer.release()


def _frames(capture: cv2.VideoCapture) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames in RGB."""
    while True:
        found, frame = capture.read()
        if not found:
            return
        yield np.ascontiguousarray(frame[..., ::-1])


def write_prediction(prediction: PanopticPrediction, png: Path, source: str) -> None:
    """Writes the segment ids as an RGB PNG (R + 256 G + 65536 B), and the segments as JSON beside it."""
    write_panoptic_png(png, prediction.segment_ids)
    height, width = prediction.segment_ids.shape
    write_json(
        png.with_suffix(".json"),
        {"image": source, "height": height, "width": width, "segments_info": prediction_rows(prediction)},
    )
