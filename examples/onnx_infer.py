#!/usr/bin/env python
"""Runs an exported model without torch: numpy, onnxruntime, OpenCV and Pillow are all it needs.

    python examples/onnx_infer.py --model model.onnx --input photo.jpg --output out

Writes STEM.png (ids as R + 256 G + 65536 B) and STEM.json (the segments), as `upsnet predict` does.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from PIL import Image

OUTPUTS = ["segment_ids", "category_id", "is_thing", "score", "area", "box", "valid"]


def to_8_bits(image: np.ndarray, value_range: list[float] | None) -> np.ndarray:
    """The image with values of more than 8 bits mapped as in training: `data.value_range` becomes 0..255."""
    if image.dtype == np.uint8:
        return image
    if value_range is None:
        raise SystemExit("the image has more than 8 bits, expected 8 bits, because the model has no data.value_range")
    low, high = value_range
    return np.rint(np.clip((image.astype(np.float64) - low) / (high - low) * 255, 0, 255)).astype(np.uint8)


def resize(image: np.ndarray, data: dict, limit: list[int] | None) -> np.ndarray:
    """The image at the size that the network works on, by the rule in the file (docs/deployment.md)."""
    size = height, width = image.shape[:2]
    if short := data["test_short_side"]:
        scale = min(short / min(size), data["test_max_side"] / max(size))
        height, width = (max(1, round(side * scale)) for side in size)
    if limit and (scale := min(limit[0] / height, limit[1] / width)) < 1:
        height, width = max(1, int(height * scale)), max(1, int(width * scale))
    if height * width >= size[0] * size[1]:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    # Fine texture must not become a pattern: means of blocks first, then a triangle filter as wide as the scale.
    factors = (n for n in (8, 4, 2) if n * 1.5 * height <= size[0] and n * 1.5 * width <= size[1])
    factor = next(factors, 1)
    image = cv2.copyMakeBorder(image, 0, -size[0] % factor, 0, -size[1] % factor, cv2.BORDER_REPLICATE)
    blocks = (image.shape[1] // factor, image.shape[0] // factor)
    image = cv2.resize(image, blocks, interpolation=cv2.INTER_AREA)
    box = (0, 0, size[1] / factor, size[0] / factor)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box))


def main() -> None:
    """Predicts one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--input", "--output"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    if not args.model.is_file():
        raise SystemExit(f"{args.model}: no such exported model")
    known = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in known if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(str(args.model), providers=providers)
    about = json.loads(session.get_modelmeta().custom_metadata_map["upsnet.json"])
    if (image := cv2.imread(str(args.input), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)) is None:
        raise SystemExit(f"{args.input}: cannot be read as an image")
    image = to_8_bits(image, about["config"]["data"].get("value_range"))
    resized = resize(np.ascontiguousarray(image[..., ::-1]), about["config"]["data"], about["network_size"])
    height, width = resized.shape[:2]
    divisor = about["config"]["data"]["size_divisor"]
    rows, columns = about["network_size"] or (-(-n // divisor) * divisor for n in (height, width))
    images = np.zeros((about["batch_size"], 3, rows, columns), np.uint8)
    images[:, :, :height, :width] = resized.transpose(2, 0, 1)
    sizes = np.array([[height, width]] * len(images), np.int64)
    feed = {"images": images, "image_sizes": sizes, "canvas": np.zeros(image.shape[:2], np.uint8)}
    ids, category, is_thing, score, area, box, valid = (value[0] for value in session.run(OUTPUTS, feed))

    names = {row["id"]: row["name"] for row in about["categories"]}
    segments = [
        {
            "id": int(i + 1), "category_id": int(category[i]), "area": int(area[i]),
            "bbox": [int(v) for v in (box[i][0], box[i][1], box[i][2] - box[i][0], box[i][3] - box[i][1])],
            "iscrowd": 0, "score": float(score[i]), "category_name": names[int(category[i])],
            "isthing": int(is_thing[i]),
        }
        for i in np.flatnonzero(valid)
    ]  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    bgr = np.stack([ids >> 16 & 255, ids >> 8 & 255, ids & 255], axis=-1).astype(np.uint8)
    cv2.imwrite(str(args.output / f"{args.input.stem}.png"), bgr)
    found = {"image": args.input.name, "height": ids.shape[0], "width": ids.shape[1], "segments_info": segments}
    (args.output / f"{args.input.stem}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
