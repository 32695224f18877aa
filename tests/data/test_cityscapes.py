"""The official layout of Cityscapes; cityscapesscripts, its own program, says what is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels

from tests.data.cityscapes_tree import SPLITS, save, write_tree
from upsnet.categories import known_categories
from upsnet.config import CityscapesConfig, DataConfig
from upsnet.data.cityscapes import Cityscapes, read_truth
from upsnet.data.loader import open_dataset
from upsnet.data.reading import FileDataset
from upsnet.io.panoptic_png import read_panoptic_png

SCRIPT = "datasets/prepare_cityscapes.py"


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "cityscapes")


def one_file(root):
    return next((root / "gtFine" / "val" / "lindau").glob("*_instanceIds.png"))


def run_peer(command, *args, **environment):
    program = Path(sys.executable).parent / command
    subprocess.run([program, *map(str, args)], check=True, capture_output=True, env={**os.environ, **environment})


def test_classes_and_colours_are_the_published_ones():
    evaluated = [label for label in labels if not label.ignoreInEval]
    ours = [(c.id, c.name, c.is_thing, c.color) for c in known_categories("cityscapes").categories]
    assert ours == [(label.id, label.name, label.hasInstances, label.color) for label in evaluated]


def test_every_label_becomes_its_class_a_crowd_or_void(tmp_path):
    present = [label for label in labels if label.id >= 0]
    values = (
        [label.id for label in present] + [1000 * label.id + 7 for label in present if label.hasInstances] + [65535]
    )
    path = tmp_path / "a_gtFine_instanceIds.png"
    save(path, np.array([values, values[::-1]], dtype=np.uint16))
    truth = read_truth(path)
    evaluated = {label.id: label for label in labels if not label.ignoreInEval}
    for column, value in enumerate(values):
        row, number = truth.segment_map[0, column] - 1, value if value < 1000 else value // 1000
        if number not in evaluated:
            assert row == -1, f"{value} is void"
            continue
        assert (truth.ids[row], truth.category_ids[row]) == (value, number)
        assert truth.is_crowd[row] == (evaluated[number].hasInstances and value < 1000)


def test_samples_have_the_models_channels_and_the_names_of_the_images(root):
    data = Cityscapes(root, "val")
    assert [data[i].image_id for i in range(3)] == [
        "frankfurt_000000_000019", "frankfurt_000001_000020", "lindau_000000_000019"
    ]  # fmt: skip
    assert data.categories == known_categories("cityscapes")
    kinds = set()
    for i in range(3):
        sample = data[i]
        assert data.size(i) == sample.size == sample.image.shape[:2] == (64, 128)
        assert isinstance(data, FileDataset)
        assert data.file_name(i) == sample.file_name
        present = np.unique(sample.segment_map)
        assert present[present > 0].tolist() == list(range(1, len(sample.classes) + 1))
        kinds |= set(zip((sample.classes >= data.categories.num_stuff).tolist(), sample.is_crowd.tolist(), strict=True))
    assert kinds == {(False, False), (True, False), (True, True)}


def test_a_config_opens_it_below_the_data_root(root, monkeypatch):
    monkeypatch.setenv("UPSNET_DATASETS", str(root.parent))
    source = CityscapesConfig(format="cityscapes", split="train")
    config = DataConfig(train=source, val=source)
    assert len(open_dataset(config, "train")) == 3
    assert len(open_dataset(config, "val", known_categories("cityscapes"))) == 3
    with pytest.raises(ValueError, match=r"cityscapes: class .* is none of the model"):
        open_dataset(config, "val", known_categories("coco"))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0, 1, 255, 13]], np.uint8), "pixel mode L, expected 16 bits: is it of labelIds or labelTrainIds"),
        (np.array([[0, 1, 255, 13001]], np.uint16), "holds 255, 13001, expected ids of labels .* and no trainIds"),
        (np.array([[7, 7001]], np.uint16), "holds 7001"),
        (np.array([[7, 34001]], np.uint16), "holds 34001"),
        (np.zeros((1, 2, 3), np.uint8), "pixel mode RGB"),
    ],
)
def test_a_file_of_another_kind_is_named(root, pixels, message):
    save(one_file(root), pixels)
    with pytest.raises(ValueError, match=rf"lindau_000000_000019_gtFine_instanceIds\.png.*{message}"):
        Cityscapes(root, "val")[2]


def test_what_is_missing_is_named_with_what_to_download(root, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere/leftImg8bit/val: no such folder; unpack leftImg8bit_trainval"
    ):
        Cityscapes(tmp_path / "nowhere", "val")
    one_file(root).unlink()
    with pytest.raises(FileNotFoundError, match=r"lindau_000000_000019_leftImg8bit\.png: no .* \(1 of 3 images"):
        Cityscapes(root, "val")
    (root / "gtFine" / "val").rename(root / "gtFine" / "other")
    with pytest.raises(FileNotFoundError, match=r"gtFine/val: no such folder; .*gtFine_trainvaltest\.zip"):
        Cityscapes(root, "val")


def test_a_damaged_file_and_one_of_another_size_are_named(root):
    data = Cityscapes(root, "val")
    save(data.truth[0], np.full((4, 4), 7, np.uint16))
    with pytest.raises(ValueError, match=r"size \(64, 128\), expected \(4, 4\) like frankfurt_000000_000019_gtFine"):
        data[0]
    data.truth[1].write_bytes(data.truth[1].read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as instanceIds"):
        data[1]
    data.images[2].write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        data.size(2)


def test_the_prepared_truth_is_that_of_the_data_sets_own_program(root, run_tool, tmp_path):
    code, out, err = run_tool(SCRIPT, "panoptic", "--root", root, "--output", tmp_path / "ours")
    assert code == 0, err
    assert "train: 3 images, 3 with ground truth" in out
    assert "warning: val has 3 instanceIds files, expected 500: the copy is incomplete" in err
    (tmp_path / "peer").mkdir()
    run_peer("csCreatePanopticImgs", "--output-folder", tmp_path / "peer", CITYSCAPES_DATASET=str(root))
    for split, cities in SPLITS.items():
        ours, peer = (tmp_path / side / f"cityscapes_panoptic_{split}.json" for side in ("ours", "peer"))
        documents = [json.loads(path.read_text()) for path in (ours, peer)]
        for key, name in (("images", "id"), ("annotations", "image_id"), ("categories", "id")):
            rows = [sorted(document[key], key=lambda row: row[name]) for document in documents]
            assert rows[0] == rows[1]
        names = [sorted(path.name for path in file.with_suffix("").iterdir()) for file in (ours, peer)]
        assert names[0] == names[1]
        assert len(names[0]) == sum(cities.values())
        for name in names[0]:
            maps = [read_panoptic_png(file.with_suffix("") / name) for file in (ours, peer)]
            np.testing.assert_array_equal(*maps)


def test_the_check_names_what_a_copy_lacks(root, run_tool):
    picture = next((root / "leftImg8bit" / "train" / "bochum").iterdir())
    picture.rename(picture.with_name("bochum.png"))
    code, out, err = run_tool(SCRIPT, "check", "--root", root)
    assert code == 0, err
    assert "train: 2 images, 3 with ground truth" in out
    assert "train: no image for bochum_000000_000019 (1 in all)" in err
    assert "bochum.png: not a name of Cityscapes" in err
    one_file(root).unlink()
    code, _, err = run_tool(SCRIPT, "check", "--root", root, "--splits", "val")
    assert code == 2
    assert "lindau_000000_000019_leftImg8bit.png: no" in err
    (root / "gtFine" / "test").rename(root / "away")
    code, out, err = run_tool(SCRIPT, "panoptic", "--root", root, "--splits", "test")
    assert code == 0, "pictures to predict need no truth"
    assert "test: 2 images, 0 with ground truth" in out
    assert not (root / "gtFine" / "cityscapes_panoptic_test.json").exists()
    code, _, err = run_tool(SCRIPT, "check", "--root", root / "gtFine")
    assert code == 2
    assert "none of the splits train, val, test; unpack leftImg8bit_trainvaltest.zip" in err
