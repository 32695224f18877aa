"""Writes a data set in the forms that people have, the inverse of `datasets/convert.py`, and judges what comes back."""

import base64
import io
import json
import shutil

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from upsnet.data.coco import CocoPanoptic
from upsnet.io.panoptic_png import read_panoptic_png
from upsnet.metrics.score_files import evaluate_files
from upsnet.ops.id_maps import segment_geometry


def things_of(sample, categories):
    """Category and mask of each thing, in order; crowd flag."""
    for row, channel in enumerate(sample.classes.tolist()):
        if channel >= categories.num_stuff:
            yield categories[channel], sample.segment_map == row + 1, bool(sample.is_crowd[row])


def outlines(mask):
    """Polygons x1, y1, x2, y2, ... a sixth of a pixel inside the edges of a mask; holes are lost, as in most tools."""
    top, left = np.flatnonzero(mask.any(1))[0], np.flatnonzero(mask.any(0))[0]
    large = mask[top:, left:].astype(np.uint8).repeat(3, axis=0).repeat(3, axis=1)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((c.reshape(-1, 2) + 0.5) / 3 + (left, top)).ravel().tolist() for c in contours]


def contours(mask):
    """Polygons through the centres of the outermost pixels."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [(c.reshape(-1) + 0.5).tolist() for c in found if len(c) > 2]


def run_lengths(mask, *, compressed):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": list(mask.shape), "counts": rle["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts if not flat[0] else [0, *counts]}


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, **options).save(path)
    return path


def write_images(samples, folder):
    for sample in samples:
        save(folder / sample.file_name, sample.image)


def write_coco(samples, categories, folder, segmentation, images=None):
    """`folder/annotations.json`, and the pictures beside it: copies of `images/NAME`, or the samples' pixels."""
    document = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": c.id, "name": c.name} for c in categories.categories if c.is_thing]
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        height, width = sample.size
        row = {"id": sample.image_id, "file_name": sample.file_name, "height": height, "width": width}
        document["images"].append(row)
        for category, mask, is_crowd in things_of(sample, categories):
            row = {"id": len(document["annotations"]) + 1, "image_id": sample.image_id, "category_id": category.id}
            row |= {"segmentation": segmentation(mask), "iscrowd": int(is_crowd)}
            document["annotations"].append(row)
        if images is None:
            save(folder / sample.file_name, sample.image)
        else:
            shutil.copyfile(images / sample.file_name, folder / sample.file_name)
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder / "annotations.json"


def stuff_map(sample, categories, offset=1):
    """uint8 [H, W]: channel + offset of stuff, 0 elsewhere."""
    classes = np.concatenate([[categories.num_stuff], sample.classes])[sample.segment_map]
    return np.where(classes < categories.num_stuff, classes + offset, 0).astype(np.uint8)


def labelme(picture, size, shapes):
    """A LabelMe document; shapes are (label, type, points) and, if need be, group_id."""
    rows = [
        {"label": s[0], "shape_type": s[1], "points": s[2], "group_id": s[3] if len(s) > 3 else None, "flags": {}}
        for s in shapes
    ]
    return {
        "version": "5.5.0",
        "flags": {},
        "imagePath": picture,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
        "shapes": rows,
    }


def painted(mask):
    """A LabelMe shape of type `mask`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    buffer = io.BytesIO()
    Image.fromarray(mask[box]).save(buffer, format="PNG")
    points = [[int(columns[0]), int(rows[0])], [int(columns[-1]), int(rows[-1])]]
    return {"shape_type": "mask", "points": points, "mask": base64.b64encode(buffer.getvalue()).decode()}


def require_equal(ours, theirs, our_categories, their_categories):
    """Two samples have the same pixels, the same segments up to ids, and these the same classes by name."""
    assert np.array_equal(ours.image, theirs.image)
    names = [
        [None] + [(c[channel].name, bool(crowd)) for channel, crowd in zip(s.classes, s.is_crowd, strict=True)]
        for s, c in ((ours, our_categories), (theirs, their_categories))
    ]
    together = np.flatnonzero(np.bincount((ours.segment_map * 1000 + theirs.segment_map).ravel())).tolist()
    pairs = [divmod(number, 1000) for number in together]
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs), "segments were split or joined"
    assert all(names[0][a] == names[1][b] for a, b in pairs)


def opened(root, split="train"):
    """The converted set, after a look at what every one must satisfy."""
    path = root / "annotations" / f"panoptic_{split}.json"
    document = json.loads(path.read_text())
    data = CocoPanoptic(root / split, path)
    for image, row in zip(document["images"], document["annotations"], strict=True):
        ids = read_panoptic_png(path.with_suffix("") / row["file_name"])
        assert ids.shape == (image["height"], image["width"])
        segments = row["segments_info"]
        assert [s["id"] for s in segments] == list(range(1, len(segments) + 1)) == np.unique(ids[ids > 0]).tolist()
        areas, boxes = segment_geometry(ids, len(segments))
        assert [s["area"] for s in segments] == areas.tolist()
        assert [[x, y, x + w, y + h] for x, y, w, h in (s["bbox"] for s in segments)] == boxes.tolist()
    scores, problems = evaluate_files(path, path, progress=False, workers=1)
    assert not problems
    assert scores["panoptic"]["All"]["pq"] == 100
    return data
