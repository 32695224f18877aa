"""Data sets and predictions from strangers, through the commands: a right result, or one line; nothing outside."""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.harness import fuzz, run_command
from tests.fuzz.strategies import changed, dump
from upsnet.data.coco import CocoPanoptic
from upsnet.io.images import write_image
from upsnet.io.panoptic_png import write_panoptic_png
from upsnet.metrics import instance_ap

SIZE = (20, 30)


def panoptic_document():
    return {
        "info": {"year": 2026},
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in (1, 2)],
        "annotations": [
            {
                "image_id": n,
                "file_name": f"{n}.png",
                "segments_info": [
                    {"id": 1, "category_id": 1, "area": 500, "bbox": [0, 0, 30, 20], "iscrowd": 0},
                    {"id": 7, "category_id": 2, "area": 100, "bbox": [2, 2, 10, 10], "iscrowd": 0, "score": 0.5},
                ],
            }
            for n in (1, 2)
        ],
        "categories": [
            {"id": 1, "name": "grass", "isthing": 0, "color": [0, 200, 0]},
            {"id": 2, "name": "cat", "isthing": 1, "color": [200, 0, 0]},
        ],
    }


def instance_document():
    square = [[2, 2, 12, 2, 12, 12, 2, 12]]
    runs = {"size": list(SIZE), "counts": [42, 10, 10, 10, 10, 10, 508]}
    rows = [
        {"id": 1, "image_id": 1, "category_id": 2, "segmentation": square, "area": 100, "bbox": [2, 2, 10, 10], "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 2, "segmentation": runs, "area": 30, "bbox": [2, 2, 3, 10], "iscrowd": 1},
        {
            "id": 3, "image_id": 2, "category_id": 2, "area": 100, "bbox": [2, 2, 10, 10], "iscrowd": 0,
            "segmentation": {"size": list(SIZE), "counts": "Z1:J000000000000000000V;"},
        },
    ]  # fmt: skip
    document = panoptic_document()
    return {**document, "annotations": rows, "categories": [{"id": 2, "name": "cat"}]}


def labelme_document():
    shapes = [
        {"label": "cat", "points": [[2, 2], [12, 2], [12, 12]], "shape_type": "polygon", "group_id": None},
        {"label": "dog", "points": [[2, 2], [8, 9]], "shape_type": "rectangle", "group_id": 1},
        {"label": "dog", "points": [[12, 12], [15, 12]], "shape_type": "circle", "flags": {}},
    ]
    return {"version": "5.0", "imagePath": "1.jpg", "imageHeight": SIZE[0], "imageWidth": SIZE[1], "shapes": shapes}


def write_data(folder: Path):
    """Images, id PNGs and documents of a small data set in `folder`."""
    rng = np.random.default_rng(0)
    ids = np.ones(SIZE, dtype=np.int32)
    ids[2:12, 2:12] = 7
    for number in (1, 2):
        write_image(folder / "images" / f"{number}.jpg", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        write_panoptic_png(folder / "pngs" / f"{number}.png", ids)
    (folder / "truth.json").write_text(json.dumps(panoptic_document()))


def doctor(folder: Path, root: Path, output: str):
    """Examines `changed.json`, and writes a corrected copy into `output`."""
    words = ["--images", folder / "images", "--annotations", folder / "changed.json", "--panoptic-dir", folder / "pngs"]
    return run_command("doctor", *words, "--workers", 1, "--fix", root / output, inputs=folder, output=output)


def evaluate(folder: Path, root: Path, *, truth="truth.json", predictions="truth.json", instances=None):
    words = ["--gt", folder / truth, "--pred", folder / predictions, "--gt-dir", folder / "pngs"]
    words += ["--pred-dir", folder / "pngs", "--workers", 1, "--output", root / "out"]
    words += [] if instances is None else ["--instances", folder / instances]
    return run_command("evaluate", *words, inputs=folder, output="out")


def in_folder(check):
    """Calls `check(folder of inputs, its parent)` with a small data set."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_data(root / "in")
        return check(root / "in", root)


@fuzz(changed(panoptic_document()), st.booleans(), examples=40)
def test_evaluate_panoptic(document, is_truth):
    def check(folder, root):
        (folder / "changed.json").write_text(dump(document))
        code, out, _ = evaluate(folder, root, **{"truth" if is_truth else "predictions": "changed.json"})
        if code == 0:
            metrics = json.loads((root / "out" / "metrics.json").read_text())
            pq = metrics["panoptic"]["All"]["pq"]
            assert pq is None or 0 <= pq <= 100
            assert "pq" in out

    in_folder(check)


@fuzz(changed(instance_document()), examples=40)
def test_evaluate_against_instances(document):
    def check(folder, root):
        (folder / "instances.json").write_text(dump(document))
        code, _, _ = evaluate(folder, root, instances="instances.json")
        if code == 0:
            ap = json.loads((root / "out" / "metrics.json").read_text())["panoptic_ap"]
            assert ap is None or all(ap[name] is None or 0 <= ap[name] <= 100 for name in instance_ap.NAMES)

    in_folder(check)


def readable_images(images: Path, json_path: Path, png_dir: Path):
    """Image id -> map of class names, for the images that the reader reads; None if it refuses the data set."""
    try:
        data = CocoPanoptic(images, json_path, png_dir)
    except (OSError, ValueError):
        return None
    found = {}
    for index in range(len(data)):
        with contextlib.suppress(OSError, ValueError):
            sample = data[index]
            names = np.array(["void", *(data.categories[channel].name for channel in sample.classes)])
            found[sample.image_id] = names[sample.segment_map]
    return found


@fuzz(changed(panoptic_document()), examples=40)
def test_doctor_and_its_copy(document):
    """The copy can be read, holds every image that the original's reader reads, and loses no class."""

    def check(folder, root):
        (folder / "changed.json").write_text(dump(document))
        code, _, _ = doctor(folder, root, "out")
        read = readable_images(folder / "images", folder / "changed.json", folder / "pngs")
        if code == 2:
            return
        copied = root / "out" / "annotations"
        copy = readable_images(root / "out" / "data", copied / "panoptic_data.json", copied / "panoptic_data")
        assert copy is not None, "the copy cannot be read"
        for key, names in (read or {}).items():
            assert key in copy, f"image {key} is lost"
            assert (names == copy[key]).all(), f"image {key} has other classes"

    in_folder(check)


@fuzz(changed(instance_document()), examples=40)
def test_convert_coco(document):
    def check(folder, root):
        (folder / "instances.json").write_text(dump(document))
        words = ["--annotations", folder / "instances.json", "--images", folder / "images", "--background", "floor"]
        code, _, _ = run_command(
            "convert", "coco", *words, "--output", root / "out", "--workers", 1, inputs=folder, output="out"
        )
        if code == 0:
            made = root / "out" / "annotations"
            assert readable_images(root / "out" / "train", made / "panoptic_train.json", made / "panoptic_train")

    in_folder(check)


@fuzz(changed(labelme_document()), examples=40)
def test_convert_labelme(document):
    def check(folder, root):
        (folder / "images" / "1.json").write_text(dump(document))
        words = ["--annotations", folder / "images", "--background", "floor", "--output", root / "out", "--workers", 1]
        run_command("convert", "labelme", *words, inputs=folder, output="out")

    in_folder(check)


NAMES = st.sampled_from([
    "../1", "a/../../1", "/tmp/1", "//1", "C:\\1", "..\\1", "a//b", "./1", "1\x00", "1\n", " 1", "con", "x" * 300,
    "é", "\udcff", ".1", "a/.1", "1/", "", "~/1", "$HOME", "%TEMP%", "-1", "1 2", "1.jpg", "2", "1",
])  # fmt: skip


@fuzz(st.lists(NAMES, min_size=2, max_size=2), st.lists(NAMES, min_size=2, max_size=2), examples=40)
def test_names(images, pngs):
    """Whatever an image or a PNG is called, nothing is written outside of the output."""
    document = panoptic_document()
    for row, name in zip(document["images"], images, strict=True):
        row["file_name"] = f"{name}.jpg"
    for row, name in zip(document["annotations"], pngs, strict=True):
        row["file_name"] = f"{name}.png"

    def check(folder, root):
        (folder / "changed.json").write_text(dump(document))
        evaluate(folder, root, predictions="changed.json")
        doctor(folder, root, "fix")

    in_folder(check)
