"""Images of 12 bits give the pixels of the same images with 8 bits, in every reader with `data.value_range`."""

import shutil

import cv2
import numpy as np
import pytest

from tests.data.cityscapes_tree import write_tree
from upsnet.config import CityscapesConfig, CocoConfig, DataConfig
from upsnet.data import loader
from upsnet.data.loader import open_dataset
from upsnet.data.shapes import CATEGORIES, Shapes
from upsnet.io.predictions import write_samples

RANGE = (0, 4095)


def deepen(folder):
    """Stores every PNG below a folder with 12 bits, from which `RANGE` makes the same 8 bits."""
    for path in folder.rglob("*.png"):
        values = np.round(cv2.imread(str(path)) / 255 * 4095).astype(np.uint16)
        cv2.imwrite(str(path), values)


@pytest.fixture(params=["coco", "cityscapes"])
def sources(request, tmp_path, monkeypatch):
    """The sources of a data set of 8 bits and of one of 12."""
    monkeypatch.setenv("UPSNET_DATASETS", str(tmp_path))
    if request.param == "coco":
        data = Shapes(3, (48, 64))
        write_samples((data[i] for i in range(3)), CATEGORIES, tmp_path / "plain", "train")
        shutil.copytree(tmp_path / "plain", tmp_path / "deep")
        deepen(tmp_path / "deep" / "train")
        json_path = "plain/annotations/panoptic_train.json"
        return [
            CocoConfig(format="coco", image_dir=f"{name}/train", annotation_file=json_path)
            for name in ("plain", "deep")
        ]
    write_tree(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "deep")
    deepen(tmp_path / "deep" / "leftImg8bit")
    return [CityscapesConfig(format="cityscapes", root=name, split="train") for name in ("plain", "deep")]


def test_training_and_evaluation_read_12_bits_as_8(sources):
    plain, deep = (
        DataConfig(train=source, val=source, num_workers=0, value_range=value_range)
        for source, value_range in zip(sources, (None, RANGE), strict=True)
    )
    for split in ("train", "val"):
        expected, found = open_dataset(plain, split), open_dataset(deep, split)
        assert len(found) == 3
        for index in range(len(found)):
            np.testing.assert_array_equal(found[index].image, expected[index].image)
    batches = []
    for config in (plain, deep):
        data = open_dataset(config, "train")
        batches.append([next(iter(loader.train_loader(data, config, batch_size=2, seed=0, start=0, stop=1))).images])
        batches[-1] += [batch.images for batch in loader.test_loader(data, config, batch_size=2)]
    for expected, found in zip(*batches, strict=True):
        assert (found == expected).all()
        assert found.max() > 200
    dark = open_dataset(deep.model_copy(update={"value_range": None}), "train")
    assert dark[0].image.max() <= 4095 >> 8
