#!/usr/bin/env python
"""Runs an exported model without torch: numpy, onnxruntime and OpenCV are all it needs.

    python examples/onnx_infer.py --model model.onnx --input photo.jpg --output out

Writes STEM.png (ids as R + 256 G + 65536 B) and STEM.json (the segments), as `tools/predict.py` does.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

OUTPUTS = ["segment_ids", "category_id", "is_thing", "score", "area", "box", "valid"]


def network_size(height: int, width: int, data: dict, limit: list[int] | None) -> tuple[int, int]:
    """Size that the picture is resized to, by the rule in the file."""
    if data["test_short_side"] is not None:
        scale = min(data["test_short_side"] / min(height, width), data["test_max_side"] / max(height, width))
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
    if limit is not None and (scale := min(limit[0] / height, limit[1] / width)) < 1:
        height, width = max(1, int(height * scale)), max(1, int(width * scale))
    return height, width


def main() -> None:
    """Predicts one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--input", "--output"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(args.model), options, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["upsnet.json"])
    if session.get_inputs()[0].type != "tensor(uint8)":
        raise SystemExit(
            f"{args.model}: takes unrounded float pictures (test_resize: float), expected one that takes uint8"
        )
    data, limit, batch = about["config"]["data"], about["network_size"], about["batch_size"]

    image = cv2.imread(str(args.input))
    if image is None:
        raise SystemExit(f"{args.input}: cannot be read as an image")
    height, width = network_size(*image.shape[:2], data, limit)
    resized = cv2.resize(image[..., ::-1], (width, height), interpolation=cv2.INTER_LINEAR)
    divisor = data["size_divisor"]
    rows, columns = limit or (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
    images = np.zeros((batch, 3, rows, columns), np.uint8)
    images[:, :, :height, :width] = resized.transpose(2, 0, 1)
    sizes = np.array([[height, width]] * batch, np.int64)
    feed = {"images": images, "image_sizes": sizes, "canvas": np.zeros(image.shape[:2], np.uint8)}
    ids, category, is_thing, score, area, box, valid = (value[0] for value in session.run(OUTPUTS, feed))

    names = {row["id"]: row["name"] for row in about["categories"]}
    rows = [
        {
            "id": int(i + 1), "category_id": int(category[i]), "area": int(area[i]),
            "bbox": [int(v) for v in (box[i][0], box[i][1], box[i][2] - box[i][0], box[i][3] - box[i][1])],
            "iscrowd": 0, "score": float(score[i]), "category_name": names[int(category[i])],
            "isthing": int(is_thing[i]),
        }
        for i in np.flatnonzero(valid)
    ]  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)
    cv2.imwrite(str(args.output / f"{args.input.stem}.png"), rgb[..., ::-1])
    found = {"image": args.input.name, "height": image.shape[0], "width": image.shape[1], "segments_info": rows}
    (args.output / f"{args.input.stem}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
