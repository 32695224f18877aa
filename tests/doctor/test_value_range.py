"""What the doctor says of images of more than 8 bits, and the range that it proposes."""

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.doctor.planted import json_of, write_set
from upsnet.data.loader import open_dataset
from upsnet.doctor.check_run import check_before_training
from upsnet.doctor.coco_files import read_coco
from upsnet.doctor.diagnosis import Source, diagnose
from upsnet.doctor.screen import describe
from upsnet.doctor.segments import Use
from upsnet.io import images


@pytest.fixture
def root(tmp_path):
    write_set(tmp_path / "set")
    return tmp_path / "set"


def examine(root, value_range=None):
    use = Use(value_range=value_range)
    sources = {split: Source(read_coco(json_of(root, split), root / split), use) for split in ("train", "val")}
    return diagnose(sources, workers=1, progress=False)


def findings(diagnosis):
    return {(f.check.name, f.check.level, f.split): [str(problem) for problem in f.first] for f in diagnosis.findings}


def store(path, values):
    """Puts values into an image file, whose suffix stays `.jpg`: Pillow looks at the content."""
    if values.dtype == np.uint16:
        path.write_bytes(cv2.imencode(".png", values)[1].tobytes())
    else:
        Image.fromarray(values).save(path, "TIFF")


def values_up_to(path, top):
    return (cv2.imread(str(path)).astype(float) / 255 * top).astype(np.uint16)


def test_the_range_of_all_images_is_proposed_where_they_use_a_part_of_16_bits(root, monkeypatch, caplog):
    monkeypatch.setattr(images, "_has_warned", False)
    for split, number, top in (("train", 0, 900), ("train", 2, 4000), ("val", 1, 200)):
        path = root / split / f"{number}.jpg"
        values = values_up_to(path, top)
        values[0, 0], values[0, 1] = 0, top
        store(path, values)
    diagnosis = examine(root)
    assert findings(diagnosis) == {
        ("value-range-part", "warning", "train"): [
            "0.jpg (values from 0 to 900; all images [0, 4095])",
            "2.jpg (values from 0 to 4000; all images [0, 4095])",
        ],
        ("value-range-part", "warning", "val"): ["1.jpg (values from 0 to 200; all images [0, 4095])"],
    }
    counts = {f.split: (f.count, f.of) for f in diagnosis.findings}
    assert counts == {"train": (2, 4), "val": (1, 2)}
    assert "set data.value_range to the range in brackets" in " ".join(describe(diagnosis).split())
    assert not caplog.messages, "the finding says it"
    declared = examine(root, (0, 4095))
    assert {f.check.name for f in declared.findings} == {"picture-mode"}
    assert {f.check.level for f in declared.findings} == {"info"}
    picture = declared.splits[0].examiner.picture(2)
    expected = np.round(cv2.imread(str(root / "train" / "2.jpg"), cv2.IMREAD_UNCHANGED)[..., ::-1] / 4095 * 255)
    np.testing.assert_array_equal(picture, expected)


def test_images_of_all_16_bits_need_no_range(root):
    store(root / "train" / "0.jpg", values_up_to(root / "train" / "0.jpg", 65535))
    store(root / "train" / "1.jpg", values_up_to(root / "train" / "1.jpg", 300))
    assert {f.check.name for f in examine(root).findings} == {"picture-mode"}


def test_values_that_training_cannot_read_are_an_error_and_can_be_drawn(root):
    path = root / "train" / "1.jpg"
    values = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255
    values[0, 0], values[0, 1] = 0, 1
    store(path, values / 2)
    diagnosis = examine(root)
    assert findings(diagnosis) == {
        ("value-range-missing", "error", "train"): [
            "1.jpg (values from 0 to 0.5 that are not all whole numbers; all images [0, 1])"
        ]
    }
    sample = diagnosis.splits[0].examiner.sample(1)
    assert (sample.image.min(), sample.image.max()) == (0, 128)
    assert {f.check.name for f in examine(root, (0, 1)).findings} == {"picture-mode"}


def test_the_check_before_a_training_warns(root, make_config, monkeypatch, caplog):
    monkeypatch.setattr(images, "_has_warned", False)
    store(root / "train" / "2.jpg", values_up_to(root / "train" / "2.jpg", 4000))
    source = {"format": "coco", "image_dir": str(root / "train"), "annotation_file": str(json_of(root, "train"))}
    for value_range, count in ([0, 4095], 0), ("null", 1):
        config = make_config(f"data.train={source}", f"data.val={source}", f"data.value_range={value_range}")
        data = open_dataset(config.data, "train")
        check_before_training(config, data, data, source="a.yaml")
        assert len(caplog.messages) == count
    assert "2.jpg: uses 1/16 of 16 bits" in caplog.messages[0]
    assert "set data.value_range: [0, 4095]" in caplog.messages[0]
