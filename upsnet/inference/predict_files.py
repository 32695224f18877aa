"""Predicts image files and videos, and writes the id PNG, JSON and overlay of each, or one COCO-panoptic set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from upsnet.inference.drawing import overlay
from upsnet.inference.predictor import PanopticPredictor
from upsnet.io.files import atomic_path, read_json, remove_leftovers, write_json
from upsnet.io.images import read_image, write_image
from upsnet.io.panoptic_json import image_files
from upsnet.io.panoptic_png import write_panoptic_png
from upsnet.io.predictions import PanopticWriter, prediction_rows
from upsnet.structures import PanopticPrediction

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm"})


class CocoImage(NamedTuple):
    """An image of a COCO-panoptic set.

    Attributes:
        image_id: as in the ground truth.
        file_name: path below the folder of the images.
        size: (H, W) that the prediction must have; None if it is not known.
    """

    image_id: int | str
    file_name: str
    size: tuple[int, int] | None = None


def images_by_stem(images: list[Path]) -> list[CocoImage]:
    """Gives each image of a folder its stem as id; a stem of digits becomes a number (000000000139.jpg is image 139).

    Raises:
        ValueError: two images get the same id.
    """
    found: dict[int | str, CocoImage] = {}
    for path in images:
        is_number = path.stem.isascii() and path.stem.isdecimal() and len(path.stem) <= 18
        image = CocoImage(int(path.stem) if is_number else path.stem, path.name)
        if image.image_id in found:
            raise ValueError(
                f"{path}: has the image id {image.image_id} of {found[image.image_id].file_name}, expected an id for "
                "each image; give the ids with --images-json, or rename one file"
            )
        found[image.image_id] = image
    return list(found.values())


def images_of_json(path: Path) -> list[CocoImage]:
    """The images of a COCO JSON: ground truth, or a list of images without annotations (`image_info_*.json`).

    Raises:
        FileNotFoundError, ValueError: the file is missing, or its `images` have no id, file_name, height or width.
    """
    document = read_json(path)
    rows = image_files(path, document.get("images") if isinstance(document, dict) else None)
    return [CocoImage(image_id, row.file_name, (row.height, row.width)) for image_id, row in rows.items()]


def predict_images(
    predictor: PanopticPredictor, images: list[Path], output: Path, *, apply_exif: bool = True
) -> list[str]:
    """Predicts each image and writes a PNG, a JSON and an overlay; an image that cannot be read is skipped.

    Args:
        predictor: the model.
        images: image files; no two may have the same stem.
        output: folder for STEM.png, STEM.json and STEM_overlay.jpg of each.
        apply_exif: rotate images as their EXIF orientation says.

    Returns:
        One line for each image that cannot be read.
    """
    remove_leftovers(output)
    failures: list[str] = []
    for index, prediction, drawn in _predict_each(predictor, images, failures, apply_exif=apply_exif, draw=True):
        path = images[index]
        write_prediction(prediction, output / f"{path.stem}.png", path.name)
        write_image(output / f"{path.stem}_overlay.jpg", drawn)
    return failures


def predict_coco(
    predictor: PanopticPredictor,
    folder: Path,
    images: list[CocoImage],
    json_path: Path,
    output: Path | None = None,
    *,
    apply_exif: bool = True,
) -> list[str]:
    """Predicts images and writes one COCO-panoptic set of them; an image that cannot be read is skipped.

    Args:
        predictor: the model.
        folder: of the images.
        images: at least one.
        json_path: the JSON to write; the PNGs go into the folder of the same name without `.json`. If no image can be
            read, no JSON is written.
        output: folder for the overlays, NAME_overlay.jpg; None: no overlays.
        apply_exif: rotate images as their EXIF orientation says.

    Returns:
        One line for each image that cannot be read or does not have its size.
    """
    png_dir = json_path.with_suffix("")
    for place in (json_path.parent, png_dir, *([] if output is None else [output])):
        remove_leftovers(place)
    writer = PanopticWriter(json_path, predictor.categories, [image.file_name for image in images])
    failures: list[str] = []
    paths = [folder / image.file_name for image in images]
    for index, prediction, drawn in _predict_each(
        predictor, paths, failures, apply_exif=apply_exif, draw=output is not None
    ):
        image, size = images[index], prediction.segment_ids.shape
        if image.size is not None and size != image.size:
            remedy = "; --no-exif takes the pixels as stored" if apply_exif and size == image.size[::-1] else ""
            failures.append(
                f"{paths[index]}: {size[1]} x {size[0]} pixels, expected {image.size[1]} x {image.size[0]} as in the "
                f"JSON{remedy}"
            )
            continue
        if output is not None:
            name = writer.png_of[image.file_name].removesuffix(".png")
            write_image(output / f"{name}_overlay.jpg", drawn)
        writer.add(image.image_id, image.file_name, prediction.segment_ids, prediction_rows(prediction))
    if len(failures) < len(images):
        writer.close()
    return failures


def _predict_each(
    predictor: PanopticPredictor, paths: Sequence[Path], failures: list[str], *, apply_exif: bool, draw: bool
) -> Iterator[tuple[int, PanopticPrediction, npt.NDArray[np.uint8]]]:
    """Number, prediction and overlay (empty unless `draw`) of each image; adds a line to `failures` for the others."""
    value_range = predictor.make_input.value_range
    for index, path in enumerate(tqdm(paths, desc="predict", disable=len(paths) == 1)):
        try:
            # The model sees a large JPEG at a part of its size, as in training. The overlay shows all pixels.
            prediction = predictor(path, apply_exif=apply_exif)
            image = read_image(path, apply_exif=apply_exif, value_range=value_range) if draw else None
        except (OSError, ValueError) as error:
            failures.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        drawn = np.zeros((0, 0, 3), np.uint8) if image is None else overlay(image, prediction, predictor.categories)
        yield index, prediction, drawn


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
