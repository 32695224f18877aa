"""A small data set without a fault, and functions that plant one each."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from upsnet.categories import CategorySet
from upsnet.io.panoptic_png import id_to_rgb, read_panoptic_png, rgb_to_id, write_panoptic_png
from upsnet.io.predictions import PanopticWriter

SIZE = (64, 96)
CATEGORIES = CategorySet.from_json(
    [
        {"id": 11, "name": "sky", "isthing": 0},
        {"id": 3, "name": "grass", "isthing": 0},
        {"id": 40, "name": "cat", "isthing": 1},
        {"id": 7, "name": "dog", "isthing": 1},
    ],
    source="test",
)
SKY, GRASS, CAT, DOG, BACK = 70001, 300, 5, 9_000_000, 68_000
"""Ids of the segments of every image; the last is a second dog."""


def scene() -> tuple[np.ndarray, list[dict]]:
    ids = np.full(SIZE, SKY, dtype=np.int32)
    ids[32:] = GRASS
    ids[10:26, 8:30] = CAT
    ids[30:54, 40:70] = DOG
    ids[40:60, 74:90] = BACK
    ids[62:] = 0
    rows = []
    for number, category in ((SKY, 11), (GRASS, 3), (CAT, 40), (DOG, 7), (BACK, 7)):
        y, x = np.nonzero(ids == number)
        box = [int(x.min()), int(y.min()), int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1]
        rows.append({"id": number, "category_id": category, "area": len(x), "bbox": box, "iscrowd": 0})
    return ids, rows


def write_set(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        (root / split).mkdir(parents=True)
        writer = PanopticWriter(root / "annotations" / f"panoptic_{split}.json", CATEGORIES)
        for number in range(count):
            picture = cv2.resize(rng.integers(0, 256, (8, 12, 3)).astype(np.uint8), SIZE[::-1])
            Image.fromarray(picture).save(root / split / f"{number}.jpg", quality=95)
            writer.add(number, f"{number}.jpg", *scene())
        writer.close()


def json_of(root, split="train"):
    return root / "annotations" / f"panoptic_{split}.json"


def in_json(change, split="train"):
    def plant(root):
        document = json.loads(json_of(root, split).read_text())
        change(document)
        json_of(root, split).write_text(json.dumps(document))

    return plant


def in_segment(number=0, row=2, **values):
    return in_json(lambda d: d["annotations"][number]["segments_info"][row].update(values))


def picture(root, name="train/1.jpg"):
    return root / name


def png(root, name="1.png", split="train"):
    return root / "annotations" / f"panoptic_{split}" / name


def in_map(change):
    """Changes a map, and areas and boxes with it."""

    def plant(root):
        ids = change(read_panoptic_png(png(root)))
        write_panoptic_png(png(root), np.ascontiguousarray(ids))
        document = json.loads(json_of(root).read_text())
        for row in document["annotations"][1]["segments_info"]:
            y, x = np.nonzero(ids == row["id"])
            if len(x):
                ends = int(x.max()) + 1, int(y.max()) + 1
                row["bbox"] = [int(x.min()), int(y.min()), ends[0] - int(x.min()), ends[1] - int(y.min())]
            row["area"] = len(x)
        json_of(root).write_text(json.dumps(document))

    return plant


def resave(path, change=lambda image: image, **options):
    with Image.open(path) as image:
        changed = change(image.copy())
    changed.save(path, **options)


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def blend(ids):
    half = cv2.resize(id_to_rgb(ids), (67, 45), interpolation=cv2.INTER_LINEAR)
    return rgb_to_id(cv2.resize(half, SIZE[::-1], interpolation=cv2.INTER_LINEAR))


def through_jpeg(ids):
    """As an image editor leaves it that saved a JPEG in between, where some segments kept their ids."""
    data = cv2.imencode(".jpg", id_to_rgb(ids), [cv2.IMWRITE_JPEG_QUALITY, 98])[1]
    lossy = rgb_to_id(cv2.imdecode(data, cv2.IMREAD_COLOR))
    lossy[:, ::2] = ids[:, ::2]
    return lossy


def as_palette(path):
    ids = read_panoptic_png(path)
    known = np.unique(ids)
    image = Image.fromarray(np.searchsorted(known, ids).astype(np.uint8), "P")
    image.putpalette(np.stack([known & 255, known >> 8 & 255, known >> 16], axis=-1).astype(np.uint8).tobytes())
    image.save(path)


def as_grey(root):
    """Ids below 256, stored as grey values."""
    order = [0, CAT, SKY, GRASS, DOG, BACK]
    ids = np.searchsorted(np.sort(order), read_panoptic_png(png(root)))
    Image.fromarray(ids.astype(np.uint8)).save(png(root))
    names = {number: at for at, number in enumerate(sorted(order))}
    in_json(lambda d: [row.update(id=names[row["id"]]) for row in d["annotations"][1]["segments_info"]])(root)


def turned(root, name="train/1.jpg"):
    """Stored lying, with the EXIF tag that makes it upright."""

    with Image.open(picture(root, name)) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(picture(root, name), exif=exif, quality=95)


def with_exif(root):
    with Image.open(picture(root)) as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(picture(root), exif=exif)


def copy_of(source, target, change=lambda image: image, **options):
    def plant(root):
        shutil.copyfile(root / source, root / target)
        if options:
            resave(root / target, change, **options)

    return plant


def brighter(image):
    return Image.fromarray((np.asarray(image) * 0.9 + 10).astype(np.uint8))


def renamed(document, row, **values):
    document["categories"][row].update(values)


def without_cats(document):
    for annotation in document["annotations"]:
        annotation["segments_info"][2]["category_id"] = 7


def everywhere(change):
    def plant(root):
        for split in ("train", "val"):
            in_json(change, split)(root)

    return plant


def place_pieces(ids):
    """A dog of two parts, far from each other, and one that an object cuts through."""
    ids[ids == DOG] = GRASS
    ids[2:10, 2:8] = ids[2:10, 86:94] = DOG
    ids[40:60, 80:83] = GRASS
    return ids


def tiny(ids):
    ids[ids == CAT] = SKY
    ids[12:15, 8:13] = CAT
    return ids


def mostly_void(ids):
    return np.where((ids == SKY) | (np.arange(SIZE[0])[:, None] > 52), 0, ids)


def stray(ids):
    ids[12:20, 10:20] = 77
    return ids


FAULTS = {
    "picture missing": (lambda r: picture(r).unlink(), {"picture-missing"}),
    "picture cut": (lambda r: cut(picture(r), 0.7), {"picture-unreadable"}),
    "picture cut at its end": (lambda r: cut(picture(r), 0.97), {"picture-unreadable"}),
    "picture is text": (lambda r: picture(r).write_text("no picture"), {"picture-unreadable"}),
    "PNG missing": (lambda r: png(r).unlink(), {"png-missing"}),
    "PNG cut": (lambda r: cut(png(r), 0.6), {"png-unreadable"}),
    "picture of another size": (lambda r: resave(picture(r), lambda i: i.resize((80, 60))), {"size-picture"}),
    "size in the JSON": (in_json(lambda d: d["images"][1].update(width=97)), {"size-json"}),
    "id not in the JSON": (in_map(stray), {"id-not-in-json"}),
    "segment not in the JSON": (in_json(lambda d: d["annotations"][1]["segments_info"].pop()), {"id-not-in-json"}),
    "segment without pixels": (in_map(lambda i: np.where(i == BACK, GRASS, i)), {"segment-without-pixels"}),
    "unknown category": (in_segment(category_id=99), {"segment-category"}),
    "id stands twice": (in_json(lambda d: d["annotations"][0]["segments_info"].append(
        dict(d["annotations"][0]["segments_info"][0]))), {"segment-id"}),
    "id is 0": (in_json(lambda d: d["annotations"][0]["segments_info"].append(
        {**d["annotations"][0]["segments_info"][0], "id": 0})), {"segment-id"}),
    "category id twice": (in_json(lambda d: d["categories"].append({**d["categories"][0], "name": "x"})),
                          {"category-id-twice"}),
    "category name twice": (in_json(lambda d: d["categories"].append({**d["categories"][0], "id": 99})),
                            {"category-name-twice"}),
    "category without isthing": (in_json(lambda d: d["categories"].append({"id": 99, "name": "x"})),
                                 {"category-field"}),
    "stuff and thing contradict": (in_json(lambda d: renamed(d, 0, isthing=1), "val"), {"categories-differ"}),
    "name contradicts": (in_json(lambda d: renamed(d, 2, name="lion"), "val"),
                         {"categories-differ", "class-only-in-val"}),
    "image id twice": (in_json(lambda d: d["images"].insert(0, dict(d["images"][1]))), {"image-id-twice"}),
    "image without its fields": (in_json(lambda d: d["images"].append({"id": 9})), {"json-row"}),
    "annotation twice": (in_json(lambda d: d["annotations"].append(d["annotations"][1])), {"annotation-twice"}),
    "annotation of no image": (in_json(lambda d: d["annotations"].append({**d["annotations"][0], "image_id": 55})),
                               {"annotation-without-image"}),
    "image without annotation": (in_json(lambda d: d["images"].append({**d["images"][0], "id": 55})),
                                 {"image-without-annotation"}),
    "file name leaves the folder": (in_json(lambda d: d["images"].append({**d["images"][0], "id": 9,
                                                                          "file_name": "../x.jpg"})), {"json-row"}),
    "PNG that nobody names": (lambda r: shutil.copyfile(png(r), png(r, "other.png")), {"file-unnamed"}),
    "areas": (in_segment(area=3), {"area-wrong"}),
    "boxes": (in_segment(bbox=[1, 2, 3, 4]), {"box-wrong"}),
    "box without numbers": (in_segment(bbox=None), set()),
    "crowd on stuff": (in_segment(row=1, iscrowd=1), {"stuff-crowd"}),
    "stuff in two segments": (in_segment(row=2, category_id=11), {"stuff-split"}),
    "thing in pieces": (in_map(place_pieces), {"thing-scattered"}),
    "tiny": (in_map(tiny), {"segment-tiny"}),
    "void everywhere": (in_json(lambda d: d["annotations"][1]["segments_info"].clear()),
                        {"id-not-in-json", "image-void"}),
    "mostly void": (in_map(mostly_void), {"image-mostly-void", "segment-without-pixels"}),
    "PNG blended": (in_map(blend), {"png-blended"}),
    "PNG went through JPEG": (in_map(through_jpeg), {"png-blended"}),
    "PNG with a palette": (lambda r: as_palette(png(r)), {"png-mode"}),
    "PNG in grey": (as_grey, {"png-mode"}),
    "PNG is JPEG": (lambda r: resave(png(r), format="JPEG"), {"png-lossy"}),
    "PNG with alpha": (lambda r: resave(png(r), lambda i: i.convert("RGBA")), {"png-alpha"}),
    "grey picture": (lambda r: resave(picture(r), lambda i: i.convert("L")), {"picture-mode"}),
    "EXIF turns it": (turned, {"exif-rotated"}),
    "EXIF would turn it": (with_exif, {"exif-orientation"}),
    "class only in val": (in_json(without_cats), {"class-only-in-val"}),
    "class nowhere": (everywhere(without_cats), {"class-unseen"}),
    "val picture in train": (copy_of("val/1.jpg", "train/2.jpg"), {"duplicate-across-splits"}),
    "val picture in train as PNG": (copy_of("val/1.jpg", "train/2.jpg", format="PNG"), {"duplicate-across-splits"}),
    "val picture in train, changed": (copy_of("val/1.jpg", "train/2.jpg", brighter, format="JPEG", quality=60),
                                      {"near-duplicate-across-splits"}),
    "picture twice": (copy_of("train/1.jpg", "train/2.jpg"), {"duplicate-in-split"}),
    "picture twice, changed": (copy_of("train/1.jpg", "train/2.jpg", brighter, format="JPEG"),
                               {"near-duplicate-in-split"}),
}  # fmt: skip
