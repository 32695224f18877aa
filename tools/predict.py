#!/usr/bin/env python
"""Segments pictures: an image, a folder of them, or a video.

    python tools/predict.py --checkpoint runs/demo/model.pt --input photo.jpg --output predictions

Writes STEM.png (ids as R + 256 G + 65536 B), STEM.json (the segments) and STEM_overlay.jpg for each image; for a video
STEM_overlay.mp4, and the PNG and JSON of each frame in the folder STEM.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from upsnet.data.panoptic_png import write_panoptic_png
from upsnet.data.predictions import prediction_rows
from upsnet.errors import run_tool
from upsnet.files import IMAGE_SUFFIXES, atomic_path, read_image, write_json, write_picture
from upsnet.inference.predictor import PanopticPredictor
from upsnet.inference.visualize import overlay
from upsnet.structures import PanopticPrediction

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm"})


def main() -> None:
    """Parses the command line and predicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="model.pt of a run, or an exported checkpoint, .pt2 or .onnx"
    )
    parser.add_argument("--input", type=Path, required=True, help="image, folder of images, or video")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    args = parser.parse_args()
    if not args.input.exists():
        raise FileNotFoundError(f"{args.input}: no such image, folder or video")
    folder = args.input if args.input.is_dir() else args.input.parent
    if args.output.resolve() == folder.resolve():
        raise ValueError(
            f"--output {args.output} is the folder of the input, expected another: STEM.png may be a picture there"
        )
    predictor = PanopticPredictor.from_checkpoint(args.checkpoint, args.device)
    if args.input.suffix.lower() in VIDEO_SUFFIXES:
        predict_video(predictor, args.input, args.output)
    else:
        predict_images(predictor, list_images(args.input), args.output)


def list_images(path: Path) -> list[Path]:
    """The image itself, or the images of a folder, sorted by name."""
    if path.is_file():
        return [path]
    images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(
            f"{path}: no image in this folder, expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    stem, count = Counter(p.stem for p in images).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"{path}: {count} images are named {stem!r}, expected one of each name: the outputs would overwrite"
        )
    return images


def predict_images(predictor: PanopticPredictor, images: list[Path], output: Path) -> None:
    """Predicts each image; one that cannot be read stops nothing, and is named at the end."""
    failures: list[str] = []
    for path in tqdm(images, desc="predict", disable=len(images) == 1):
        try:
            image = read_image(path, apply_exif=True)
        except ValueError as error:
            failures.append(str(error))
            continue
        prediction = predictor(image)
        write_prediction(prediction, output / f"{path.stem}.png", path.name)
        write_picture(output / f"{path.stem}_overlay.jpg", overlay(image, prediction, predictor.categories))
    if failures:
        raise ValueError(f"{len(failures)} of {len(images)} images failed: {'; '.join(failures[:5])}")


def predict_video(predictor: PanopticPredictor, path: Path, output: Path) -> None:
    """Predicts every frame."""
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
            raise ValueError(f"{path}: no frame could be read, expected a video that OpenCV decodes")
        writer.release()


def _frames(capture: cv2.VideoCapture) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames in RGB."""
    while True:
        found, frame = capture.read()
        if not found:
            return
        yield np.ascontiguousarray(frame[..., ::-1])


def write_prediction(prediction: PanopticPrediction, png: Path, source: str) -> None:
    """Writes the id PNG and, beside it, the segments as JSON."""
    write_panoptic_png(png, prediction.segment_ids)
    height, width = prediction.segment_ids.shape
    write_json(
        png.with_suffix(".json"),
        {"image": source, "height": height, "width": width, "segments_info": prediction_rows(prediction)},
    )


if __name__ == "__main__":
    run_tool(main)
