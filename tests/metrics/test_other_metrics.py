import numpy as np
import pytest

from upsnet.data.categories import IGNORE_LABEL
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.data.targets import semantic_truth
from upsnet.metrics.instance_ap import InstanceAP
from upsnet.metrics.semantic_iou import SemanticIoU


def test_miou_by_hand():
    meter = SemanticIoU(CATEGORIES)
    meter.update(np.array([[0, 0, 1, IGNORE_LABEL]]), np.array([[0, 1, 1, 3]]))
    result = meter.compute()
    assert result["per_class"] == {"sky": 50.0, "grass": 50.0}
    assert result["miou"] == 50.0
    assert result["pixel_accuracy"] == pytest.approx(100 * 2 / 3)
    assert SemanticIoU(CATEGORIES).compute()["miou"] == 0


def perfect(sample):
    things = np.flatnonzero((sample.classes >= 3) & ~sample.is_crowd)
    masks = np.stack([sample.segment_map == t + 1 for t in things])
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
    assert wrong.compute()["ap"] < 5
    assert none.compute()["ap"] == 0


def test_semantic_truth_of_a_sample_scores_100():
    sample, meter = Shapes(1)[0], SemanticIoU(CATEGORIES)
    truth = semantic_truth(sample)
    meter.update(truth, np.where(truth == IGNORE_LABEL, 0, truth))
    assert meter.compute()["miou"] == 100
