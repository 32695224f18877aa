import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from upsnet.categories import IGNORE_LABEL
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.data.targets import semantic_truth
from upsnet.metrics.instance_ap import NAMES, ImageInstances, InstanceAP, encode_window, mask_rows
from upsnet.metrics.semantic_iou import SemanticIoU


def test_miou_by_hand():
    meter = SemanticIoU(CATEGORIES)
    meter.update(np.array([[0, 0, 1, IGNORE_LABEL]]), np.array([[0, 1, 1, 3]]))
    result = meter.compute()
    assert [row["iou"] for row in result["per_class"].values()] == [50.0, 50.0, *[None] * 5]
    assert result["per_class"]["1"]["name"] == "sky"
    assert result["miou"] == 50.0
    assert result["pixel_accuracy"] == pytest.approx(100 * 2 / 3)
    nothing = SemanticIoU(CATEGORIES).compute()
    assert (nothing["miou"], nothing["pixel_accuracy"]) == (None, None)


def perfect(sample):
    things = np.flatnonzero((sample.classes >= 3) & ~sample.is_crowd)
    masks = [encode_window(sample.segment_map == t + 1, 0, 0, sample.size) for t in things]
    return np.linspace(0.9, 0.5, len(things)), sample.classes[things] - 2, masks


def test_ap_of_the_truth_is_100_and_of_wrong_classes_0():
    data = Shapes(6, (64, 64))
    right, wrong, none = InstanceAP(CATEGORIES), InstanceAP(CATEGORIES), InstanceAP(CATEGORIES)
    for sample in (data[i] for i in range(6)):
        scores, labels, masks = perfect(sample)
        right.update(sample, scores, labels, masks)
        wrong.update(sample, scores, labels % 4 + 1, masks)
        none.update(sample, scores[:0], labels[:0], masks[:0])
    assert right.compute()["ap"] == pytest.approx(100)
    assert right.compute()["per_class"]["4"] == {"name": "disc", "ap": pytest.approx(100)}
    assert wrong.compute()["ap"] < 5
    assert none.compute()["ap"] == 0
    assert {row["ap"] for row in none.compute()["per_class"].values()} == {0}


def test_semantic_truth_of_a_sample_scores_100():
    sample, meter = Shapes(1)[0], SemanticIoU(CATEGORIES)
    truth = semantic_truth(sample)
    meter.update(truth, np.where(truth == IGNORE_LABEL, 0, truth))
    assert meter.compute()["miou"] == 100


def random_instances(rng, count, size, *, detections):
    """Thing rows of an image: rectangles, some of them crowds, or detections with scores that tie."""
    rows = []
    for _ in range(count):
        mask = np.zeros(size, dtype=np.uint8, order="F")
        y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        mask[y : y + rng.integers(4, 60), x : x + rng.integers(4, 120)] = 1
        encoded = rle.encode(mask)
        row = {"category_id": CATEGORIES[3 + int(rng.integers(0, 4))].id, "segmentation": encoded}
        if detections:
            rows.append({**row, "score": float(rng.integers(0, 20) / 20)})
        else:
            box = rle.toBbox(encoded).tolist()
            rows.append({**row, "iscrowd": int(rng.random() < 0.2), "area": int(mask.sum()), "bbox": box})
    return rows


def shifted(rng, rows):
    """Detections near the truth, so that every IoU threshold matters."""
    found = []
    for row in rows:
        mask = np.roll(rle.decode(row["segmentation"]), tuple(rng.integers(-3, 4, 2)), (0, 1))
        encoded = rle.encode(np.asfortranarray(mask))
        found.append({"category_id": row["category_id"], "segmentation": encoded, "score": float(rng.random())})
    return found


def by_pycocotools(images):
    rows = [{**row, "image_id": image.image_id} for image in images for row in image.truth]
    found = [{**row, "image_id": image.image_id} for image in images for row in image.detections]
    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {
            "images": [{"id": i.image_id, "height": i.size[0], "width": i.size[1]} for i in images],
            "annotations": [{**row, "id": n} for n, row in enumerate(rows, 1)],
            "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES.categories if c.is_thing],
            "info": {},
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    images = []
    for number in range(1, 25):
        truth = random_instances(rng, int(rng.integers(0, 9)), (80, 150), detections=False)
        found = shifted(rng, truth) + random_instances(rng, int(rng.integers(0, 9)), (80, 150), detections=True)
        images.append(ImageInstances(100 + number, (80, 150), truth, found))
    meter = InstanceAP(CATEGORIES)
    for image in images[::-1]:
        meter.add(image)
    ours, theirs = meter.compute(), by_pycocotools(images)
    for name, value in zip(NAMES, theirs, strict=True):
        assert (-1 if ours[name] is None else ours[name] / 100) == pytest.approx(value, abs=1e-12), name


def test_masks_of_an_id_map_are_those_that_encoding_each_gives():
    rng = np.random.default_rng(0)
    for shape in ((7, 9), (1, 5), (5, 1), (30, 40)):
        ids = rng.integers(0, 4, shape).astype(np.int32)
        found = mask_rows(ids, [{"id": i, "category_id": i, "iscrowd": i == 2} for i in range(5)])
        for row in found:
            mask = ids == row["category_id"]
            encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
            assert row["segmentation"] == encoded
            assert (row["area"], row["bbox"]) == (mask.sum(), rle.toBbox(encoded).tolist())
        assert [row["category_id"] for row in found] == np.unique(ids).tolist()


@pytest.mark.parametrize("seed", range(8))
def test_a_window_is_encoded_as_the_whole_image_is(seed):
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    for _ in range(40):
        top, left = (int(rng.integers(0, side)) for side in size)
        height, width = int(rng.integers(1, size[0] - top + 1)), int(rng.integers(1, size[1] - left + 1))
        window = rng.random((height, width)) < rng.choice([0, 0.3, 0.9, 1])
        whole = np.zeros(size, dtype=np.uint8, order="F")
        whole[top : top + height, left : left + width] = window
        assert encode_window(window, top, left, size) == rle.encode(whole)
    assert encode_window(np.zeros((0, 0), dtype=bool), 0, 0, size) == rle.encode(np.zeros(size, np.uint8, order="F"))
