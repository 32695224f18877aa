"""Real data through every format and back: PQ 100, or the loss that the format explains."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.convert import forms, forms_more
from upsnet.data.coco import CocoPanoptic
from upsnet.metrics.score_files import evaluate_files
from upsnet.structures import Sample

LIMIT = 20
SETS = {"fruits_nuts": ("val", False), "nuclei": ("val", False), "coco_sample": ("val2017", True)}
"""Name -> folder of the images, and whether the set has crowds."""


@pytest.fixture(scope="module", params=list(SETS))
def original(request, real_data):
    """The samples of a set without crowds, under numbers 1, 2, ..., and its classes."""
    root, (split, _) = real_data / request.param, SETS[request.param]
    data = CocoPanoptic(root / split, next((root / "annotations").glob(f"panoptic_{split}*.json")))
    samples = [without_crowds(data[i]) for i in range(min(LIMIT, len(data)))]
    return [
        replace(s, image_id=i) for i, s in enumerate(sorted(samples, key=lambda s: s.file_name), 1)
    ], data.categories


def without_crowds(sample):
    rows = np.zeros(len(sample.classes) + 1, dtype=np.int32)
    kept = np.flatnonzero(~sample.is_crowd)
    rows[kept + 1] = np.arange(1, len(kept) + 1)
    return Sample(
        sample.image, rows[sample.segment_map], sample.classes[kept], sample.is_crowd[kept], sample.image_id,
        sample.file_name.replace("/", "_"),
    )  # fmt: skip


def write_ground_truth(samples, categories, folder):
    """The samples in COCO panoptic layout."""
    from upsnet.io.predictions import PanopticWriter, truth_rows

    writer = PanopticWriter(folder / "truth.json", categories)
    for s in samples:
        writer.add(s.image_id, s.file_name, s.segment_map, truth_rows(s.segment_map, s.classes, s.is_crowd, categories))
    writer.close()
    (folder / "classes.yaml").write_text(json.dumps(categories.to_json()))
    return folder / "truth.json"


def coco(segmentation):
    def write(samples, categories, folder):
        path = forms.write_coco(samples, categories, folder, segmentation)
        maps = folder / "stuff"
        for s in samples:
            forms.save(maps / f"{s.file_name.rsplit('.', 1)[0]}.png", stuff_values(s, categories))
        return ["coco", "--annotations", path, "--semantic", maps]

    return write


def stuff_values(sample, categories):
    values = np.array([0, *(categories[c].id if not categories[c].is_thing else 0 for c in sample.classes)])
    return values[sample.segment_map].astype(np.uint8 if values.max() < 256 else np.int32)


def yolo(samples, categories, folder):
    forms_more.write_yolo(samples, categories, folder)
    return ["yolo", "--annotations", folder / "data.yaml"]


def cvat(samples, categories, folder):
    forms_more.write_cvat(samples, categories, folder)
    return ["cvat", "--annotations", folder / "annotations.xml", "--images", folder / "images"]


def label_studio(samples, categories, folder):
    forms_more.write_label_studio(samples, categories, folder)
    return ["label-studio", "--annotations", folder / "export.json", "--images", folder / "images"]


def supervisely(samples, categories, folder):
    forms_more.write_supervisely(samples, categories, folder)
    return ["supervisely", "--annotations", folder]


def masks(samples, categories, folder):
    for s in samples:
        forms.save(folder / "images" / s.file_name, s.image)
        stem = s.file_name.rsplit(".", 1)[0]
        for number, (category, mask) in enumerate(forms_more.segments(s, categories)):
            forms.save(folder / "masks" / stem / category.name / f"{number}.png", mask)
    return ["masks", "--images", folder / "images", "--masks", folder / "masks"]


WRITERS = {
    "coco run lengths": coco(lambda mask: forms.run_lengths(mask, compressed=True)),
    "coco polygons": coco(forms.outlines), "yolo": yolo, "cvat": cvat, "label-studio": label_studio,
    "supervisely": supervisely, "masks": masks,
}  # fmt: skip
WITH_POLYGONS = ("coco polygons", "yolo", "cvat", "label-studio")
"""Polygons lose holes."""


@pytest.mark.slow
@pytest.mark.parametrize("form", list(WRITERS))
def test_real_data_come_back(original, run_tool, tmp_path, form):
    samples, categories = original
    truth = write_ground_truth(samples, categories, tmp_path)
    command = WRITERS[form](samples, categories, tmp_path / "export")
    more = ["--classes", tmp_path / "classes.yaml", "--output", tmp_path / "out", "--split", "train"]
    code, _, err = run_tool("datasets/convert.py", *command, *more)
    assert code == 0, err
    converted = tmp_path / "out" / "annotations" / "panoptic_train.json"
    document = json.loads(converted.read_text())
    ids = {s.file_name.rsplit(".", 1)[0]: s.image_id for s in samples}
    of_image = {row["id"]: ids[row["file_name"].rsplit(".", 1)[0]] for row in document["images"]}
    for row in document["annotations"]:
        row["image_id"] = of_image[row["image_id"]]
    converted.write_text(json.dumps(document))
    metrics, problems = evaluate_files(truth, converted, progress=False)
    assert not problems
    part = "Things" if form == "yolo" else "All"
    scores = metrics["panoptic"][part]
    print(f"{form}: PQ {scores['pq']:.2f} of {part}")
    assert scores["pq"] >= (99.9 if form in WITH_POLYGONS else 99.999)
